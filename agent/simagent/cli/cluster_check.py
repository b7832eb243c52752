"""What a head does by itself about `simagent mpi check`: once for each set of hosts, and kept."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from simagent.config import Config
from simagent.engines import open_store
from simagent.ledger import Ledger
from simagent.ports.clock import Clock, SystemClock, Wake
from simagent.ports.store import StoreError
from simagent.wiring.head import wanted_hosts
from simagent.worker.roster import LOOK_EVERY, Roster

_AGAIN = 600.0
_TIMEOUT = 900.0
_GRACE = 60.0
_TICK = 0.5
_FILE = "mpi-check.json"
_SIMAGENT = (sys.executable, "-m", "simagent")

log = structlog.get_logger()


@contextmanager
def checking(config: Config) -> Iterator[None]:
    """Let the head try MPI meanwhile, where it is one that is to."""
    if not config.mpi.check or config.cluster is None or config.role != "head":
        yield
        return
    stop = Wake()
    thread = threading.Thread(
        target=ClusterCheck(config, SystemClock()).run, args=(stop,), name="mpi check", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(1.0)


class ClusterCheck:
    """A thread of a head that tries MPI when hosts have come, by the command for people.

    A result that is good is kept in the state folder, and not tried again with the same hosts;
    another one is, after ten minutes.
    """

    def __init__(self, config: Config, clock: Clock, simagent: Sequence[str] = _SIMAGENT) -> None:
        assert config.cluster is not None
        self._config = config
        self._clock = clock
        self._simagent = simagent
        self._roster = Roster(Ledger(open_store(config)), clock, config.cluster)
        self._before: list[str] = []
        self._failed: tuple[list[str], float] | None = None

    def run(self, stop: Wake) -> None:
        """Look who is there, and try them, until ``stop`` is set."""
        while not stop.is_set():
            try:
                self.turn(stop)
            except (StoreError, OSError) as error:
                log.debug("MPI not tried yet", error=str(error))
            self._clock.wait(LOOK_EVERY, stop)

    def turn(self, stop: Wake) -> None:
        """Look once, and try them if that is due. Raises StoreError, OSError."""
        hosts = self._due()
        if hosts:
            self._try(hosts, stop)

    def _due(self) -> list[str]:
        """Give the members to try; none where all is known, or more are waited for."""
        self._roster.look()
        wanted = wanted_hosts(self._config)
        there = self._roster.members()
        named = [m for m in there if not wanted or any(w.means_member(m) for w in wanted)]
        hosts, before = [f"{m.agent} {m.version} {' '.join(m.mpi)}" for m in named], self._before
        self._before = hosts
        if not hosts or hosts != before or 1 + len(hosts) < (self._config.mpi.size or 2):
            return []
        if self._failed and self._failed[0] == hosts:
            return hosts if self._clock.now() - self._failed[1] >= _AGAIN else []
        kept = kept_check(self._config.state_dir)
        return hosts if kept is None or kept.get("members") != hosts else []

    def _try(self, hosts: list[str], stop: Wake) -> None:
        log.info("MPI is tried on the hosts of the cluster", hosts=1 + len(hosts))
        report = self._ask(1 + len(hosts), stop)
        if report is None:
            return
        if report["ok"]:
            self._failed = None
            log.info("MPI works on the hosts of the cluster", ranks=len(report["ranks"]))
        else:
            self._failed = hosts, self._clock.now()
            log.warning("MPI does not work on the hosts of the cluster", why=report["troubles"])
        kept = {"members": hosts if report["ok"] else [], "at": self._clock.wall(), **report}
        path = self._config.state_dir / _FILE
        part = path.with_suffix(".new")
        part.write_text(json.dumps(kept))
        part.replace(path)

    def _ask(self, hosts: int, stop: Wake) -> dict[str, Any] | None:
        """Give the command's report; None where it was interrupted."""
        process = subprocess.Popen(
            self._command(hosts),
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        said = _Said(process)
        until = self._clock.now() + _TIMEOUT + _GRACE
        while not said.all.is_set():
            if self._clock.wait(_TICK, stop, said.all) and stop.is_set():
                process.terminate()
                return None
            if self._clock.now() > until:
                process.kill()
        try:
            report: dict[str, Any] = json.loads(said.out)
        except ValueError:
            lines = said.err.strip().splitlines() or ["it said nothing"]
            report = {"ok": False, "troubles": [lines[-1]], "notes": [], "ranks": []}
        return report

    def _command(self, hosts: int) -> Sequence[str]:
        image = self._config.mpi.check_image
        return (
            *(*self._simagent, "mpi", "check", "--json"),
            *("--hosts", str(hosts), "--timeout", f"{_TIMEOUT:g}"),
            *(() if image is None else ("--image", image)),
        )

    def _environment(self) -> dict[str, str]:
        """Give the command the agent's own settings, wherever they came from."""
        given = self._config.model_dump(mode="json", exclude_unset=True)
        settings = {
            f"SIMAGENT_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in given.items()
            if value is not None
        }
        own = {name: v for name, v in os.environ.items() if not name.startswith("SIMAGENT_")}
        return own | settings


class _Said:
    """What a process prints, read aside; ``all`` is set when it has ended."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.out = self.err = ""
        self.all = Wake()
        threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        try:
            self.out, self.err = process.communicate()
        finally:
            self.all.set()


def kept_check(state_dir: Path) -> dict[str, Any] | None:
    """Give what the last check of the head's own said, None where there was none."""
    try:
        kept = json.loads((state_dir / _FILE).read_text())
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) else None


def age_of(kept: dict[str, Any]) -> float:
    """Tell how long ago that was, in seconds."""
    at = kept.get("at")
    return max(0.0, time.time() - at) if isinstance(at, int | float) else 0.0
