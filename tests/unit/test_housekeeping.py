"""The main loop between attempts: what goes wrong with one task or one call ends no agent."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fakes.clock import FakeClock
from fakes.faults import DROP, Faults, FaultyQueue
from fakes.queue import MemoryQueue
from fakes.store import MemoryStore
from fakes.tasks import place
from simagent.domain import bell
from simagent.domain.events import Event
from simagent.domain.keys import TaskKeys
from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.worker.context import Context, Identity
from simagent.worker.journal import Journals
from simagent.worker.loop import Agent


class Idle:
    """An agent that can run nothing, and so only judges; and what it works with."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.queue = MemoryQueue(self.clock)
        self.faults = Faults(self.clock)
        self.good = Ledger(self.store)
        self.agent = Agent(
            Context(
                ledger=Ledger(self.store),
                lease_ledger=Ledger(self.store),
                queue=FaultyQueue(self.queue, self.faults),
                clock=self.clock,
                times=Times(),
                identity=Identity(
                    agent="me", incarnation="i1", boot_id="b", version="1", machine={}
                ),
                journals=Journals(folder),
                runtimes={},
            )
        )

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
    assert len(events) < 10, "it does not look again and again"
