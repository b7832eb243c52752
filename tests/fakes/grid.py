"""A head and its hosts in one process: a fake mpirun, the real broker, fake members."""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fakes.containers import FakeContainers, FakeImages
from fakes.launchers import Launchers, PlainLauncher
from fakes.member_agents import FakeMember
from fakes.rig import Rig
from fakes.steps import commands_of, running
from simagent.cluster import relay
from simagent.cluster.ssh import HeadKey
from simagent.domain.cluster import Member
from simagent.domain.keys import TaskKeys
from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.ports.clock import SystemClock, Wake
from simagent.ports.launcher import Launcher, Ranks
from simagent.worker.context import Context
from simagent.worker.head import Head, Leadership
from simagent.worker.journal import Entry, Place

SLEEP = "echo $SIMAGENT_TASK_ID; exec sleep 300"
"""What ranks run, for `is_rank`."""


class ShellLauncher(PlainLauncher):
    """An mpirun in three lines of shell: enters each other host, and ends as the worst does."""

    def command(self, ranks: Ranks, argv: Sequence[str]) -> tuple[str, ...]:
        assert ranks.span is not None
        line = shlex.join(argv)
        agent = ranks.span.agent
        others = [shlex.join((agent, h.address, line)) for h in ranks.span.hosts[1:]]
        started = "".join(f'{other} & all="$all $!"\n' for other in others)
        ended = "code=0; for one in $all; do wait $one || code=$?; done; exit $code"
        script = f"trap 'kill $all; exit 143' TERM\n{started}{line} & all=\"$all $!\"\n{ended}"
        return ("/bin/sh", "-c", script, "mpirun")


class ShellLaunchers(Launchers):
    def find(self, version: str | None) -> Launcher:
        return ShellLauncher()

    def inside(self) -> Launcher:
        return ShellLauncher()

    def __bool__(self) -> bool:
        return True


class FakeHead(Head):
    """Leads a cluster of hosts that are reached by their relays, without ssh."""

    def __init__(self, folder: Path, members: Mapping[str, FakeMember], ledger: Ledger) -> None:
        self.members = members
        self.records: dict[str, Member] = {}
        self.named: list[Entry] = []
        self.released: list[str] = []
        self.doubted: list[tuple[str, str]] = []
        own = Place(name="vm1", address="10.0.0.1", slots=1, agent="vm1")
        it = Leadership(cluster="grid", own=own, network="10.0.0.0/24", shared_dir=folder)
        clock, key = SystemClock(), HeadKey(folder / "key")
        super().__init__(it, ledger, clock, Times(), incarnation="1", key=key)

    def run(self, stop: Wake) -> None:
        SystemClock().wait(None, stop)

    def places(self) -> tuple[Place, ...]:
        others = [
            Place(name=name, address=f"10.0.1.{number}", slots=1, agent=name)
            for number, name in enumerate(self.members)
        ]
        return (self.it.own, *others)

    def trouble(self) -> str | None:
        return None

    def member(self, place: Place) -> Member | None:
        return self.records.get(place.name)

    @property
    def settled(self) -> bool:
        return True

    def ssh(self, place: Place) -> tuple[str, ...]:
        numbers = ("0.2", "10", "10")
        path = str(self.members[place.name].path)
        script = str(relay.__file__)
        return (sys.executable, "-I", "-S", script, path, *numbers)

    def name(self, entry: Entry) -> None:
        self.named.append(entry)

    def release(self, entry: Entry) -> None:
        self.released.append(entry.task)

    def doubt(self, place: Place, why: str) -> None:
        self.doubted.append((place.name, why))


class Cluster(Rig):
    """A head's agent and two members."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.launchers: Launchers = ShellLaunchers()
        (folder / "shared").mkdir()
        self.members = {name: FakeMember(folder / f"{name}.sock") for name in ("vm2", "vm3")}
        self.containers = FakeContainers()
        self.heads: list[FakeHead] = []
        self.free = 1 << 40

    def change(self, ctx: Context) -> Context:
        self.heads.append(FakeHead(self.folder / "shared", self.members, ctx.ledger))
        return replace(
            ctx,
            head=self.heads[-1],
            launchers=self.launchers,
            runtimes={**ctx.runtimes, "docker": self.containers},
            images={"docker": FakeImages()},
            settings=replace(ctx.settings, min_free=1 << 20),
            free_bytes=lambda _folder: self.free,
        )

    @contextmanager
    def up(self) -> Iterator[Any]:
        with self.agent(change=self.change) as agent:
            yield agent

    def ranks(self, line: str, hosts: int = 3, **fields: object) -> TaskKeys:
        argv = ["/bin/sh", "-c", line]
        run = {"run": argv, "mpi": {"np": hosts, "hosts": hosts}}
        return self.submit(run, **fields)

    def everywhere(self, task: TaskKeys) -> list[int]:
        """Wait until all ranks run."""

        def look() -> list[int] | None:
            found = [pid for pid in commands_of(task.id) if is_rank(pid)]
            return found if len(found) == 3 else None

        return self.until(look)

    def relays(self, name: str) -> list[int]:
        path = str(self.members[name].path)
        return [pid for pid, words in running() if path in words]


def is_rank(pid: int) -> bool:
    """Whether it is a rank of SLEEP; what a launcher waits with is a sleep, too."""
    return words_of(pid) == b"sleep\x00300\x00"


def words_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
