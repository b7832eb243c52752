"""Which hosts of a cluster are there, by what its members show."""

import pytest
from structlog.testing import capture_logs

from fakes.clock import FakeClock
from fakes.hosts import member
from fakes.store import MemoryStore
from simagent.domain import keys
from simagent.domain.cluster import SHOWS_EVERY
from simagent.ledger import Ledger
from simagent.worker.hostlist import HostlistError, Wanted, arrange, read_hostlist
from simagent.worker.journal import Place
from simagent.worker.roster import GONE_AFTER, LOOK_EVERY, Roster

OWN = Place(name="head", address="10.0.0.1", slots=4, agent="h")


class Cluster:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.clock = FakeClock()
        self.roster = Roster(Ledger(self.store), self.clock, "c")
        self.beat = 0

    def show(self, *hosts: str, **fields: object) -> None:
        self.beat += 1
        for host in hosts:
            made = member(host, self.beat, **fields)
            self.store.put(keys.cluster_member("c", made.agent), made.model_dump_json().encode())

    def after(self, seconds: float) -> list[str]:
        """Look as the head does for some seconds; tell who is there then."""
        for _ in range(int(seconds / LOOK_EVERY)):
            self.clock.advance(LOOK_EVERY)
            self.roster.look()
        return [member.host for member in self.roster.members()]


def test_a_record_of_earlier_is_no_sign_of_life() -> None:
    it = Cluster()
    it.show("a")
    it.roster.look()
    assert it.after(30) == []
    it.show("a")
    assert it.after(LOOK_EVERY) == ["a"]


def test_who_comes_is_there_at_once_and_who_leaves_is_not() -> None:
    it = Cluster()
    it.roster.look()
    it.show("b", "a")
    with capture_logs() as logs:
        assert it.after(LOOK_EVERY) == ["a", "b"]
        it.store.delete(keys.cluster_member("c", "agent-a"))
        assert it.after(LOOK_EVERY) == ["b"]
    told = [(str(line["event"]), line["host"]) for line in logs]
    assert told == [("host_joined", "a"), ("host_joined", "b"), ("host_gone", "a")]


def test_who_is_silent_is_gone_until_it_shows_itself_again() -> None:
    it = Cluster()
    it.roster.look()
    it.show("a")
    assert it.after(GONE_AFTER - SHOWS_EVERY) == ["a"]
    assert it.after(SHOWS_EVERY + LOOK_EVERY) == []
    assert "silent for" in it.roster.amiss()["a"]
    it.show("a")
    assert it.after(LOOK_EVERY) == ["a"]


def test_an_outage_of_the_store_is_no_silence() -> None:
    it = Cluster()
    it.roster.look()
    it.show("a")
    it.after(LOOK_EVERY)
    it.clock.advance(10 * GONE_AFTER)
    it.roster.look()
    assert it.after(LOOK_EVERY) == ["a"]
    assert it.after(GONE_AFTER) == []


def test_a_member_in_trouble_says_so() -> None:
    it = Cluster()
    it.roster.look()
    it.show("a", trouble="no sshd: install openssh-server")
    assert it.after(LOOK_EVERY) == []
    assert it.roster.amiss() == {"a": "no sshd: install openssh-server"}


def test_a_host_that_could_not_be_entered_is_left_alone_for_a_while() -> None:
    it = Cluster()
    it.roster.look()
    it.show("a", "b")
    it.after(LOOK_EVERY)
    it.roster.doubt("agent-a", "ssh refuses")
    assert it.after(20) == ["b"]
    assert it.roster.amiss() == {"a": "ssh refuses"}
    it.show("a", "b")
    assert it.after(15) == ["a", "b"]


def test_a_host_that_has_begun_anew_is_trusted_again() -> None:
    it = Cluster()
    it.roster.look()
    it.show("a", "b")
    it.after(LOOK_EVERY)
    it.roster.doubt("agent-a", "it lost its power")
    assert it.after(LOOK_EVERY) == ["b"]
    it.show("a", incarnation="another")
    assert it.after(LOOK_EVERY) == ["a", "b"]


def test_who_is_silent_for_a_day_is_forgotten_and_remembered_when_it_comes_back() -> None:
    it = Cluster()
    it.show("a", "b")
    it.roster.look()
    it.store.put(keys.cluster_member("c", "x"), b"no member")
    for hour in range(25):
        it.show("b")
        it.clock.advance(3600 if hour else LOOK_EVERY)
        it.roster.look()
        it.roster.forget()
        assert ("a" in it.roster.amiss()) is (hour < 24), hour
    assert [entry.key for entry in it.store.scan(keys.cluster_members("c"))] == [
        keys.cluster_member("c", "agent-b")
    ]
    it.show("a", "b")
    assert it.after(LOOK_EVERY) == ["a", "b"]


def test_a_record_that_cannot_be_read_is_of_no_host() -> None:
    it = Cluster()
    it.roster.look()
    it.store.put(keys.cluster_member("c", "x"), b'{"agent": 1}')
    it.show("a")
    assert it.after(LOOK_EVERY) == ["a"]


# --- the operator's hosts -----------------------------------------------------------------------


def names(*wanted: Wanted) -> list[tuple[str, int]]:
    there = [member("a"), member("b")]
    return [(place.name, place.slots) for place in arrange(OWN, there, wanted)]


def test_all_hosts_are_used_unless_some_are_named() -> None:
    assert names() == [("head", 4), ("a", 2), ("b", 2)]
    assert names(Wanted("b"), Wanted("a")) == [("head", 4), ("b", 2), ("a", 2)]
    assert names(Wanted("10.0.0.98", 7), Wanted("head", 1)) == [("head", 1), ("b", 7)]
    assert names(Wanted("b"), Wanted("unknown")) == [("head", 4), ("b", 2)]


def test_a_file_of_hosts() -> None:
    text = "# ours\nhead slots=2\n\n  b  # the fast one\na slots=16\n"
    assert read_hostlist(text) == (Wanted("head", 2), Wanted("b"), Wanted("a", 16))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a\nb\na slots=2", "line 3: two hosts are named a: name each once"),
        ("a slots=0", "line 1: 'slots=0' is not understood: use slots=N"),
        ("a max_slots=2", "line 1: 'max_slots=2' is not understood"),
    ],
)
def test_what_is_wrong_in_a_file_of_hosts(text: str, why: str) -> None:
    with pytest.raises(HostlistError, match=why):
        read_hostlist(text)
