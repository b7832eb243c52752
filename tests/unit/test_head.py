"""Who leads a cluster, what its record names, and how many hosts it waits for."""

from collections import Counter
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fakes.clock import FakeClock
from fakes.faults import UNAVAILABLE, Faults, FaultyStore
from fakes.hosts import member
from fakes.store import MemoryStore
from fakes.tasks import attempt
from simagent.cluster.ssh import HeadKey
from simagent.domain import keys
from simagent.domain.cluster import Head as Record
from simagent.domain.cluster import Spanning
from simagent.domain.state import Status
from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.ports.clock import Wake
from simagent.ports.store import StoreUnavailableError
from simagent.worker.head import Head, Leadership, NotHeadError
from simagent.worker.hostlist import Wanted
from simagent.worker.journal import Entry, Place
from simagent.worker.roster import LOOK_EVERY

TIMES = Times()


class Key(HeadKey):
    """A key that needs no ssh-keygen."""

    def __init__(self, name: str) -> None:
        super().__init__(Path("/nowhere"))
        self._name = name

    @property
    def public(self) -> str:
        return f"ssh-ed25519 {self._name}"


class World:
    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.clock = FakeClock()
        self.beat = 0
        self.shows: tuple[str, ...] = ()

    def head(
        self,
        agent: str = "h",
        incarnation: str = "1",
        *,
        faults: Faults | None = None,
        **fields: object,
    ) -> Head:
        own = Place(name="head", address="10.0.0.1", slots=4, agent=agent)
        store = self.inner if faults is None else FaultyStore(self.inner, faults)
        made: dict[str, object] = {"cluster": "c", "own": own, "shared_dir": Path("/shared")}
        it = Leadership(**(made | fields))  # type: ignore[arg-type]
        return Head(it, Ledger(store), self.clock, TIMES, incarnation=incarnation, key=Key(agent))

    def record(self) -> Record:
        return Ledger(self.inner).document(keys.cluster_head("c"), Record())

    @property
    def leader(self) -> str | None:
        lease = self.record().lease
        return lease.agent if lease else None

    def show(self, *hosts: str) -> None:
        """Let hosts show themselves from now on, as often as members do."""
        self.shows = hosts
        self._show()

    def _show(self) -> None:
        self.beat += 1
        for host in self.shows:
            made = member(host, self.beat)
            self.inner.put(keys.cluster_member("c", made.agent), made.model_dump_json().encode())

    def turns(self, seconds: float, *heads: Head) -> None:
        """Let time pass in which these heads, and the members, do what they do."""
        for number in range(int(seconds / LOOK_EVERY)):
            self.clock.advance(LOOK_EVERY)
            if number % 3 == 0:
                self._show()
            for head in heads:
                head.turn()


def entry(task: str = "T", epoch: int = 1, **fields: object) -> Entry:
    made = {
        "project": "p",
        "task": task,
        "group": "g",
        "epoch": epoch,
        "agent": "h",
        "incarnation": "1",
        "boot_id": "b",
        "attempt": attempt(epoch).model_dump(),
        "cluster": "c",
        "hosts": [
            {"name": "head", "address": "10.0.0.1", "slots": 4, "agent": "h"},
            {"name": "a", "address": "10.0.0.97", "slots": 2, "agent": "agent-a"},
        ],
    }
    return Entry.model_validate(made | fields)


@pytest.fixture
def world() -> World:
    return World()


def test_a_head_leads_and_shows_that_it_lives(world: World) -> None:
    head = world.head()
    head.turn()
    first = world.record()
    assert (world.leader, first.public_key, first.attempts) == ("h", "ssh-ed25519 h", ())
    world.turns(TIMES.renew_every, head)
    lease = world.record().lease
    assert lease is not None
    assert first.lease is not None
    assert lease.beat > first.lease.beat


def test_of_two_heads_one_leads_while_it_lives(world: World) -> None:
    first, second = world.head("h1"), world.head("h2")
    first.turn()
    world.turns(10 * TIMES.lease_ttl, second, first)
    assert world.leader == "h1"
    assert second.trouble() == "cluster c is led by h1"
    with pytest.raises(NotHeadError, match="led by h1"):
        second.name(entry())
    assert world.record().attempts == ()


