"""Programs that outlive whoever starts them, run as root, and are ended by their process ids."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

READY = 180.0
"""Seconds a daemon may take to start, or to end: Ceph RGW takes 13 where nothing else runs."""

# Daemons stand in sbin, which is not on everybody's PATH.
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


class EngineError(Exception):
    """A daemon does not do what it should; the text ends with what it logged."""


def missing_of(*commands: str) -> str | None:
    """Name a command that is missing, or the root that daemons are run as, if one is."""
    for command in commands:
        if shutil.which(command, path=PATH) is None:
            return f"{command} is missing (make engines installs it)"
    if os.geteuid() and (not shutil.which("sudo") or _run(["sudo", "-n", "true"]).returncode):
        return "machine: engines of our own need root, or sudo without a password"
    return None


def _run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=READY)


def as_root(*argv: str) -> str:
    """Run a small command, and give what it prints, whether or not it finds something to do."""
    return _run([*_sudo(), *argv]).stdout


def _sudo() -> list[str]:
    return ["sudo", "-n"] if os.geteuid() else []


def _states(pid: int | None) -> set[str]:
    """Give the letters of the states of a process's threads."""
    states = set()
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # it has just ended
            states.add((thread / "stat").read_text().rpartition(")")[2].split()[0])
    return states


class Daemon:
    """One daemon, whose command line names ``folder``; its log and its process id are in there."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder

    def launch(self, *argv: str) -> None:
        """Start it as no child of ours."""
        log, pid = self.folder / f"{self.name}.log", self.folder / f"{self.name}.started"
        script = 'log=$1 pid=$2; shift 2; "$@" </dev/null >>"$log" 2>&1 & echo $! >"$pid"'
        subprocess.run(
            [*_sudo(), "env", f"PATH={PATH}", "sh", "-c", script, "sh", log, pid, *argv],
            check=True,
            start_new_session=True,
        )

    def runs(self) -> bool:
        """Tell whether it runs."""
        return self._pid() is not None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        pid = self._pid()
        if pid is not None:
            as_root("kill", f"-{number.name.removeprefix('SIG')}", str(pid))

    def end(self, number: signal.Signals) -> None:
        """Send it a signal and wait for its end; kill it where that does not come."""
        self.send(number)
        try:
            self.wait(lambda: not self.runs(), must_run=False, seconds=20)
        except EngineError:
            self.send(signal.SIGKILL)
            self.wait(lambda: not self.runs(), must_run=False)

    def freeze(self) -> None:
        """Stop all of its threads."""
        self.send(signal.SIGSTOP)
        self.wait(lambda: _states(self._pid()) == {"T"})

    def wait(
        self, met: Callable[[], bool], *, must_run: bool = True, seconds: float = READY
    ) -> None:
        """Wait until something is so. Raises `EngineError`."""
        deadline = time.monotonic() + seconds
        while not met():
            gone = must_run and not self.runs()
            if (gone and not met()) or time.monotonic() > deadline:
                state = "has ended" if gone else f"did not start or end in {seconds:g} s"
                raise EngineError(f"{self.name} {state}:\n{self.log()[-2000:]}")
            time.sleep(0.02)

    def log(self) -> str:
        """Give what it logged."""
        path = self.folder / f"{self.name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _pid(self) -> int | None:
        try:
            pid = int((self.folder / f"{self.name}.started").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            states = _states(pid)
        except (OSError, ValueError):
            return None
        # A stranger has other words. In the middle of exec there are none, as with a zombie.
        mine = str(self.folder).encode() in words or not words
        return pid if mine and states - {"Z", "X"} else None
