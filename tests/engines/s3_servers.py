"""Real servers of S3: Ceph RGW, which a fleet may rely on, and Swift, which it may not.

Each runs in a root of its own that `make engines` makes, with all it writes in memory, and ends
with the first process of its namespace: nothing of it is left.
"""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from engines.daemons import Daemon, as_root, missing_of
from engines.ports import free_port

_SCRIPTS = Path(__file__).parents[1] / "env"
ROOTS = Path(__file__).parents[2] / "build" / "engines" / "roots"

SECRET = "testtesttest"


@dataclass(frozen=True, slots=True)
class Kind:
    """What can be started."""

    name: str
    access_key: str
    ports: int
    """How many it needs; the first is that of its S3."""


RGW = Kind("rgw", "test", 2)
SWIFT = Kind("swift", "test:test", 4)


def missing(kind: Kind) -> str | None:
    """Say why a server cannot be started here, if that is so."""
    if not (ROOTS / kind.name).is_dir():
        return f"the root of {kind.name} is missing (make engines makes it)"
    return missing_of("unshare", "chroot")


class S3Server:
    """A server on loopback whose files are in ``folder``, while it runs."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self._daemon = Daemon(kind.name, folder)

    @property
    def endpoint(self) -> str:
        """Give its URL."""
        port = (self.folder / "ports").read_text().split()[0]
        return f"http://127.0.0.1:{port}"

    @property
    def env(self) -> Mapping[str, str]:
        """Give the credentials of its only user, where boto3 looks for them."""
        return {"AWS_ACCESS_KEY_ID": self.kind.access_key, "AWS_SECRET_ACCESS_KEY": SECRET}

    def start(self) -> None:
        """Start it, if it does not run yet; return when it answers.

        Raises:
            EngineError: It does not within three minutes.
        """
        inside = self.folder / "inside"
        inside.mkdir(parents=True, exist_ok=True)
        if not self._daemon.runs():
            ports = [str(free_port()) for _ in range(self.kind.ports)]
            (self.folder / "ports").write_text(" ".join(ports))
            # It ignores SIGTERM itself; with it all others of its namespace are killed.
            self._daemon.launch(
                *("unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL"),
                *("sh", str(_SCRIPTS / "in-root.sh"), str(ROOTS / self.kind.name), str(inside)),
                *(str(_SCRIPTS / f"{self.kind.name}.sh"), *ports),
            )
        self._daemon.wait(self.answers)

    def answers(self) -> bool:
        """Tell whether it answers, be it to refuse."""
        try:
            with urlopen(self.endpoint, timeout=5):
                return True
        except HTTPError as error:
            return error.code < 500
        except OSError:
            return False

    def close(self) -> None:
        """End it and remove its folder."""
        self._daemon.end(signal.SIGKILL)
        as_root("rm", "-rf", str(self.folder))
