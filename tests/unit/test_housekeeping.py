"""The main loop between attempts: what goes wrong with one task or one call ends no agent."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fakes.clock import FakeClock
from fakes.faults import DROP, UNAVAILABLE, Faults, FaultyQueue, FaultyStore
from fakes.launchers import Launchers
from fakes.queue import MemoryQueue
from fakes.store import MemoryStore
from fakes.tasks import attempt, place
from simagent.domain import bell
from simagent.domain.events import Event
from simagent.domain.keys import TaskKeys
from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.ports.queue import QueueError
from simagent.ports.store import StoreError
from simagent.worker.context import Context, Identity, Settings
from simagent.worker.journal import Journal, Journals
from simagent.worker.loop import Agent
from simagent.worker.orders import Detached
from simagent.worker.receive import Judge
from simagent.worker.reception import Reception
from simagent.worker.recovery import recover

NEWER = b'{"format": 99}'


class Idle:
    """An agent that can run nothing, and so only judges; and what it works with."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.queue = MemoryQueue(self.clock)
        self.faults = Faults(self.clock)
        self.good = Ledger(self.store)
        ledger = Ledger(FaultyStore(self.store, self.faults))
        self.ctx = Context(
            launchers=Launchers(),
            ledger=ledger,
            lease_ledger=ledger,
            queue=FaultyQueue(self.queue, self.faults),
            clock=self.clock,
            times=Times(),
            identity=Identity(agent="me", incarnation="i1", boot_id="b", version="1", machine={}),
            journals=Journals(folder),
            runtimes={},
            settings=Settings(allow_process=False),
        )
        self.agent = Agent(self.ctx)

    def silent_task(self) -> TaskKeys:
        """Place a task whose holder has vanished, with its bell."""
        task = place(self.good, "running")
        self.queue.send(bell.encode(task))
        return task

    def run_for(self, seconds: float) -> list[str]:
        """Let the agent run, and give the events that it logged."""
        self.clock.after(seconds, self.agent.drain)
        with capture_logs() as logs:
            self.agent.run()
        return [entry["event"] for entry in logs]


@pytest.fixture
def idle(tmp_path: Path) -> Idle:
    return Idle(tmp_path)


def test_a_queue_that_fails_while_a_suspect_is_judged_does_not_end_the_agent(idle: Idle) -> None:
    task = idle.silent_task()
    idle.clock.after(30.0, idle.queue.lose_all)  # the bell: only the suspicion is left
    idle.faults.plan = lambda call, key: DROP if call == "hide" else None
    idle.clock.after(300.0, lambda: idle.queue.send(bell.encode(task)))
    events = idle.run_for(900.0)
    assert Event.QUEUE_LOST in events
    assert Event.TASK_REFUSED in events


def test_a_suspect_whose_state_is_corrupt_does_not_end_the_agent(idle: Idle) -> None:
    task = idle.silent_task()
    idle.clock.after(30.0, lambda: idle.store.put(task.state, b"{"))
    idle.clock.after(30.0, idle.queue.lose_all)
    idle.clock.after(300.0, lambda: idle.queue.send(bell.encode(task)))
    events = idle.run_for(900.0)
    ((body, reason),) = idle.queue.dead_letters()
    assert body == bell.encode(task)
    assert task.state in reason
    assert events.count(Event.TASK_REFUSED) < 5, "it does not look again and again"


@pytest.mark.parametrize("wish", [None, {"by": "somebody", "at": 1.0}])
def test_a_task_that_becomes_newer_while_it_is_judged_is_left_alone(
    idle: Idle, wish: object
) -> None:
    task = place(idle.good, "queued", kill=wish)
    idle.queue.send(bell.encode(task))

    def rewrite(call: str, key: str) -> None:
        if (call, key) == ("get", task.spec):  # the last that is read before something is done
            idle.store.put(task.state, NEWER)

    idle.faults.before = rewrite
    started: list[object] = []
    unsettled: list[Journal] = []
    judge = Judge(idle.ctx.ledger, idle.clock, idle.ctx.times, can_run=lambda spec: None)
    reception = Reception(
        idle.ctx, judge, lambda *claimed: started.append(claimed), unsettled.append
    )
    message = idle.queue.receive(visibility=120.0, wait=0.0, wake=idle.agent.wake)
    assert message is not None
    with suppress(StoreError, QueueError):
        reception.hear(message)
    for journal in unsettled:
        assert recover(idle.ctx, journal) is None
    assert list(idle.ctx.journals.all()) == []
    assert started == []
    assert idle.store.get(task.state).data == NEWER
    assert idle.queue.bodies() == [bell.encode(task)]