def test_two_heads_that_begin_at_the_same_moment_do_not_both_lead(world: World) -> None:
    faults = Faults(world.clock)
    second = world.head("h2")

    def other_first(call: str, key: str) -> None:
        if call == "put":
            faults.before = lambda _call, _key: None
            second.turn()

    faults.before = other_first
    first = world.head("h1", faults=faults)
    first.turn()
    assert world.leader == "h2"
    assert (first.trouble(), second.trouble()) == ("cluster c is led by h2", None)


def test_a_dead_head_is_taken_over_and_what_it_ran_is_no_longer_named(world: World) -> None:
    first, second = world.head("h1"), world.head("h2")
    first.turn()
    first.name(entry())
    assert len(world.record().attempts) == 1
    world.turns(TIMES.lease_ttl - LOOK_EVERY, second)
    assert world.leader == "h1"
    world.turns(2 * TIMES.renew_every, second)
    record = world.record()
    assert (world.leader, record.public_key, record.attempts) == ("h2", "ssh-ed25519 h2", ())
    with capture_logs() as logs:
        world.turns(TIMES.renew_every, first)
    assert [line["event"] for line in logs] == ["cluster_lost"]
    assert first.trouble() == "cluster c is led by h2"


def test_of_two_that_follow_a_dead_head_one_leads_and_the_other_waits(world: World) -> None:
    faults = Faults(world.clock)
    world.head("h1").turn()
    second, third = world.head("h2", faults=faults), world.head("h3")

    def other_first(call: str, key: str) -> None:
        if call == "put":
            faults.before = lambda _call, _key: None
            third.turn()

    faults.before = other_first
    world.turns(TIMES.lease_ttl + 2 * TIMES.renew_every, second, third)
    assert world.leader == "h3"
    assert (second.trouble(), third.trouble()) == ("cluster c is led by h3", None)


def test_a_head_is_not_dead_because_the_store_was_away(world: World) -> None:
    faults = Faults(world.clock)
    first, second = world.head("h1"), world.head("h2", faults=faults)
    first.turn()
    world.turns(TIMES.lease_ttl - TIMES.renew_every, second)
    faults.plan = lambda _call, _key: UNAVAILABLE
    world.clock.advance(TIMES.renew_every)
    with pytest.raises(StoreUnavailableError):
        second.turn()
    faults.plan = lambda _call, _key: None
    world.turns(TIMES.lease_ttl - TIMES.renew_every, second)
    assert world.leader == "h1"


def test_a_head_that_is_started_again_leads_at_once_and_goes_on_naming(world: World) -> None:
    before = world.head()
    before.turn()
    running, over = entry("T1"), entry("T2", outcome=Status.FAILED)
    before.name(running)
    before.name(over)
    after = world.head(incarnation="2")
    after.adopt([running, over, entry("T3", hosts=()), entry("T4", cluster="other")])
    after.adopt([entry("T5", agent="whose-disk-was-cloned")])
    after.turn()
    record = world.record()
    assert record.lease is not None
    assert record.lease.incarnation == "2"
    assert record.attempts == (Spanning(project="p", task="T1", epoch=1),)


def test_a_head_that_ends_for_good_leaves_the_cluster_to_others(world: World) -> None:
    first, second = world.head("h1"), world.head("h2")
    stop = Wake()
    stop.set()
    first.turn()
    first.run(stop)
    assert world.leader == "h1", "what it runs goes on, and so does it when it is started again"
    first.over = True
    first.run(stop)
    assert world.leader is None
    second.turn()
    first.run(stop)
    assert world.leader == "h2", "what is another's is left alone"


def test_what_ends_is_named_no_longer(world: World) -> None:
    head = world.head()
    head.turn()
    head.name(entry("T1"))
    head.name(entry("T2"))
    head.name(entry("T2"))
    assert [it.task for it in world.record().attempts] == ["T1", "T2"]
    head.release(entry("T1"))
    head.release(entry("T1"))
    head.turn()
    assert [it.task for it in world.record().attempts] == ["T2"]


