"""The end of refused tasks, whatever agents, stores and the order of things do."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fakes.faults import CUT, DROP, LOST_ANSWER, UNAVAILABLE, Fault
from fakes.groups import TIMES, Group, Member
from fakes.tasks import place
from simagent.domain import keys
from simagent.domain.fleet import Heartbeat, Refused
from simagent.domain.keys import TaskKeys
from simagent.domain.state import Status
from simagent.ports.store import StoreError
from simagent.worker.fleet import Fleet
from simagent.worker.refusals import Refusals, _Noted

TTL = TIMES.agent_ttl
NAMES = ("a", "b", "c")
WHYS = (("no docker", True), ("no mpirun", True), ("disk full", False), (None, True))


@dataclass(frozen=True)
class Op:
    """What an agent does, or what becomes of it; and how the store fails meanwhile."""

    verb: str
    who: int = 0
    how: int = 0
    fault: tuple[str, Fault] | None = None


FAULTS = st.one_of(
    st.none(),
    st.none(),
    st.tuples(
        st.sampled_from(["agents/", "refusals/", "state.json"]),
        st.sampled_from([DROP, LOST_ANSWER, UNAVAILABLE, CUT]),
    ),
)
OPS = st.one_of(
    st.builds(
        Op, st.sampled_from(["hear", "hear", "sweep", "tend"]), st.integers(0, 2), fault=FAULTS
    ),
    st.builds(
        Op, st.sampled_from(["restart", "die", "withdraw"]), st.integers(0, 2), st.integers(0, 3)
    ),
    st.builds(Op, st.just("pass"), how=st.sampled_from([1, 2, 4, 6, 7, 20])),
    st.builds(Op, st.just("sleep"), how=st.sampled_from([1, 7, 20])),
)


def shown(it: Group) -> list[tuple[Member, Heartbeat]]:
    """List the agents whose heartbeats nobody can have seen stand still for long enough."""
    found = []
    for member in it.members:
        blobs = [it.store.get(e.key) for e in it.store.scan(keys.agent(member.name))]
        for heartbeat in [Heartbeat.model_validate_json(blob.data) for blob in blobs]:
            if it.clock.now() - (heartbeat.at - member.wall_shift - it.offset) < TTL:
                found.append((member, heartbeat))
    return found


def check(it: Group, task: TaskKeys, by: Member) -> None:
    """Hold an end against who could have run the task."""
    assert it.state(task).reason == "unsupported"
    assert it.clock.now() - by.began >= TTL, "the fleet had no time to start"
    assert by.why is not None
    assert by.lasting
    for member, heartbeat in shown(it):
        if member is by:
            continue
        said = [it.store.get(e.key).data for e in it.store.scan(task.refusal(member.name))]
        incarnations = [Refused.model_validate_json(data).incarnation for data in said]
        assert str(heartbeat.incarnation) in incarnations, f"{member.name} was not asked"


def do(it: Group, task: TaskKeys, op: Op) -> None:
    """Let something happen, and check what came of it."""
    member = it.members[op.who]
    if op.verb == "pass":
        it.pass_(30.0 * op.how)
    elif op.verb == "sleep":
        it.clock.advance(30.0 * op.how)
    elif op.verb == "restart":
        why, lasting = WHYS[op.how]
        member.alive = True
        member.start(why, lasting=lasting)
    elif op.verb == "withdraw" and member.alive:
        member.heart.withdraw()
    if op.verb in ("die", "withdraw"):
        member.alive = False
    if op.verb not in ("hear", "sweep", "tend") or not member.alive:
        return
    if op.fault is not None:
        part, fault = op.fault
        member.faults.plan = lambda call, key: fault if part in key else None
    with suppress(StoreError):  # of the task's own state: the main loop goes on
        if op.verb == "hear":
            member.hear(task)
        elif op.verb == "sweep":
            member.sweeper.sweep()
        else:
            member.tend()
    member.faults.plan = lambda call, key: None
    if it.state(task).terminal:
        check(it, task, member)


def settle(it: Group, task: TaskKeys) -> None:
    """Let time pass without faults: the task ends, or who can run it takes it."""
    for _ in range(30):
        for member in it.members:
            if member.alive and it.state(task).status is Status.QUEUED:
                do(it, task, Op("hear", it.members.index(member)))
        it.pass_(30.0)
    alive = [member for member in it.members if member.alive]
    status = it.state(task).status
    if any(member.why is None for member in alive):
        assert status in (Status.PREPARING, Status.ERROR)
    elif alive and all(member.lasting for member in alive):
        assert status is Status.ERROR
    elif alive:
        assert status in (Status.QUEUED, Status.ERROR)


def play(ops: list[Op], whys: tuple[int, int, int], begin: list[Op]) -> None:
    """Let it all happen, to three agents."""
    with tempfile.TemporaryDirectory() as folder:
        it = Group(Path(folder))
        for name, why in zip(NAMES, whys, strict=True):
            it.join(name, WHYS[why][0], lasting=WHYS[why][1])
        task = place(it.ledger, "queued")
        for op in (*begin, *ops):
            if it.state(task).status is not Status.QUEUED:
                return
            do(it, task, op)
        settle(it, task)


HEARD = [Op("hear", who) for who in range(3)]
CASES = {
    "ops": st.lists(OPS, max_size=12),
    "whys": st.tuples(*[st.sampled_from([0, 1, 0, 1, 2, 3])] * 3),
    "begin": st.sampled_from([[], HEARD, [*HEARD, Op("pass", how=4)], [*HEARD, Op("pass", how=6)]]),
}


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(**CASES)
def test_only_what_no_agent_can_run_ends_and_that_in_bounded_time(
    ops: list[Op], whys: tuple[int, int, int], begin: list[Op]
) -> None:
    play(ops, whys, begin)


# --- The check is worth something: mistakes that it finds ---------------------------------------


def _at_once(patch: pytest.MonkeyPatch) -> None:
    """An agent ends a task as soon as all others refuse it."""
    note = Refusals._note

    def mutant(self: Refusals, task: TaskKeys, epoch: int, now: float) -> _Noted:
        noted = note(self, task, epoch, now)
        noted.since = now - TTL
        return noted

    patch.setattr(Refusals, "_note", mutant)


def _never_gone(patch: pytest.MonkeyPatch) -> None:
    """Agents that died live for ever."""
    look = Fleet.look

    def mutant(self: Fleet) -> None:
        look(self)
        for seen in self._seen.values():
            seen.gone = False

    patch.setattr(Fleet, "look", mutant)


def _gone_at_second_sight(patch: pytest.MonkeyPatch) -> None:
    """Two looks at the same heartbeat prove a death, however soon the second comes."""
    look = Fleet.look

    def mutant(self: Fleet) -> None:
        before = {key: seen.etag for key, seen in self._seen.items()}
        look(self)
        for key, seen in self._seen.items():
            seen.gone = before.get(key) == seen.etag

    patch.setattr(Fleet, "look", mutant)


def _silence_agrees(patch: pytest.MonkeyPatch) -> None:
    """An agent that has said nothing about a task has nothing against its end."""
    alive = Fleet.alive

    def mutant(self: Fleet) -> Iterator[tuple[str, str]]:
        return iter([each for each in alive(self) if each[0] != "b"])

    patch.setattr(Fleet, "alive", mutant)


@pytest.mark.parametrize(
    "mutant",
    [_at_once, _never_gone, _gone_at_second_sight, _silence_agrees],
    ids=lambda it: it.__name__.strip("_"),
)
def test_a_mistake_is_found(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    search = settings(
        max_examples=1000,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    with pytest.raises(AssertionError):
        search(given(**CASES)(play))()
