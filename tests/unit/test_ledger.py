"""The ledger: compare-and-swap over a store that fails in every way it may."""

import json
import re
from collections.abc import Callable
from functools import partial

import pytest

from fakes.clock import FakeClock
from fakes.faults import (
    DROP,
    LOST_ANSWER,
    PRECONDITION,
    UNAVAILABLE,
    Fault,
    Faults,
    FaultyStore,
    Hook,
    Plan,
)
from fakes.store import MemoryStore
from fakes.tasks import HOLDER, attempt, beat, place
from simagent.domain import keys, mutations
from simagent.domain.cluster import Head, HeadLease
from simagent.domain.keys import TaskKeys
from simagent.domain.mutations import SupersededError
from simagent.domain.spec import Spec
from simagent.domain.state import State, Status
from simagent.ledger import CorruptError, Ledger, TooNewError, sha256, spec_bytes
from simagent.ports.store import NotFoundError, StoreUnavailableError

SPEC = Spec.model_validate({"commands": ["true"]})
FIRST = State(status=Status.SUBMITTED, submitted_at=1.0, spec_sha256="0")


class Fixture:
    """A store that works, and a ledger that meets it only through faults."""

    def __init__(self, plan: Plan | None = None, before: Hook | None = None) -> None:
        self.inner = MemoryStore()
        self.faults = Faults(FakeClock())
        self.good = Ledger(self.inner)
        self.ledger = Ledger(FaultyStore(self.inner, self.faults))
        self.task = place(self.good, "running")
        self.faults.plan = plan or self.faults.plan
        self.faults.before = before or self.faults.before

    def state(self) -> State:
        return self.good.state(self.task)

    def puts(self) -> int:
        return sum(call == "put" for call, _ in self.faults.calls)


def only(call: str, *faults: Fault | None) -> Plan:
    """Plan the given faults for the first calls of one kind, and none for all others."""
    left = list(faults)
    return lambda name, _: left.pop(0) if name == call and left else None


def kill(state: State) -> State:
    return mutations.kill(state, by="me", at=9.0, grace=None)


def raise_counter(state: State) -> State:
    """Change the state anew each time: applying it twice would show."""
    return state.with_(counters=state.counters.with_(losses=state.counters.losses + 1))


# --- change -------------------------------------------------------------------------------------


def test_a_change_is_written_and_given() -> None:
    it = Fixture()
    changed = it.ledger.change(it.task, kill)
    assert changed.kill is not None
    assert it.state() == changed
    assert changed.write_id


def test_each_write_has_an_id_of_its_own() -> None:
    it = Fixture()
    ids = {it.ledger.change(it.task, raise_counter).write_id for _ in range(10)}
    assert len(ids) == 10


def test_what_is_there_already_is_not_written_again() -> None:
    it = Fixture()
    it.good.change(it.task, kill)
    before = it.inner.get(it.task.state)
    it.ledger.change(it.task, kill)
    assert it.inner.get(it.task.state) == before
    assert it.puts() == 0


def test_a_change_that_may_not_be_made_writes_nothing() -> None:
    it = Fixture()
    before = it.inner.get(it.task.state)
    with pytest.raises(SupersededError):
        it.ledger.change(it.task, partial(mutations.delete, at=1.0))
    assert it.inner.get(it.task.state) == before


def test_an_applied_write_whose_answer_was_lost_counts_once() -> None:
    it = Fixture(only("put", LOST_ANSWER))
    changed = it.ledger.change(it.task, raise_counter)
    assert changed.counters.losses == 1
    assert it.state() == changed
    assert it.puts() == 1


def test_a_conflict_over_our_own_write_is_no_conflict() -> None:
    """A client that retries below us: the first try is applied, the second gets a 412."""
    it = Fixture()
    store = _RetriesBelow(it.inner)
    changed = Ledger(store).change(it.task, raise_counter)
    assert changed.counters.losses == 1
    assert it.state() == changed
    assert store.puts == 2


