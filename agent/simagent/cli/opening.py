"""How commands come to the client that they stand on."""

from simagent.api import Client
from simagent.cli.text import printable, say
from simagent.config import Config


def open_client(config: Config) -> Client:
    """Make a client whose notices are shown on standard error."""
    return Client.of(config, on_notice=lambda text: say(printable(text)))