def test_the_bell_of_a_task_that_took_its_agents_down_goes_to_the_dead_letters(
    idle: Idle,
) -> None:
    task = place(idle.good, "running", spec={"max_attempts": 1})
    idle.queue.send(bell.encode(task))
    assert Event.TASK_CLOSED in idle.run_for(900.0)
    assert idle.good.state(task).reason == "agent_lost"
    ((body, reason),) = idle.queue.dead_letters()
    assert body == bell.encode(task)
    assert reason.startswith("agent_lost: ")


def test_of_the_bells_of_a_poisonous_task_one_goes_to_the_dead_letters(idle: Idle) -> None:
    task = place(idle.good, "error", outcome="error", reason="agent_lost")
    for _ in range(3):
        idle.queue.send(bell.encode(task))
    idle.run_for(60.0)
    assert [body for body, _ in idle.queue.dead_letters()] == [bell.encode(task)]
    assert not idle.queue.bodies()


def test_who_finds_a_holder_dead_tells_which_attempt_was_lost(idle: Idle) -> None:
    record = attempt(epoch=1)
    task = place(idle.good, "running", spec={"max_attempts": 1}, attempts=[record])
    idle.queue.send(bell.encode(task))
    idle.clock.after(900.0, idle.agent.drain)
    with capture_logs() as logs:
        idle.agent.run()
    (told,) = [entry for entry in logs if entry["event"] == Event.ATTEMPT_LOST]
    assert (told["task"], told["epoch"], told["agent"]) == (task.id, 1, record.agent)


@pytest.mark.parametrize(("reason", "dead"), [("agent_lost", 1), ("invalid_spec", 0)])
def test_a_bell_of_a_task_that_another_has_ended(idle: Idle, reason: str, dead: int) -> None:
    task = place(idle.good, "error", outcome="error", reason=reason)
    idle.queue.send(bell.encode(task))
    idle.run_for(10.0)
    assert len(idle.queue.dead_letters()) == dead
    assert not idle.queue.bodies()


@pytest.mark.parametrize(
    ("engine", "calls"), [("queue", {"receive"}), ("store", {"get", "put", "scan", "delete"})]
)
def test_an_outage_is_told_once_and_waited_out(idle: Idle, engine: str, calls: set[str]) -> None:
    idle.silent_task()
    idle.faults.plan = lambda made, key: UNAVAILABLE if made in calls else None
    idle.clock.after(300.0, lambda: setattr(idle.faults, "plan", lambda made, key: None))
    events = idle.run_for(310.0)
    assert events.count(f"{engine}_lost") == events.count(f"{engine}_back") == 1
    assert len(idle.faults.calls) < 400


def test_an_agent_without_a_free_slot_notices_the_end_of_an_outage_as_soon(idle: Idle) -> None:
    idle.agent = Agent(replace(idle.ctx, times=Times(sweep_every=20.0)), slots=0)
    idle.faults.plan = lambda made, key: UNAVAILABLE
    idle.clock.after(301.0, lambda: setattr(idle.faults, "plan", lambda made, key: None))
    idle.clock.after(307.0, lambda: idle.agent.interrupt(Detached("stop")))
    events = idle.run_for(900.0)
    assert events.count(Event.STORE_LOST) == events.count(Event.STORE_BACK) == 1


def test_an_agent_for_one_task_takes_no_other(idle: Idle) -> None:
    wanted = place(idle.good, "submitted", id="WANTED")
    vanished = place(idle.good, "running", id="VANISHED")
    willing = replace(idle.ctx, settings=replace(idle.ctx.settings, allow_process=True))
    idle.agent = Agent(willing, only=wanted)
    idle.run_for(900.0)  # long enough to sweep, and to see that the holder is dead
    assert idle.good.state(vanished).epoch == 1
