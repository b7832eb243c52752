"""When a head tries MPI on its hosts, and when tasks wait for that."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.clock import FakeClock
from fakes.hosts import member
from fakes.steps import until
from fakes.store import MemoryStore
from simagent.cluster.ssh import HeadKey
from simagent.domain import keys
from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.ports.clock import SystemClock, Wake
from simagent.worker.head import Head, Leadership
from simagent.worker.journal import Place
from simagent.worker.roster import LOOK_EVERY
from simagent.worker.trial import Trial


class Key(HeadKey):
    def __init__(self) -> None:
        super().__init__(Path("/nowhere"))

    @property
    def public(self) -> str:
        return "ssh-ed25519 AAAA"


class Headed:
    """A head, and what tries MPI on its hosts as it is told."""

    def __init__(self, size: int | None) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        own = Place(name="head", address="10.0.0.1", slots=2, agent="h")
        it = Leadership(cluster="c", own=own, shared_dir=Path("/shared"), size=size)
        ledger = Ledger(self.store)
        self.head = Head(it, ledger, self.clock, Times(), incarnation="1", key=Key())
        self.beat = 0
        self.works: bool | None = True
        self.tried: list[list[str]] = []
        self.go_on = Wake()
        self.go_on.set()
        self.broken_off = False
        self.trial = Trial(self.head, self.clock, self.probe)
        self.told = Wake()
        self.trial.changed = self.told.set

    def probe(self, hosts: frozenset[str], stop: Wake) -> bool:
        self.tried.append(sorted(words.split()[0] for words in hosts))
        SystemClock().wait(60.0, self.go_on, stop)
        self.broken_off = stop.is_set()
        if self.works is None:
            raise RuntimeError("a bug")
        return self.works

    def show(self, *hosts: str, **fields: object) -> None:
        """Let these hosts show themselves, so that the head sees them as living."""
        for _ in range(2):
            self.beat += 1
            for host in hosts:
                key = keys.cluster_member("c", f"agent-{host}")
                told = member(host, self.beat, **fields)
                self.store.put(key, told.model_dump_json().encode())
            self.head.turn()
            self.clock.advance(LOOK_EVERY)

    def gone(self, host: str) -> None:
        self.store.delete(keys.cluster_member("c", f"agent-{host}"))
        self.head.turn()

    def tries(self) -> None:
        """See that hosts are tried now, and tasks wait for the end of that."""
        self.told.clear()
        assert self.trial.holds(free=True)
        assert SystemClock().wait(60.0, self.told)
        until(lambda: not self.trial.runs, "the end")

    def rests(self) -> None:
        before = len(self.tried)
        assert not self.trial.holds(free=True)
        assert len(self.tried) == before


@pytest.fixture
def headed() -> Iterator[Headed]:
    made = Headed(size=2)
    yield made
    made.go_on.set()


def test_hosts_are_tried_once_they_are_there(headed: Headed) -> None:
    headed.head.turn()
    headed.rests()
    headed.show("a")
    headed.tries()
    assert headed.tried == [["a"]]
    headed.rests()


def test_tasks_wait_until_it_is_over(headed: Headed) -> None:
    headed.show("a")
    assert headed.trial.holds(free=False), "what runs ends first"
    assert headed.tried == []
    headed.go_on.clear()
    assert not headed.trial.first
    assert headed.trial.holds(free=True)
    until(lambda: headed.tried, "a try")
    assert headed.trial.runs
    assert headed.trial.first
    assert headed.trial.holds(free=True)
    headed.go_on.set()
    until(lambda: not headed.trial.runs, "the end")
    headed.rests()


def test_another_host_has_all_tried_again_and_one_less_does_not(headed: Headed) -> None:
    headed.show("a")
    headed.tries()
    headed.show("a", "b")
    headed.tries()
    headed.gone("a")
    headed.rests()
    headed.show("b", mpi=("openmpi 5.0.7",))
    headed.tries()
    assert headed.tried == [["a"], ["a", "b"], ["b"]]


@pytest.mark.parametrize("works", [False, None])
def test_what_fails_keeps_no_tasks_and_is_tried_again_in_an_hour(
    headed: Headed, works: bool | None
) -> None:
    headed.works = works
    headed.show("a")
    headed.tries()
    headed.rests()
    headed.clock.advance(3590.0)
    headed.show("a")
    headed.works = True
    headed.tries()
    headed.rests()


@pytest.mark.parametrize("works", [False, True])
def test_only_the_first_one_counts_as_such(headed: Headed, works: bool) -> None:
    headed.works = works
    headed.show("a")
    headed.tries()
    headed.show("a", "b")
    headed.go_on.clear()
    assert headed.trial.holds(free=True)
    until(lambda: len(headed.tried) == 2, "another try")
    assert not headed.trial.first


def test_where_nobody_said_how_many_there_will_be_others_may_come_first() -> None:
    headed = Headed(size=None)
    headed.head.turn()
    headed.show("a")
    assert headed.trial.holds(free=True)
    headed.show("a", "b")
    assert headed.trial.holds(free=True)
    assert headed.tried == []
    headed.clock.advance(LOOK_EVERY)
    headed.tries()
    assert headed.tried == [["a", "b"]]


def test_an_agent_that_stops_breaks_it_off(headed: Headed) -> None:
    headed.show("a")
    headed.go_on.clear()
    assert headed.trial.holds(free=True)
    until(lambda: headed.tried, "a try")
    headed.trial.stop()
    headed.trial.join()
    assert headed.broken_off
    headed.works = False
    headed.show("b")
    headed.rests()
