"""The agent as systemd runs it: a process, what it tells systemd, and its journal."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from fakes.rig import TIMES


class Service:
    """An agent with a notify socket; ``settings`` are those of its environment."""

    def __init__(self, folder: Path, *arguments: str | Path, **settings: object) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self._socket.settimeout(0.1)
        self._over = threading.Event()
        self.told: list[str] = []
        """All that systemd was told, line by line."""
        self.journal = folder / "journal"
        given = {"STATE_DIR": folder / "state", "TIMES": json.dumps(TIMES)} | settings
        # Nothing of who runs the tests, nor of other tests: they leave keys of AWS here.
        others = ("SIMAGENT_", "AWS_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        env |= {
            (name if name.startswith("AWS_") else f"SIMAGENT_{name}"): str(value)
            for name, value in given.items()
        }
        env["NOTIFY_SOCKET"] = str(folder / "notify")
        argv = [sys.executable, "-m", "simagent", *map(str, arguments or ("agent",))]
        with self.journal.open("wb") as journal:
            self.process = subprocess.Popen(argv, env=env, stderr=journal)
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Service":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._over.set()
        self._thread.join()
        self._socket.close()

    def ended(self, seconds: float = 60.0) -> int:
        """Wait for its end; give the exit code, when all that it told has come."""
        code = self.process.wait(seconds)
        self._over.set()
        self._thread.join()
        return code

    @property
    def status(self) -> str:
        """What `systemctl status` shows."""
        found = [line.removeprefix("STATUS=") for line in self.told if line.startswith("STATUS=")]
        return found[-1] if found else ""

    @property
    def ready(self) -> bool:
        return "READY=1" in self.told

    @property
    def lines(self) -> list[str]:
        """The lines of the journal."""
        return self.journal.read_text().splitlines()

    def events(self, name: str) -> list[dict[str, Any]]:
        """List the events of a name in the journal."""
        whole = self.journal.read_text().split("\n")[:-1]  # the last line may be in the writing
        found = [json.loads(line) for line in whole if line.startswith("{")]
        return [event for event in found if event["event"] == name]

    def until(self, look: Callable[[], object], seconds: float = 60.0) -> None:
        """Wait until there is something to see."""
        pause = threading.Event()
        for _ in range(int(seconds / 0.05)):
            if look():
                return
            assert self.process.poll() is None, self.lines
            pause.wait(0.05)
        raise AssertionError(f"waited in vain: {self.status!r}, {self.lines}")

    def _hear(self) -> None:
        while True:
            last = self._over.is_set()
            with suppress(TimeoutError):
                while True:
                    self.told += self._socket.recv(65536).decode().splitlines()
            if last:
                return