def test_an_outage_while_naming_leaves_it_to_be_tried_again(world: World) -> None:
    faults = Faults(world.clock)
    head = world.head(faults=faults)
    head.turn()
    faults.plan = lambda call, _key: UNAVAILABLE if call == "put" else None
    with pytest.raises(StoreUnavailableError):
        head.name(entry())
    faults.plan = lambda _call, _key: None
    head.name(entry())
    assert len(world.record().attempts) == 1


def test_it_waits_for_as_many_hosts_as_it_needs_and_says_so(world: World) -> None:
    head = world.head(size=3)
    with capture_logs() as logs:
        head.turn()
        assert head.status == "cluster c waits for 2 of 3 hosts"
        world.show("a")
        world.turns(LOOK_EVERY, head)
        assert head.trouble() == "cluster c waits for 1 of 3 hosts"
        world.show("a", "b")
        world.turns(LOOK_EVERY, head)
    assert (head.trouble(), head.status) == (None, "3 hosts")
    told = [
        (line["event"], line.get("missing")) for line in logs if line["event"].startswith("hosts_")
    ]
    assert told == [("hosts_awaited", 2), ("hosts_awaited", 1), ("hosts_there", None)]
    world.show("a")
    world.turns(120, head)
    assert head.trouble() is None, "it had them once"
    assert [place.name for place in head.places()] == ["head", "a"]


def test_it_says_when_a_host_has_joined(world: World) -> None:
    head = world.head(size=2)
    told: list[int] = []
    head.on_join = lambda: told.append(head.joined)
    head.turn()
    assert told == [], "it waits for another one"
    world.show("a")
    head.turn()
    assert told == [1]
    world.turns(60.0, head)
    assert told == [1]
    world.show("a", "b")
    head.turn()
    assert told == [1, 2]


def test_a_host_that_does_not_come_back_is_waited_for_a_day(world: World) -> None:
    head, other = world.head("h1"), world.head("h2")
    world.turns(LOOK_EVERY, head, other)
    world.show("a", "b")
    world.turns(60, head, other)
    assert head.settled
    world.show("b")
    world.turns(120, head, other)
    assert (head.settled, head.away().split(":")[0]) == (False, " (a")
    for _ in range(86_400 // 25):
        world.clock.advance(25)
        world.show("b")
        other.turn()
        head.turn()
    assert (head.settled, head.away()) == (True, "")


def test_hosts_that_are_named_are_waited_for_and_who_is_missing_is_said(world: World) -> None:
    head = world.head(wanted=(Wanted("b"), Wanted("x")))
    world.show("a", "b")
    head.turn()
    world.turns(30, head)
    assert head.trouble() == (
        "cluster c waits for 1 of 3 hosts (no member is called x, there is a, b)"
    )


def test_two_hosts_of_one_name_are_refused(world: World) -> None:
    head = world.head()
    head.turn()
    for agent in ("x", "y"):
        made = member("a", agent=agent)
        world.inner.put(keys.cluster_member("c", agent), made.model_dump_json().encode())
    world.turns(LOOK_EVERY, head)
    assert head.trouble() == "two hosts of cluster c are named a: rename one of them"


def test_without_a_shared_folder_nothing_runs_on_several_hosts(world: World) -> None:
    head = world.head(trouble="mpi.shared_dir is not set")
    head.turn()
    assert head.trouble() == "mpi.shared_dir is not set"


def test_what_a_head_asks_of_the_store_in_an_hour_is_bounded(world: World) -> None:
    """The figures of docs/operations.md."""
    faults = Faults(world.clock)
    head = world.head(faults=faults)
    head.turn()
    world.show("a")
    faults.calls.clear()
    world.turns(3600, head)
    asked = Counter(call for call, _ in faults.calls)
    assert asked["scan"] + asked["put"] <= 970
    assert asked["get"] <= 490
