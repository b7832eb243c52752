"""How commands come to the client that they stand on."""

import os
import signal
import sys
import threading
from typing import NoReturn

from simagent.api import Client
from simagent.cli.leaving import INTERRUPTED
from simagent.cli.text import printable, say
from simagent.config import Config

_TIDY_WITHIN = 1.5
_SHOW_CURSOR = b"\r\x1b[K\x1b[?25h"


def open_client(config: Config) -> Client:
    """Make a client whose notices are shown on standard error."""
    leave_when_interrupted()
    return Client.of(config, on_notice=lambda text: say(printable(text)))


def leave_when_interrupted() -> None:
    """Let Ctrl-C end the command soon, also where a transfer's threads wait for an answer.

    All that a client does may be broken off anywhere, and done again.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # who started us wants it ignored

    def interrupted(*_: object) -> NoReturn:
        timer = threading.Timer(_TIDY_WITHIN, _leave)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupted)


def _leave() -> None:
    if sys.stderr.isatty():
        os.write(2, _SHOW_CURSOR)
    os._exit(INTERRUPTED)