class _RetriesBelow(FaultyStore):
    """Does each write twice and gives the second answer."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner, Faults(FakeClock()))
        self.puts = 0

    def put(
        self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        for _ in range(2):
            self.puts += 1
            etag = super().put(key, data, if_match=if_match, if_absent=if_absent)
        return etag


def test_a_conflict_without_a_cause_is_tried_again() -> None:
    it = Fixture(only("put", PRECONDITION, PRECONDITION))
    assert it.ledger.change(it.task, raise_counter).counters.losses == 1
    assert it.state().counters.losses == 1
    assert it.ledger.failures == 0


def test_conflicts_without_end_are_an_outage() -> None:
    it = Fixture(lambda call, _: PRECONDITION if call == "put" else None)
    with pytest.raises(StoreUnavailableError, match="too fast"):
        it.ledger.change(it.task, raise_counter)
    assert it.state().counters.losses == 0


@pytest.mark.parametrize("fault", [DROP, UNAVAILABLE])
def test_a_write_that_was_not_made_is_said_to_be_unknown(fault: Fault) -> None:
    it = Fixture(only("put", fault))
    with pytest.raises(StoreUnavailableError):
        it.ledger.change(it.task, raise_counter)
    assert it.state().counters.losses == 0
    assert it.ledger.change(it.task, raise_counter).counters.losses == 1


@pytest.mark.parametrize("applied", [True, False])
def test_an_outage_after_the_write_leaves_it_unknown_until_called_again(applied: bool) -> None:
    it = Fixture()
    faults = iter([None, LOST_ANSWER if applied else DROP, UNAVAILABLE])
    it.faults.plan = lambda *_: next(faults, None)
    with pytest.raises(StoreUnavailableError):
        it.ledger.change(it.task, kill)
    assert (it.state().kill is not None) == applied
    assert it.ledger.change(it.task, kill).kill == it.state().kill


def test_a_read_that_fails_is_no_change() -> None:
    it = Fixture(only("get", UNAVAILABLE))
    with pytest.raises(StoreUnavailableError):
        it.ledger.change(it.task, kill)
    assert it.puts() == 0


def racing(it: Fixture, *others: Callable[[], object]) -> None:
    """Let another writer act just before each of our first writes."""
    left = list(others)

    def before(call: str, key: str) -> None:
        if call == "put" and left:
            left.pop(0)()

    it.faults.before = before


def test_a_lost_race_is_run_again_on_what_the_other_wrote() -> None:
    it = Fixture()
    racing(it, lambda: it.good.change(it.task, raise_counter), lambda: beat(it.good, it.task))
    changed = it.ledger.change(it.task, raise_counter)
    assert changed.counters.losses == 2
    assert changed.lease is not None
    assert changed.lease.beat == 1
    assert it.puts() == 3


def test_a_lost_race_that_changes_the_precondition_ends_it() -> None:
    it = Fixture()
    judged = it.state().judged
    me = HOLDER.model_copy(update={"agent": "other", "epoch": 2})
    racing(it, lambda: beat(it.good, it.task))
    with pytest.raises(SupersededError):
        it.ledger.change(
            it.task, partial(mutations.claim, judged=judged, me=me, attempt=attempt(2))
        )
    assert it.state().epoch == 1


@pytest.mark.parametrize("fault", [LOST_ANSWER, PRECONDITION])
def test_of_two_claims_one_wins_whatever_is_lost(fault: Fault) -> None:
    it = Fixture(only("put", fault))
    judged = it.state().judged

    def claim(agent: str) -> Callable[[State], State]:
        me = HOLDER.model_copy(update={"agent": agent, "epoch": 2})
        return partial(mutations.claim, judged=judged, me=me, attempt=attempt(2))

    mine = it.ledger.change(it.task, claim("a"))
    with pytest.raises(SupersededError):
        it.good.change(it.task, claim("b"))
    assert it.state() == mine
    assert mine.lease is not None
    assert mine.lease.agent == "a"


def test_a_task_that_vanished_is_not_found() -> None:
    it = Fixture()
    racing(it, lambda: it.inner.delete(it.task.state))
    with pytest.raises(NotFoundError):
        it.ledger.change(it.task, kill)


def test_fields_of_newer_writers_survive_a_rewrite() -> None:
    it = Fixture()
    fields = json.loads(it.inner.get(it.task.state).data)
    fields["future"] = {"a": [1, None]}
    fields["lease"]["zone"] = "eu"
    it.inner.put(it.task.state, json.dumps(fields).encode())
    it.ledger.change(it.task, kill)
    written = json.loads(it.inner.get(it.task.state).data)
    assert written["future"] == {"a": [1, None]}
    assert written["lease"]["zone"] == "eu"


# --- What cannot be read ------------------------------------------------------------------------

UNREADABLE = [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"status": "odd"}', b"{}"]


@pytest.mark.parametrize("data", UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_corrupt_object_names_its_key(data: bytes) -> None:
    it = Fixture()
    for key in (it.task.state, it.task.spec):
        it.inner.put(key, data)
    with pytest.raises(CorruptError, match=it.task.state):
        it.ledger.state(it.task)
    with pytest.raises(CorruptError, match=it.task.state):
        it.ledger.change(it.task, kill)
    with pytest.raises(CorruptError, match=it.task.spec):
        it.ledger.spec(it.task)
    assert it.inner.get(it.task.state).data == data
    assert it.ledger.failures == 0


def test_a_newer_format_is_told_from_corruption() -> None:
    it = Fixture()
    for key in (it.task.state, it.task.spec):
        it.inner.put(key, b'{"format": 2, "all": "different"}')
    with pytest.raises(TooNewError, match="format 2"):
        it.ledger.state(it.task)
    with pytest.raises(TooNewError, match="format 2"):
        it.ledger.change(it.task, kill)
    with pytest.raises(TooNewError, match="format 2"):
        it.ledger.spec(it.task)


# --- Specs and first states ---------------------------------------------------------------------


def fresh(plan: Plan | None = None) -> tuple[Ledger, TaskKeys]:
    it = Fixture(plan)
    return it.ledger, TaskKeys("p", "NEW")


def test_a_spec_is_found_by_its_hash() -> None:
    ledger, task = fresh()
    digest = ledger.create_spec(task, SPEC)
    assert digest == sha256(spec_bytes(SPEC))
    assert ledger.spec(task, sha256_=digest) == SPEC


def test_a_spec_that_was_changed_is_corrupt() -> None:
    ledger, task = fresh()
    digest = ledger.create_spec(task, SPEC)
    ledger.store.put(task.spec, spec_bytes(Spec.model_validate({"commands": ["rm -r x"]})))
    with pytest.raises(CorruptError, match="changed"):
        ledger.spec(task, sha256_=digest)


def test_a_spec_that_is_missing_is_corrupt() -> None:
    ledger, task = fresh()
    with pytest.raises(CorruptError, match="missing"):
        ledger.spec(task)


def test_the_same_spec_may_be_submitted_again() -> None:
    ledger, task = fresh()
    assert ledger.create_spec(task, SPEC) == ledger.create_spec(task, SPEC)


def test_another_spec_under_the_same_id_is_refused() -> None:
    ledger, task = fresh()
    ledger.create_spec(task, SPEC)
    other = Spec.model_validate({"commands": ["false"]})
    with pytest.raises(SupersededError, match="another spec"):
        ledger.create_spec(task, other)
    assert ledger.spec(task) == SPEC


def test_a_first_state_that_is_there_stands() -> None:
    ledger, task = fresh()
    assert ledger.create_state(task, FIRST) == FIRST
    later = FIRST.with_(submitted_at=2.0)
    assert ledger.create_state(task, later) == FIRST


@pytest.mark.parametrize("fault", [LOST_ANSWER, DROP, UNAVAILABLE, PRECONDITION])
def test_creating_may_be_repeated_through_any_fault(fault: Fault) -> None:
    """A conflict where there is nothing (S3 answers 409 for a moment) is worth another try."""
    ledger, task = fresh(only("put", fault, None, fault))
    with pytest.raises(StoreUnavailableError):
        ledger.create_spec(task, SPEC)
    ledger.create_spec(task, SPEC)
    with pytest.raises(StoreUnavailableError):
        ledger.create_state(task, FIRST)
    assert ledger.create_state(task, FIRST) == FIRST
    assert ledger.spec(task) == SPEC


# --- Markers ------------------------------------------------------------------------------------


def names(ledger: Ledger, group: str = "g", after: str = "", limit: int = 100) -> list[str]:
    return [task.id for task in ledger.open_tasks(group, after=after, limit=limit)]


def test_the_walk_over_the_markers() -> None:
    ledger, _ = fresh()
    for id_ in ("C", "A", "B", "D"):
        ledger.open_marker("g", TaskKeys("p", id_))
    ledger.open_marker("g2", TaskKeys("p", "X"))
    assert names(ledger) == ["A", "B", "C", "D"]
    assert names(ledger, limit=2) == ["A", "B"]
    assert names(ledger, after="B.p") == ["C", "D"]
    assert names(ledger, after="BX", limit=1) == ["C"]
    assert list(ledger.open_tasks("g", after="C.p", limit=9)) == [TaskKeys("p", "D")]
    ledger.remove_marker("g", TaskKeys("p", "C"))
    ledger.remove_marker("g", TaskKeys("p", "C"))
    assert names(ledger) == ["A", "B", "D"]
    assert names(ledger, "none") == []


@pytest.mark.parametrize("name", ["B", "B.", "B. p", "-.p", "B!.p", "B.p!"])
def test_a_marker_that_names_no_task_stops_nobody(name: str) -> None:
    ledger, _ = fresh()
    for good in ("A", "C"):
        ledger.open_marker("g", TaskKeys("p", good))
    key = keys.open_prefix("g") + name
    ledger.store.put(key, b"{}")
    assert names(ledger) == ["A", "C"]
    with pytest.raises(CorruptError, match=re.escape(key)):
        ledger.marked("g", name)


def test_two_projects_may_use_the_same_id() -> None:
    ledger, _ = fresh()
    one, other = TaskKeys("p", "T"), TaskKeys("p.q", "T")
    for task in (one, other):
        ledger.open_marker("g", task)
    assert list(ledger.open_tasks("g", after="", limit=9)) == [one, other]
    ledger.remove_marker("g", one)
    assert list(ledger.open_tasks("g", after="", limit=9)) == [other]


def test_a_marker_that_goes_during_the_walk_is_left_out() -> None:
    it = Fixture()
    for id_ in ("A", "B"):
        it.good.open_marker("g", TaskKeys("p", id_))

    def before(call: str, key: str) -> None:
        if call == "head" and key.endswith("/A.p"):
            it.inner.delete(key)

    it.faults.before = before
    assert names(it.ledger) == ["B"]
    assert it.ledger.marked("g", "A.p") is None


# --- Failures -----------------------------------------------------------------------------------


def test_failures_count_what_gave_no_answer_and_nothing_else() -> None:
    it = Fixture()
    ledger, task = it.ledger, it.task
    absent = TaskKeys("p", "NONE")
    with pytest.raises(NotFoundError):
        ledger.state(absent)
    ledger.create_state(task, FIRST)
    assert ledger.failures == 0
    it.faults.plan = lambda *_: UNAVAILABLE
    calls: list[Callable[[], object]] = [
        lambda: ledger.state(task),
        lambda: ledger.spec(task),
        lambda: ledger.change(task, kill),
        lambda: ledger.create_spec(task, SPEC),
        lambda: ledger.create_state(task, FIRST),
        lambda: ledger.open_marker("g", task),
        lambda: ledger.remove_marker("g", task),
        lambda: ledger.markers("g", after="", limit=1),
        lambda: ledger.marked("g", "A.p"),
    ]
    for number, call in enumerate(calls, 1):
        with pytest.raises(StoreUnavailableError):
            call()
        assert ledger.failures == number


def test_a_change_of_what_is_known_reads_again_where_it_is_no_longer_so() -> None:
    """Neither a refusal nor `there already` is concluded from what was known."""
    good = Ledger(MemoryStore())
    task = place(good, "running")
    known = good.change_from(None, task, lambda s: s.with_(message="one"))
    good.change(task, lambda s: s.with_(message="two"))

    def refuse_one(state: State) -> State:
        if state.message == "one":
            raise SupersededError("old")
        return state.with_(stderr_tail="seen")

    assert good.change_from(known, task, refuse_one).state.message == "two"
    same = good.change_from(
        known, task, lambda s: s if s.message == "one" else s.with_(reason=None)
    )
    assert same.state.message == "two"


# --- any document ---------------------------------------------------------------------------------


def led_by(agent: str) -> Callable[[Head], Head]:
    """Lead a cluster that nobody leads."""
    lease = HeadLease(agent=agent, incarnation="i")

    def lead(head: Head) -> Head:
        if head.lease not in (None, lease):
            raise SupersededError("led")
        return head if head.lease == lease else head.with_(lease=lease)

    return lead


def test_a_document_that_is_not_there_is_what_it_is_taken_for() -> None:
    ledger = Ledger(MemoryStore())
    assert ledger.document("k", Head()) == Head()
    assert ledger.change_document("k", Head(), lambda head: head) == Head()
    assert list(ledger.store.scan("")) == []


@pytest.mark.parametrize("fault", [LOST_ANSWER, PRECONDITION])
def test_a_document_is_made_once_whatever_is_lost(fault: Fault) -> None:
    it = Fixture(only("put", fault))
    made = it.ledger.change_document("k", Head(), led_by("me"))
    assert made.lease == HeadLease(agent="me", incarnation="i")
    assert it.good.document("k", Head()) == made


def test_of_two_that_make_a_document_one_wins() -> None:
    it = Fixture()

    def other_first(call: str, key: str) -> None:
        if call == "put":
            it.faults.before = lambda _call, _key: None
            it.good.change_document(key, Head(), led_by("other"))

    it.faults.before = other_first
    with pytest.raises(SupersededError):
        it.ledger.change_document("k", Head(), led_by("me"))
    assert it.good.document("k", Head()).lease == HeadLease(agent="other", incarnation="i")


def test_a_document_in_a_newer_format_is_told_from_corruption() -> None:
    ledger = Ledger(MemoryStore())
    ledger.store.put("k", b'{"format": 2}')
    with pytest.raises(TooNewError, match="k has format 2"):
        ledger.document("k", Head())
    ledger.store.put("k", b"[]")
    with pytest.raises(CorruptError, match="k cannot be read"):
        ledger.change_document("k", Head(), led_by("me"))
