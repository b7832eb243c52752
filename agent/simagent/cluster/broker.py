"""The broker of a step over several hosts: enters them for `mpirun`, which has no key for it.

It runs beside the step, from before its start until after its end, as a step of its own:
``python -m simagent.cluster.broker FOLDER``. The folder is private to the agent. What comes by
`simagent.cluster.launch` is from the task, and not trusted: it names one of the plan's addresses,
and what to run there, which is no more than the task may run there anyhow.

On SIGTERM it ends what it started on all hosts, tells within `LEAVE_LIMIT` seconds how that went
for each, and ends. Whoever stops it gives it a few seconds more than that.
"""

import json
import resource
import secrets
import select
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simagent.cluster.asks import Ask, Asks
from simagent.cluster.connection import Pace
from simagent.cluster.doors import LEAVE_LIMIT, Door, Peer
from simagent.cluster.happenings import Happening, Telling, now, read_events
from simagent.cluster.keyfiles import write
from simagent.cluster.messages import Enter
from simagent.ports.clock import Wake

__all__ = ["LEAVE_LIMIT", "Happening", "Peer", "command", "read_events", "write_plan"]

_PLAN = "plan.json"
_LOOK_EVERY = 1.0
"""Seconds between looks for asks whose bell was not heard."""

_PAUSE = 0.02
"""Seconds after each look: who rings all the time must not keep a core of the host busy."""

_MOST_AT_ONCE, _MOST_EVER = 4, 10_000
"""Asks for one host at a time, and for all in a step: `mpirun` has one for each host."""

_MOST_REFUSED = 20
_MARGIN = 2.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def write_plan(
    folder: Path,
    launch: Path,
    peers: Mapping[str, Peer],
    *,
    pace: Pace | None = None,
    limit: float = LEAVE_LIMIT,
) -> None:
    """Write into ``folder`` what the broker needs: the laid folder, and the peers by address.

    Raises OSError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    plan = {
        "format": 1,
        "launch": str(launch),
        "peers": {
            address: {
                "name": peer.name,
                "ssh": peer.ssh,
                "enter": peer.enter.model_dump(mode="json"),
            }
            for address, peer in peers.items()
        },
        "pace": asdict(pace or Pace()),
        "limit": limit,
    }
    write(folder / _PLAN, json.dumps(plan), 0o600)


def command(folder: Path) -> tuple[str, ...]:
    """Give the command line of a broker whose plan is in ``folder``."""
    return (sys.executable, "-I", "-m", "simagent.cluster.broker", str(folder))


class Broker:
    """Takes asks until it is told to end."""

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self._peers = {
            address: Peer(
                name=peer["name"],
                ssh=tuple(peer["ssh"]),
                enter=Enter.model_validate(peer["enter"]),
            )
            for address, peer in plan["peers"].items()
        }
        self._pace = Pace(**plan["pace"])
        self._limit = float(plan["limit"])
        self._asks = Asks(Path(plan["launch"]))
        self._telling = Telling(folder)
        self._doors: dict[str, list[Door]] = {address: [] for address in self._peers}
        self._taken = 0
        self._refusing: list[threading.Thread] = []

    def run(self, end: Wake) -> None:
        """Return when all hosts have been left, after ``end`` was set."""
        self._telling.tell(now("ready"))
        poller = select.poll()
        poller.register(self._asks.fileno(), select.POLLIN)
        poller.register(end.fileno(), select.POLLIN)
        while not end.is_set():
            poller.poll(_LOOK_EVERY * 1000)
            for ask in self._asks.take():
                self._answer(ask)
            time.sleep(_PAUSE)
        doors = [door for doors in self._doors.values() for door in doors]
        for door in doors:
            door.leave()
        until = time.monotonic() + self._limit + _MARGIN
        for door in doors:
            door.join(max(0.0, until - time.monotonic()))

    def _answer(self, ask: Ask) -> None:
        trouble = ask.trouble or self._trouble(ask)
        if trouble:
            self._refuse(ask, trouble)
            return
        self._taken += 1
        peer = self._peers[ask.address]
        entry = f"{peer.enter.entry}-{self._taken}-{secrets.token_hex(4)}"
        door = Door(
            peer,
            ask,
            self._asks.reply(ask),
            entry=entry.removeprefix("-"),
            tell=self._telling.tell,
            pace=self._pace,
            limit=self._limit,
        )
        self._doors[ask.address].append(door)

    def _trouble(self, ask: Ask) -> str:
        if ask.address not in self._peers:
            known = ", ".join(sorted(self._peers))
            return f"{ask.address!r} is no host of this step: those are {known}"
        doors = self._doors[ask.address] = [door for door in self._doors[ask.address] if door.open]
        if len(doors) >= _MOST_AT_ONCE or self._taken >= _MOST_EVER:
            return "it is asked for too often"
        return ""

    def _refuse(self, ask: Ask, trouble: str) -> None:
        """Answer an ask that no host is entered for, as soon as there is somebody to read it."""

        def answer() -> None:
            reply = self._asks.reply(ask)
            until = time.monotonic() + 1.0
            try:
                while not reply.open() and time.monotonic() < until:
                    time.sleep(0.01)
            except OSError:
                return
            reply.say("taken")
            reply.say(f"255 refused: {trouble}")
            reply.close()

        self._refusing = [thread for thread in self._refusing if thread.is_alive()]
        if len(self._refusing) < _MOST_REFUSED:  # else it asks for nonsense again and again
            thread = threading.Thread(target=answer, daemon=True)
            thread.start()
            self._refusing.append(thread)


def main() -> int:
    """Run the broker whose plan is in the folder that the command line names."""
    # Blocked, which programs inherit: a signal for the whole tree of this step ends no ssh before
    # the hosts have been left. One thread waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a host takes six
    folder = Path(sys.argv[1])
    try:
        broker = Broker(folder, json.loads((folder / _PLAN).read_bytes()))
    except (OSError, ValueError, LookupError, TypeError) as error:
        print(f"no plan in {folder} to go by: {error}", file=sys.stderr)  # noqa: T201
        return 1
    end = Wake()

    def wait() -> None:
        signal.sigwait(_SIGNALS)
        end.set()

    threading.Thread(target=wait, name="signals", daemon=True).start()
    broker.run(end)
    return 0


if __name__ == "__main__":
    sys.exit(main())
