"""What another thread takes away between two looks at it is no error of the agent."""

from fakes.clock import FakeClock
from fakes.hosts import member
from fakes.store import MemoryStore
from fakes.vanishing import with_once
from simagent.ledger import Ledger
from simagent.worker.roster import Roster, _Seen
from simagent.worker.steps import StepRunner


class Doors:
    def take_samples(self) -> list[dict[str, object]]:
        return [{"host": "b"}]


def test_the_doors_of_a_step_may_go_while_they_are_asked_for_samples() -> None:
    kind = with_once(StepRunner, _beside=Doors())
    runner = kind.__new__(kind)
    assert runner.samples() == [{"host": "b"}]
    assert runner.samples() == []


def test_the_record_of_a_member_may_go_while_members_are_listed() -> None:
    for look in (Roster.members, Roster.amiss):
        clock = FakeClock()
        roster = Roster(Ledger(MemoryStore()), clock, "c")
        trouble = "" if look is Roster.members else "no room"
        kind = with_once(_Seen, record=member("a", 1, trouble=trouble))
        roster._seen = {"a": kind("etag", clock.now(), proven=True)}
        assert len(look(roster)) <= 1
