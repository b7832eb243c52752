"""Every change of state.json, over every kind of state it may meet."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simagent.domain import mutations
from simagent.domain.mutations import SupersededError
from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.domain.state import (
    TRANSITIONS,
    Attempt,
    Checkpoint,
    Holder,
    Judged,
    Output,
    State,
    Status,
)

SPEC = Spec.model_validate({"commands": ["true"], "max_attempts": 3, "max_preemptions": 2})
ME = Holder(agent="a", incarnation="i1", epoch=3)
RESTARTED = ME.model_copy(update={"incarnation": "i2"})
NEXT = Holder(agent="b", incarnation="i9", epoch=4)

# Written out instead of imported: what the code calls held and terminal is under test, too.
HELD = ("preparing", "running", "finalizing")
OUTCOMES = ("succeeded", "failed", "killed", "timed_out", "error")
STATUSES = ("submitted", "queued", *HELD, *OUTCOMES, "deleted")
LEGAL = {
    "submitted": {"queued", "killed", "error"},
    "queued": {"preparing", "killed", "error"},
    "preparing": {"preparing", "running", "finalizing", "queued", "killed", "error"},
    "running": {"preparing", "finalizing", "queued", "killed", "error"},
    "finalizing": {"preparing", *OUTCOMES},
    **{outcome: {"deleted"} for outcome in OUTCOMES},
    "deleted": set(),
}

LEASES = {"none": None, "mine": ("a", "i1"), "restarted": ("a", "i2"), "other": ("z", "i1")}
COUNTERS = [(0, 0, 0), (1, 1, 0), (0, 0, 2), (2, 1, 0), (0, 0, 3)]


def attempt(epoch: int, reason: Reason | None = None, **fields: object) -> Attempt:
    who = {"agent": "a", "version": "1", "started": 5.0}
    return Attempt.model_validate({"epoch": epoch, **who, "reason": reason, **fields})


DONE = attempt(3, ended=9.0)
GIVEN_BACK = attempt(3, Reason.AGENT_ERROR, ended=9.0, message="it went wrong")
PREEMPTED = attempt(3, Reason.PREEMPTED, ended=9.0)
OUTPUT = Output(
    epoch=3, archive="k", manifest="m", manifest_sha256="0", files=1, bytes=2, archive_bytes=3
)


def make(
    status: str, lease: str = "mine", *, kill: bool = False, counters: tuple[int, int, int]
) -> State:
    """Make a state as a newer writer may have left it: with unknown fields on each level."""
    held_by = LEASES[lease]
    losses, errors, preemptions = counters
    records = [{"epoch": e, "agent": "a", "version": "1", "started": 1.0, "new": e} for e in (2, 3)]
    fields: dict[str, object] = {
        "status": status,
        "epoch": 3,
        "lease": held_by and {"agent": held_by[0], "incarnation": held_by[1], "beat": 7, "new": 1},
        "kill": {"by": "u", "at": 2.0, "new": 2} if kill else None,
        "outcome": "succeeded" if status == "finalizing" else None,
        "counters": {"losses": losses, "errors": errors, "preemptions": preemptions, "new": 3},
        "attempts": [records[0] | {"ended": 2.0}, records[1]],
        "submitted_at": 1.0,
        "spec_sha256": "0",
        "write_id": "w",
        "new": {"deep": [1]},
    }
    return State.model_validate(fields)


def states() -> Iterator[State]:
    for status, lease, kill, counters in product(STATUSES, LEASES, (False, True), COUNTERS):
        yield make(status, lease, kill=kill, counters=counters)


ALL = list(states())
Change = Callable[[State], State]
SAME, REFUSED = "same", "refused"


def mine(state: State, incarnation: str = "i1") -> bool:
    lease = state.lease
    held = state.status.value in HELD and lease is not None
    return held and lease is not None and (lease.agent, lease.incarnation) == ("a", incarnation)


def used(state: State, *, failures: int = 0, preemptions: int = 0) -> bool:
    counters = state.counters
    return (
        counters.losses + counters.errors + failures >= 3 or counters.preemptions + preemptions > 2
    )


@dataclass(frozen=True)
class Case:
    """A mutation. ``expect`` gives the status it leads to, or `SAME`, or `REFUSED`."""

    name: str
    change: Callable[[State], Change]
    expect: Callable[[State], str]


def expect_queued(state: State) -> str:
    return "queued" if state.status == "submitted" else SAME


def expect_kill(state: State) -> str:
    if state.status in ("submitted", "queued"):
        return "killed"
    if state.status in HELD and state.kill is None:
        return state.status.value
    return SAME


def expect_delete(state: State) -> str:
    if state.status == "deleted":
        return SAME
    return "deleted" if state.status in OUTCOMES else REFUSED


def expect_claim(state: State) -> str:
    free = state.status in ("queued", *HELD) and state.kill is None
    return "preparing" if free else REFUSED


def expect_close(state: State) -> str:
    if state.status in (*OUTCOMES, "deleted"):
        return SAME
    if state.kill is not None:
        return "killed"
    return "error" if used(state, failures=int(state.status in HELD)) else REFUSED


def expect_reject(state: State) -> str:
    return SAME if state.status in (*OUTCOMES, "deleted") else "error"


def expect_ring(state: State) -> str:
    return "queued" if state.status == "queued" else REFUSED


def expect_renew(state: State) -> str:
    return state.status.value if mine(state) else REFUSED


def expect_old_beat(state: State) -> str:
    return SAME if mine(state) else REFUSED


def expect_adopt(state: State) -> str:
    if mine(state, "i2"):
        return SAME
    return state.status.value if mine(state) else REFUSED


def expect_running(state: State) -> str:
    if not mine(state) or state.status == "finalizing":
        return REFUSED
    return "running" if state.status == "preparing" else SAME


def expect_finalizing(state: State) -> str:
    if not mine(state):
        return REFUSED
    return SAME if state.status == "finalizing" else "finalizing"


def expect_finish(state: State) -> str:
    return "succeeded" if mine(state) and state.status == "finalizing" else REFUSED


def expect_requeue(state: State, *, failures: int = 0, preemptions: int = 0) -> str:
    free = mine(state) and state.status != "finalizing" and state.kill is None
    over = used(state, failures=failures, preemptions=preemptions)
    return "queued" if free and not over else REFUSED


def requeue(as_: Attempt, me: Holder = ME) -> Change:
    return partial(mutations.requeue, me=me, spec=SPEC, attempt=as_, checkpoint=None, bell_at=99.0)


def checkpoint(number: int) -> Checkpoint:
    return Checkpoint(
        epoch=3,
        number=number,
        archive=f"{number}.zip",
        sha256="0",
        archive_bytes=1,
        files=1,
        bytes=1,
        at=1.0,
    )


def keep(me: Holder = ME) -> Change:
    return partial(mutations.keep_checkpoint, me=me, checkpoint=checkpoint(7))


def expect_keep(state: State) -> str:
    return str(state.status) if mine(state) and state.status != "finalizing" else REFUSED


def claim(judged: Judged, me: Holder = NEXT) -> Change:
    return partial(mutations.claim, judged=judged, me=me, attempt=attempt(me.epoch))


def finish(me: Holder = ME) -> Change:
    return partial(mutations.finish, me=me, output=OUTPUT, attempt=DONE, at=9.0)


def finalize(me: Holder = ME) -> Change:
    fields = {"me": me, "outcome": Status.FAILED, "attempt": DONE, "stderr_tail": "tail"}
    return partial(mutations.begin_finalizing, **fields)  # type: ignore[arg-type]


def renew(beat: int, me: Holder = ME) -> Change:
    return partial(mutations.renew, me=me, beat=beat, attempt=attempt(me.epoch))


def close(judged: Judged) -> Change:
    return partial(mutations.close, judged=judged, spec=SPEC, at=9.0)


def reject(judged: Judged) -> Change:
    why = Reason.INVALID_SPEC
    return partial(mutations.reject, judged=judged, reason=why, message="unreadable", at=9.0)


def ring(judged: Judged) -> Change:
    return partial(mutations.ring, judged=judged, bell_at=99.0)


HOLDERS = [
    Case("renew", lambda _: renew(8), expect_renew),
    Case("start_running", lambda _: partial(mutations.start_running, me=ME), expect_running),
    Case("begin_finalizing", lambda _: finalize(), expect_finalizing),
    Case("finish", lambda _: finish(), expect_finish),
    Case("keep_checkpoint", lambda _: keep(), expect_keep),
    Case("requeue", lambda _: requeue(GIVEN_BACK), partial(expect_requeue, failures=1)),
    Case("preempted", lambda _: requeue(PREEMPTED), partial(expect_requeue, preemptions=1)),
]
OBSERVERS = [
    Case("claim", lambda s: claim(s.judged), expect_claim),
    Case("close", lambda s: close(s.judged), expect_close),
    Case("reject", lambda s: reject(s.judged), expect_reject),
    Case("ring", lambda s: ring(s.judged), expect_ring),
]
CASES = [
    *HOLDERS,
    *OBSERVERS,
    Case("old beat", lambda _: renew(7), expect_old_beat),
    Case("adopt", lambda _: partial(mutations.adopt, me=RESTARTED, before="i1"), expect_adopt),
    Case("mark_queued", lambda _: partial(mutations.mark_queued, bell_at=99.0), expect_queued),
    Case("kill", lambda _: partial(mutations.kill, by="me", at=9.0, grace=1.0), expect_kill),
    Case("delete", lambda _: partial(mutations.delete, at=9.0), expect_delete),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def apply(change: Change, state: State) -> State | None:
    try:
        return change(state)
    except SupersededError:
        return None


def changes(case: Case) -> Iterator[tuple[State, Change, State]]:
    """Yield each state that the mutation changes, the mutation, and the result."""
    for state in ALL:
        change = case.change(state)
        result = apply(change, state)
        if result is not None and result is not state:
            yield state, change, result


def check_legal(before: State, after: State) -> None:
    """Check what holds for any change whatever."""
    if after.status is not before.status:
        assert after.status in TRANSITIONS[before.status]
    if before.status.value in (*OUTCOMES, "deleted"):
        assert after.status in (before.status, Status.DELETED)
    assert after.epoch >= before.epoch
    assert after.epoch == before.epoch or after.status is Status.PREPARING
    if before.lease and after.lease and before.epoch == after.epoch:
        assert after.lease.beat >= before.lease.beat
    for name in ("losses", "errors", "preemptions"):
        assert getattr(after.counters, name) >= getattr(before.counters, name)
    assert len(after.attempts) <= 20
    epochs = [record.epoch for record in after.attempts]
    assert epochs == sorted(set(epochs))
    if after.status.value in ("queued", *OUTCOMES):
        assert after.lease is None or before.lease == after.lease
    if before.kill is not None:
        assert after.kill == before.kill


def test_the_table_of_transitions() -> None:
    assert {str(k): {str(s) for s in v} for k, v in TRANSITIONS.items()} == LEGAL
    assert {str(status) for status in Status} == set(STATUSES)


@each_case
def test_each_state_leads_where_the_protocol_says(case: Case) -> None:
    for state in ALL:
        result = apply(case.change(state), state)
        expected = case.expect(state)
        if result is None or result is state:
            assert (REFUSED if result is None else SAME) == expected, state
        else:
            assert result.status.value == expected, state
            check_legal(state, result)


@each_case
def test_a_repeated_change_finds_itself_applied(case: Case) -> None:
    for state, change, result in changes(case):
        assert apply(change, result) is result, (state, result)


@each_case
def test_no_change_touches_what_newer_writers_wrote(case: Case) -> None:
    for state, _, result in changes(case):
        assert result.model_extra == state.model_extra == {"new": {"deep": [1]}}
        assert result.counters.model_extra == {"new": 3}
        assert result.attempts[0] == state.attempts[0]
        assert result.write_id == "w"
        if state.kill is not None:
            assert result.kill == state.kill
        if state.lease and result.lease and state.lease.agent == result.lease.agent:
            assert result.lease.model_extra == {"new": 1}
        again = State.model_validate_json(result.model_dump_json())
        assert again == result


@pytest.mark.parametrize("case", HOLDERS, ids=lambda case: case.name)
@pytest.mark.parametrize(
    "me",
    [
        ME.model_copy(update={"epoch": 2}),
        ME.model_copy(update={"epoch": 4}),
        ME.model_copy(update={"agent": "b"}),
        RESTARTED,
    ],
    ids=["earlier epoch", "later epoch", "other agent", "other incarnation"],
)
def test_only_the_holder_writes_as_the_holder(case: Case, me: Holder) -> None:
    for status in HELD:
        state = make(status, counters=(0, 0, 0))
        change = case.change(state)
        assert isinstance(change, partial)
        assert apply(partial(change, me=me), state) is None


@pytest.mark.parametrize("case", OBSERVERS, ids=lambda case: case.name)
@pytest.mark.parametrize("field", ["status", "epoch", "agent", "incarnation", "beat"])
def test_a_judgement_binds_to_all_that_was_judged(case: Case, field: str) -> None:
    other = {"status": Status.SUBMITTED, "epoch": 2, "agent": "?", "incarnation": "?", "beat": 6}
    for state in ALL:
        change = case.change(state)
        assert isinstance(change, partial)
        stale = state.judged.model_copy(update={field: other[field]})
        if not state.terminal and stale != state.judged:
            assert apply(partial(change, judged=stale), state) is None


def test_a_claim_takes_the_next_epoch_only() -> None:
    state = make("queued", "none", counters=(0, 0, 0))
    for epoch in (3, 5):
        assert apply(claim(state.judged, NEXT.model_copy(update={"epoch": epoch})), state) is None


def test_a_claim_of_a_queued_task_counts_no_loss() -> None:
    state = make("queued", "none", counters=(1, 0, 1))
    claimed = claim(state.judged)(state)
    assert claimed.counters == state.counters
    assert claimed.epoch == 4
    assert claimed.lease is not None
    assert (claimed.lease.agent, claimed.lease.incarnation) == ("b", "i9")


def test_a_claim_from_a_dead_holder_counts_the_loss_and_names_it() -> None:
    state = make("finalizing", counters=(1, 0, 1)).with_(reason=Reason.OOM, message="m")
    claimed = claim(state.judged)(state)
    assert claimed.counters.losses == 2
    assert claimed.attempts[-2].reason is Reason.AGENT_LOST
    assert "a" in claimed.attempts[-2].message
    assert (claimed.outcome, claimed.reason, claimed.message) == (None, None, "")


def test_the_first_wish_to_kill_stands() -> None:
    state = make("running", counters=(0, 0, 0))
    once = mutations.kill(state, by="first", at=1.0, grace=3.0)
    assert mutations.kill(once, by="second", at=2.0, grace=0.0) is once
    assert once.kill is not None
    assert (once.kill.by, once.kill.at, once.kill.grace) == ("first", 1.0, 3.0)


@pytest.mark.parametrize("status", ["submitted", "queued"])
def test_a_kill_before_the_start_is_the_outcome(status: str) -> None:
    state = make(status, "none", counters=(0, 0, 0))
    killed = mutations.kill(state, by="me", at=9.0, grace=None)
    assert (killed.outcome, killed.reason, killed.ended_at) == (Status.KILLED, Reason.KILLED, 9.0)


@pytest.mark.parametrize(
    ("status", "counters", "reason", "losses"),
    [
        ("running", (1, 1, 0), Reason.AGENT_LOST, 2),
        ("queued", (2, 1, 0), Reason.AGENT_ERROR, 2),
        ("queued", (0, 0, 3), Reason.MAX_PREEMPTIONS, 0),
    ],
)
def test_a_task_past_its_limits_says_which(
    status: str, counters: tuple[int, int, int], reason: Reason, losses: int
) -> None:
    state = make(status, "mine" if status == "running" else "none", counters=counters)
    closed = close(state.judged)(state)
    assert (closed.status, closed.outcome, closed.reason) == (Status.ERROR, Status.ERROR, reason)
    assert closed.counters.losses == losses
    assert (closed.lease, closed.ended_at) == (None, 9.0)
    assert closed.message


def test_a_kill_outweighs_the_limits() -> None:
    state = make("running", kill=True, counters=(2, 1, 0))
    closed = close(state.judged)(state)
    assert (closed.status, closed.reason) == (Status.KILLED, Reason.KILLED)


@pytest.mark.parametrize(
    ("given", "counters"), [(GIVEN_BACK, (0, 1, 0)), (PREEMPTED, (0, 0, 1))], ids=["error", "gone"]
)
def test_a_requeue_counts_why(given: Attempt, counters: tuple[int, int, int]) -> None:
    queued = requeue(given)(make("running", counters=(0, 0, 0)))
    found = queued.counters
    assert (found.losses, found.errors, found.preemptions) == counters
    assert (queued.lease, queued.bell_at) == (None, 99.0)
    assert queued.attempts[-1] == given


def test_a_requeue_keeps_the_last_checkpoint() -> None:
    old, new = checkpoint(1), checkpoint(2)
    state = make("running", counters=(0, 0, 0)).with_(checkpoint=old)
    assert requeue(GIVEN_BACK)(state).checkpoint == old
    change = requeue(GIVEN_BACK)
    assert isinstance(change, partial)
    assert change(state, checkpoint=new).checkpoint == new


def test_a_checkpoint_only_ever_takes_the_place_of_an_older_one() -> None:
    state = mutations.keep_checkpoint(
        make("running", counters=(0, 0, 0)), me=ME, checkpoint=checkpoint(2)
    )
    assert state.checkpoint == checkpoint(2)
    assert mutations.keep_checkpoint(state, me=NEXT, checkpoint=checkpoint(2)) is state
    for late in (checkpoint(1), checkpoint(2).with_(sha256="2")):
        with pytest.raises(SupersededError, match="newer"):
            mutations.keep_checkpoint(state, me=ME, checkpoint=late)


def test_a_checkpoint_goes_when_nothing_is_to_go_on_any_more() -> None:
    kept = make("finalizing", counters=(0, 0, 0)).with_(checkpoint=checkpoint(1))
    assert finish()(kept.with_(outcome=Status.SUCCEEDED)).checkpoint is None
    ended = finish()(kept.with_(outcome=Status.FAILED))
    assert ended.checkpoint == checkpoint(1)
    assert mutations.delete(ended, at=9.0).checkpoint is None


def test_another_attempt_does_not_take_a_requeue_for_its_own() -> None:
    queued = requeue(GIVEN_BACK)(make("running", counters=(0, 0, 0)))
    later = GIVEN_BACK.with_(message="another story")
    assert apply(requeue(later), queued) is None
    claimed = claim(queued.judged)(queued)
    assert apply(requeue(GIVEN_BACK), claimed) is None


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_what_was_fixed_is_what_is_published(outcome: str) -> None:
    state = make("running", counters=(0, 0, 0))
    fixed = mutations.begin_finalizing(
        state, me=ME, outcome=Status(outcome), attempt=DONE.with_(reason=Reason.OOM, message="m")
    )
    late = mutations.kill(fixed, by="u", at=3.0, grace=None)
    done = mutations.finish(
        late, me=ME, output=OUTPUT, attempt=DONE.with_(reason=Reason.OOM, message="m"), at=9.0
    )
    assert (done.status.value, done.outcome, done.reason) == (outcome, outcome, Reason.OOM)
    assert (done.message, done.output, done.lease, done.ended_at) == ("m", OUTPUT, None, 9.0)


def test_success_needs_its_outputs() -> None:
    state = make("finalizing", counters=(0, 0, 0))
    for reason, status in (
        (Reason.OUTPUT_FAILED, Status.ERROR),
        (Reason.DISK_FULL, Status.FAILED),
    ):
        lost = DONE.with_(reason=reason, message="disk")
        done = mutations.finish(state, me=ME, output=None, attempt=lost, at=9.0)
        assert (done.status, done.outcome, done.reason) == (status, status, reason)


def test_a_claim_forgets_what_the_lost_attempt_said() -> None:
    state = finalize()(make("running", counters=(0, 0, 0)))
    claimed = claim(state.judged)(state)
    assert (claimed.outcome, claimed.reason, claimed.stderr_tail) == (None, None, "")


def test_a_tombstone_holds_no_references() -> None:
    state = finish()(make("finalizing", counters=(0, 0, 0))).with_(stderr_tail="secret")
    gone = mutations.delete(state, at=20.0)
    assert (gone.status, gone.output, gone.stderr_tail) == (Status.DELETED, None, "")
    assert gone.outcome is Status.SUCCEEDED


def test_at_most_twenty_attempts_are_remembered() -> None:
    state = make("queued", "none", counters=(0, 0, 0)).with_(attempts=())
    spec = SPEC.model_copy(update={"max_preemptions": 100})
    for epoch in range(4, 34):
        me = Holder(agent="a", incarnation="i1", epoch=epoch)
        state = claim(state.judged, me)(state)
        given = attempt(epoch, Reason.PREEMPTED, ended=1.0)
        state = mutations.requeue(
            state, me=me, spec=spec, attempt=given, checkpoint=None, bell_at=1.0
        )
    assert [record.epoch for record in state.attempts] == list(range(14, 34))


# --- Random sequences ---------------------------------------------------------------------------

AGENTS = ("a", "b")
MOVES = (
    ["queue", "kill", "delete", "ring", "look a", "look b"]
    + [f"{what} {agent}" for agent in AGENTS for what in ("renew", "run", "fix", "end", "restart")]
    + [f"{what} {agent}" for agent in AGENTS for what in ("requeue", "preempt")]
)


class World:
    """A task and two agents, each of which believes that its last claim is still good."""

    def __init__(self) -> None:
        self.state = State(status=Status.SUBMITTED, submitted_at=0.0, spec_sha256="0")
        self.holders = {a: Holder(agent=a, incarnation=f"{a}0", epoch=0) for a in AGENTS}
        self.starts = 0

    def move(self, move: str) -> State | None:
        what, _, agent = move.partition(" ")
        return apply(self._change(what, agent), self.state)

    def _change(self, what: str, agent: str) -> Change:
        if agent == "":
            by_client: dict[str, Change] = {
                "queue": partial(mutations.mark_queued, bell_at=1.0),
                "kill": partial(mutations.kill, by="u", at=1.0, grace=None),
                "delete": partial(mutations.delete, at=1.0),
                "ring": ring(self.state.judged),
            }
            return by_client[what]
        me = self.holders[agent]
        if what == "look":
            return self._look(agent)
        if what == "restart":
            self.starts += 1
            after = me.model_copy(update={"incarnation": f"{agent}{self.starts}"})
            self.holders[agent] = after
            return partial(mutations.adopt, me=after, before=me.incarnation)
        beat = self.state.lease.beat + 1 if self.state.lease else 1
        ended = attempt(me.epoch, ended=1.0)
        by_holder: dict[str, Change] = {
            "renew": renew(beat, me),
            "run": partial(mutations.start_running, me=me),
            "fix": partial(
                mutations.begin_finalizing, me=me, outcome=Status.SUCCEEDED, attempt=ended
            ),
            "end": partial(mutations.finish, me=me, output=OUTPUT, attempt=ended, at=1.0),
            "requeue": requeue(ended.with_(reason=Reason.SHIM_LOST), me),
            "preempt": requeue(ended.with_(reason=Reason.PREEMPTED), me),
        }
        return by_holder[what]

    def _look(self, agent: str) -> Change:
        """Judge as an agent does that takes the holder, if any, for dead."""
        lost = self.state.status.value in HELD
        if self.state.kill or mutations.limits_used(self.state, SPEC, lost=lost):
            return close(self.state.judged)
        me = self.holders[agent].model_copy(update={"epoch": self.state.epoch + 1})
        if self.state.status.value in ("queued", *HELD):
            self.holders[agent] = me
        return claim(self.state.judged, me)


@given(st.lists(st.sampled_from(MOVES), max_size=60))
def test_whatever_happens_in_whatever_order(moves: list[str]) -> None:
    world = World()
    world.state = mutations.mark_queued(world.state, bell_at=0.0)
    ended: set[Status] = set()
    for move in moves:
        after = world.move(move)
        if after is None:
            continue
        check_legal(world.state, after)
        assert (after.lease is not None) == (after.status.value in HELD)
        world.state = after
        if after.status.value in OUTCOMES:
            ended.add(after.status)
        assert len(ended) <= 1
        assert after.epoch <= SPEC.max_attempts + SPEC.max_preemptions
