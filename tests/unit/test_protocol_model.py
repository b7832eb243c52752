"""The protocol under every interleaving and fault that hypothesis comes up with.

Two agents, a sweeper and a client work on one store and one queue. Any call of any of them may
fail in every way a network has, be applied late, find that others acted just before it, or be
the last one of its process. After each step, no history of a task may break the promise; at the
end, without faults, every task ends and nothing is left. `HYPOTHESIS_PROFILE=deep` tries more.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from fakes.faults import (
    CUT,
    DROP,
    DUPLICATE,
    LOST_ANSWER,
    PRECONDITION,
    UNAVAILABLE,
    FaultyStore,
    late,
)
from fakes.model import Op, Trouble
from fakes.world import TASKS, World
from simagent.domain import mutations
from simagent.domain.keys import TaskKeys
from simagent.domain.state import HELD, Attempt, Holder, Judged, State, Status
from simagent.worker.receive import Suspects
from simagent.worker.silence import Sign
from simagent.worker.sweep import Sweeper

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"

TTL = 60.0
TIMES = ("1", "16", "30", "61", "66", "121", "200", "901")
HOW = ("go", "go", "go", "fail", "late", "preempted", "lost")

# Drawn whole, from lists: far faster than drawn in parts.
SUBMIT = [Op("submit", task) for task in range(len(TASKS))]
END = [Op(verb, task) for verb in ("kill", "kill", "delete") for task in range(len(TASKS))]
HEAR = [Op("hear", agent) for agent in (0, 1)]
TEND = [Op(verb, agent) for verb in ("suspect", "renew") for agent in (0, 1)]
WORK = [Op("work", agent, how) for how in HOW for agent in (0, 1)]
SWEEP = [Op("sweep", sweeper) for sweeper in (0, 1, 2)]
WAIT = [Op("wait", 0, seconds) for seconds in TIMES]
WATCH = [Op("watch", agent, seconds) for seconds in ("60", "66") for agent in (0, 1)]
RESTART = [Op("restart", agent) for agent in (0, 1)]

# What others can do at their best while a process is paused: take its task, and finish it.
PAUSED = tuple(
    Op(verb, agent, how)
    for agent in (0, 1)
    for verb, how in (
        ("hear", ""),
        ("suspect", ""),
        ("watch", "66"),
        ("suspect", ""),
        ("hear", ""),
        ("work", "go"),
    )
)
MEANWHILE = [
    *((op,) for op in (*SUBMIT, *END, *HEAR, *TEND, *WORK, *SWEEP, *WAIT, *WATCH, *RESTART)),
    *((wait, op) for wait in (*WAIT, *WATCH) for op in (*HEAR, *TEND, *SWEEP)),
]
# The rivals of most races, so that they are met often.
RENEWED = (Op("renew", 0), Op("renew", 1))
KILLED = tuple(Op("kill", task) for task in range(len(TASKS)))
RIVALS = [RENEWED, KILLED, PAUSED]
RACES = [*HEAR, *TEND, Op("work", 0, "go"), Op("work", 0, "lost"), *SWEEP]
FAULTS = [
    DROP,
    LOST_ANSWER,
    UNAVAILABLE,
    PRECONDITION,
    DUPLICATE,
    CUT,
    late(0.1),
    late(20.0),
    late(100.0),
]
troubles = st.dictionaries(
    st.integers(0, 9),
    st.one_of(
        st.sampled_from([Trouble(fault=fault) for fault in FAULTS]),
        st.sampled_from([Trouble(meanwhile=ops) for ops in MEANWHILE]),
        st.sampled_from([Trouble(meanwhile=ops) for ops in RIVALS]),
        st.sampled_from([Trouble(meanwhile=ops, fault=f) for ops in RIVALS for f in FAULTS]),
        st.sampled_from([Trouble(crash=True), Trouble(crash=True), Trouble(disk_full=True)]),
    ),
    max_size=3,
)

SUBMITTED = (Op("submit", 0),)
HELD_BY_LEFT = (*SUBMITTED, Op("hear", 0))
RUNNING = (*HELD_BY_LEFT, Op("work", 0, "go"))
TO_BE_KILLED = (*RUNNING, Op("kill", 0))
WATCHED = (*RUNNING, Op("wait", 0, "121"), Op("hear", 1), Op("watch", 1, "66"))
BEGINNINGS = ((), SUBMITTED, HELD_BY_LEFT, RUNNING, TO_BE_KILLED, WATCHED)


class Protocol(RuleBasedStateMachine):
    """Anything happens at any time."""

    beginnings: tuple[tuple[Op, ...], ...] = BEGINNINGS

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        root = memory if os.access(memory, os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="protocol-", dir=root))
        self.world = World(self.folder)

    @initialize(number=st.integers(0, len(BEGINNINGS) - 1))
    def begin(self, number: int) -> None:
        for op in self.beginnings[number % len(self.beginnings)]:
            self.world.do(op, {})

    @rule(op=st.sampled_from(SUBMIT), troubles=troubles)
    def submit(self, op: Op, troubles: dict[int, Trouble]) -> None:
        self.world.do(op, troubles)

    @rule(op=st.sampled_from(END), troubles=troubles)
    def end(self, op: Op, troubles: dict[int, Trouble]) -> None:
        self.world.do(op, troubles)

    @rule(op=st.sampled_from(HEAR), troubles=troubles)
    def hear(self, op: Op, troubles: dict[int, Trouble]) -> None:
        self.world.do(op, troubles)

    @rule(op=st.sampled_from(TEND), troubles=troubles)
    def tend(self, op: Op, troubles: dict[int, Trouble]) -> None:
        self.world.do(op, troubles)

    @rule(op=st.sampled_from(WORK), troubles=troubles)
    def work(self, op: Op, troubles: dict[int, Trouble]) -> None:
        self.world.do(op, troubles)

    @rule(op=st.sampled_from(SWEEP), troubles=troubles)
    def sweep(self, op: Op, troubles: dict[int, Trouble]) -> None:
        self.world.do(op, troubles)

    @rule(op=st.sampled_from(RACES), call=st.integers(0, 6), rivals=st.sampled_from(RIVALS))
    def race(self, op: Op, call: int, rivals: tuple[Op, ...]) -> None:
        self.world.do(op, {call: Trouble(meanwhile=rivals)})

    @rule(op=st.sampled_from(WATCH), call=st.integers(0, 6), rivals=st.sampled_from(RIVALS))
    def take_over(self, op: Op, call: int, rivals: tuple[Op, ...]) -> None:
        self.world.do(Op("hear", op.who), {})
        self.world.do(op, {})
        self.world.do(Op("suspect", op.who), {call: Trouble(meanwhile=rivals)})

    @rule(op=st.sampled_from([*WAIT, *WATCH]))
    def wait(self, op: Op) -> None:
        self.world.do(op, {})

    @rule(op=st.sampled_from(RESTART))
    def restart(self, op: Op) -> None:
        self.world.do(op, {})

    @rule()
    def lose_bells(self) -> None:
        self.world.do(Op("lose bells"), {})

    @invariant()
    def the_promise_is_kept(self) -> None:
        assert not self.world.audit.violations, "\n".join(self.world.audit.violations)

    def teardown(self) -> None:
        try:
            if not self.world.audit.violations:
                self.world.settle()
                self.the_promise_is_kept()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


QUICK = settings(
    max_examples=250,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FIRST_FAILURE = settings(
    QUICK, max_examples=2_000, phases=[Phase.generate], report_multiple_bugs=False
)
LONG = settings(QUICK, max_examples=5_000, stateful_step_count=60, derandomize=False)


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@pytest.mark.timeout(0 if DEEP else 600)
def test_the_promise_is_kept_whatever_happens() -> None:
    run_state_machine_as_test(Protocol, settings=LONG if DEEP else QUICK)


# --- The model can fail: each of these mistakes is found ----------------------------------------


def _claim_unjudged(patch: pytest.MonkeyPatch) -> None:
    """A claim takes the task as it is by now, not as it was judged."""
    claim = mutations.claim

    def mutant(state: State, *, judged: Judged, me: Holder, attempt: Attempt) -> State:
        if state.epoch + 1 == me.epoch:
            judged = state.judged
        return claim(state, judged=judged, me=me, attempt=attempt)

    patch.setattr(mutations, "claim", mutant)


def _claim_uncounted(patch: pytest.MonkeyPatch) -> None:
    """A loss is not counted."""
    claim = mutations.claim

    def mutant(state: State, **rest: Any) -> State:
        claimed = claim(state, **rest)
        return claimed.with_(counters=state.counters)

    patch.setattr(mutations, "claim", mutant)


def _anybody_holds(patch: pytest.MonkeyPatch) -> None:
    """A holder does not check that it still is the one."""

    def mutant(state: State, me: Holder) -> bool:
        return state.status in HELD and state.lease is not None

    patch.setattr(mutations, "is_mine", mutant)


def _any_incarnation_holds(patch: pytest.MonkeyPatch) -> None:
    """An agent goes by its name alone, whatever the epoch."""

    def mutant(state: State, me: Holder) -> bool:
        return state.status in HELD and state.lease is not None and state.lease.agent == me.agent

    patch.setattr(mutations, "is_mine", mutant)


def _requeue_of_the_killed(patch: pytest.MonkeyPatch) -> None:
    """A task is given back although it is to be killed."""
    requeue = mutations.requeue

    def mutant(state: State, **rest: Any) -> State:
        given = requeue(state.with_(kill=None), **rest)
        return given if given.status != Status.QUEUED else given.with_(kill=state.kill)

    patch.setattr(mutations, "requeue", mutant)


def _dead_at_second_sight(patch: pytest.MonkeyPatch) -> None:
    """A holder counts as dead that did not change between two looks, however soon."""
    observe = Suspects.observe

    def mutant(
        self: Suspects, task: TaskKeys, judged: Judged, receipt: str | None, asked: float
    ) -> Sign:
        return observe(self, task, judged, receipt, asked + TTL)

    patch.setattr(Suspects, "observe", mutant)


def _blind_writes(patch: pytest.MonkeyPatch) -> None:
    """A state is written whatever has become of it since it was read."""
    put = FaultyStore.put

    def mutant(self: FaultyStore, key: str, data: bytes, **conditions: Any) -> str:
        if key.endswith("/state.json") and conditions.get("if_match"):
            conditions = {}
        return put(self, key, data, **conditions)

    patch.setattr(FaultyStore, "put", mutant)


def _no_second_ring(patch: pytest.MonkeyPatch) -> None:
    """The sweep leaves queued tasks to their bells."""
    patch.setattr(Sweeper, "_ring_if_old", lambda *_: None)


def _markers_stay(patch: pytest.MonkeyPatch) -> None:
    """Nobody removes the markers of ended tasks but the attempts themselves."""
    patch.setattr(Sweeper, "_tidy", lambda *_: None)


def _intents_dropped(patch: pytest.MonkeyPatch) -> None:
    """A restart takes every claim of an earlier incarnation for not applied."""

    def mutant(state: State, *, me: Holder, before: str) -> State:
        raise mutations.SupersededError("it is another's")

    patch.setattr(mutations, "adopt", mutant)


class Watched(Protocol):
    """The same, from where another agent is about to claim."""

    beginnings = (WATCHED,)


class ToBeKilled(Protocol):
    """The same, from where a running task is to be killed."""

    beginnings = (TO_BE_KILLED,)


MUTANTS = [
    (_claim_unjudged, Watched),
    (_claim_uncounted, Protocol),
    (_anybody_holds, Protocol),
    (_any_incarnation_holds, Protocol),
    (_requeue_of_the_killed, ToBeKilled),
    (_dead_at_second_sight, Protocol),
    (_blind_writes, Protocol),
    (_no_second_ring, Protocol),
    (_markers_stay, Protocol),
    (_intents_dropped, Protocol),
]


@pytest.mark.parametrize(("mutant", "machine"), MUTANTS, ids=lambda it: it.__name__.strip("_"))
def test_a_mistake_in_the_protocol_is_found(
    mutant: Callable[[pytest.MonkeyPatch], None],
    machine: type[Protocol],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=FIRST_FAILURE)
