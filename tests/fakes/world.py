"""Agents, a client and a sweeper on one store and one queue, with all that can happen to them."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from fakes.audit import Audit, AuditedStore, Execution, Writer
from fakes.clock import FakeClock
from fakes.faults import FaultyQueue, FaultyStore
from fakes.launchers import Launchers
from fakes.model import Actor, Op, Run, ShiftedClock, Trouble, WatchedJournals
from fakes.queue import MemoryQueue
from fakes.store import MemoryStore
from simagent.client import ClientError, Tasks, UsageError
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Spec
from simagent.domain.state import State, Status
from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.ports.clock import Wake
from simagent.ports.queue import QueueError
from simagent.ports.store import StoreError
from simagent.worker.context import Context, Identity, Settings
from simagent.worker.journal import Journal
from simagent.worker.receive import Judge
from simagent.worker.reception import Reception
from simagent.worker.recovery import recover
from simagent.worker.sweep import Sweeper

TASKS = tuple(TaskKeys("default", f"task-{number}") for number in (1, 2, 3))
TIMES = Times()
SPEC = Spec(commands=("true",), max_attempts=3, max_preemptions=2)
DAY = 86_400.0
ROUND = 65.0


class ModelAgent:
    """An agent's process: what its main loop and its threads call, one operation at a time."""

    def __init__(self, world: "World", name: str, boot: float, wall: float) -> None:
        self._world = world
        self.name = name
        self._clock = ShiftedClock(world.clock, boot, wall)
        self._folder = world.folder / name
        self._starts = 0
        self.start()

    def start(self) -> None:
        """Begin a new incarnation, with nothing but the journals."""
        world = self._world
        self._starts += 1
        incarnation = f"{self.name}.{self._starts}"
        self.actor = world.actor()
        store = FaultyStore(
            AuditedStore(world.store, world.audit, Writer(self.name, incarnation)),
            self.actor.faults,
        )
        identity = Identity(
            agent=self.name, incarnation=incarnation, boot_id="boot", version="1", machine={}
        )
        self.ctx = Context(
            launchers=Launchers(),
            ledger=Ledger(store),
            lease_ledger=Ledger(store),
            queue=FaultyQueue(world.queue, self.actor.faults),
            clock=self._clock,
            times=TIMES,
            identity=identity,
            journals=WatchedJournals(self._folder, self.actor),
            runtimes={},
            settings=Settings(),
        )
        self.runs: list[Run] = []
        self._wake = Wake()
        self.unsettled = list(self.ctx.journals.all())
        self.judge = Judge(self.ctx.ledger, self._clock, TIMES, can_run=lambda spec: None)
        self._reception = Reception(self.ctx, self.judge, self._begin, self.unsettled.append)
        self._sweeper = Sweeper(
            self.ctx.ledger, self.ctx.queue, self._clock, TIMES, self.judge, group=SPEC.group
        )

    def do(self, verb: str, how: str, troubles: Mapping[int, Trouble]) -> None:
        """Do one operation, unless the agent is dead or its thread for it is busy."""
        busy = self.actor.busy
        if self.actor.dead or (busy and (verb != "renew" or "renew" in busy)):
            return
        operation: Callable[[], object] = {
            "hear": self._hear,
            "suspect": self._suspect,
            "renew": self._renew,
            "work": lambda: self._work(how),
            "sweep": self._sweep,
        }[verb]
        with self.actor.operation(verb, troubles):
            operation()

    def _hear(self) -> None:
        with suppress(StoreError, QueueError):
            self._settle()
            message = self.ctx.queue.receive(
                visibility=TIMES.bell_visibility, wait=0, wake=self._wake
            )
            if message is not None:
                self._reception.hear(message)

    def _suspect(self) -> None:
        with suppress(StoreError, QueueError):
            self._settle()
            for task, receipt in self.judge.suspects.due():
                self._reception.reconsider(task, receipt)

    def _sweep(self) -> None:
        with suppress(StoreError, QueueError):
            self._settle()
            self._sweeper.sweep()

    def _renew(self) -> None:
        for run in list(self.runs):
            run.bell.keep()
            run.renew()

    def _work(self, how: str) -> None:
        for run in list(self.runs):
            if run.work(how):
                self.runs.remove(run)

    def _settle(self) -> None:
        while self.unsettled:
            journal = self.unsettled[-1]
            entry = journal.entry
            held = self._world.audit.holds(entry.task, entry.agent, entry.epoch)
            try:
                recovered = recover(self.ctx, journal)
            except QueueError as error:
                self._world.audit.violations.append(f"recovery ends the agent: {error!r}")
                raise
            self.unsettled.pop()
            if recovered is not None:
                self._begin(journal, *recovered)
            elif held and self._world.audit.holds(entry.task, entry.agent, entry.epoch):
                self._world.audit.violations.append(f"{self.name} gave up what it held: {entry}")

    def _begin(self, journal: Journal, state: State, spec: Spec) -> None:
        entry = journal.entry
        execution = Execution(entry.epoch, entry.agent, entry.incarnation)
        self._world.audit.executed(entry.task, execution, self.actor.ended_before)
        self.runs.append(Run(self.ctx, journal, state, spec))


class World:
    """Everything, and the one way to make something happen in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.queue = MemoryQueue(self.clock)
        self.under_way: list[tuple[float, Callable[[], object]]] = []
        self.audit = Audit(
            self.clock.now,
            ttl=TIMES.lease_ttl,
            limits=(SPEC.max_attempts, SPEC.max_preemptions),
        )
        self.accepted: set[str] = set()
        self.agents = [
            ModelAgent(self, "left", 0.0, -3600.0),
            ModelAgent(self, "right", 1e6, 0.0),
            ModelAgent(self, "sweeper", -500.0, 3600.0),
        ]

    def actor(self) -> Actor:
        """Make a process."""
        return Actor(self.clock, self.under_way, self.audit.ended, lambda op: self.do(op, {}))

    def do(self, op: Op, troubles: Mapping[int, Trouble]) -> None:
        """Let something happen, with these troubles at the calls that it makes."""
        match op.verb:
            case "wait":
                self.clock.advance(float(op.how))
            case "watch":
                self._watch(float(op.how), op.who)
            case "lose bells":
                self.queue.lose_all()
            case "restart":
                agent = self.agents[op.who]
                if not agent.actor.busy:
                    agent.start()
            case "submit" | "kill" | "delete":
                self._ask(op.verb, TASKS[op.who], troubles)
            case _:
                self.agents[op.who].do(op.verb, op.how, troubles)

    def _watch(self, seconds: float, *agents: int) -> None:
        """Let time pass in which agents read again, as often as they do, what they suspect."""
        for _ in range(3):
            self.clock.advance(seconds / 4)
            for who in agents:
                self.do(Op("suspect", who), {})
        self.clock.advance(seconds / 4)

    def _ask(self, verb: str, task: TaskKeys, troubles: Mapping[int, Trouble]) -> None:
        """Let a client, begun anew, ask for something; it may fail, and say so, or die."""
        actor = self.actor()
        store = FaultyStore(AuditedStore(self.store, self.audit, Writer("client")), actor.faults)
        queue = FaultyQueue(self.queue, actor.faults)
        client = Tasks(Ledger(store), lambda group: queue, self.clock, project=task.project)
        with actor.operation(verb, troubles):
            try:
                if verb == "submit":
                    client.submit(SPEC, base=self.folder, task_id=task.id)
                    self.accepted.add(task.id)
                elif verb == "kill":
                    client.kill(task, by="somebody")
                else:
                    client.delete(task)
            except UsageError as error:
                if Ledger(self.store).state(task).status is not Status.DELETED:
                    self.audit.violations.append(f"the client was refused: {error}")
            except (ClientError, StoreError):
                return

    # --- The end: faults stop, and everything has to come to rest -------------------------------

    def settle(self) -> None:
        """Let time pass without faults until nothing is left to do, or should not be."""
        self._all_restart()
        for _ in range(100):  # a task that waits is rung again once an hour, or more often
            self._round(ROUND)
            if not self._open("queued", "preparing", "running", "finalizing"):
                break
        self._expect(not self._open("queued", "preparing", "running", "finalizing"), "unended")
        if self._open("submitted"):
            self.clock.advance(7 * DAY + 2 * 3600.0)
            self._round(ROUND)
        self._expect(not self._open("submitted"), "never completed and not ended")
        for _ in range(40):
            self._round(ROUND)
            if not self.queue.bodies() and not any(a.runs for a in self.agents):
                break
        if any(self.store.scan("open/")):  # of submissions that died before they wrote a state
            self.clock.advance(DAY)
            self._round(ROUND)
        self._expect(not self.queue.bodies(), "bells left")
        poison = [why.startswith("agent_lost") for _, why in self.queue.dead_letters()]
        self._expect(all(poison), "bells rejected")
        self._expect(not list(self.store.scan("open/")), "markers left")
        for agent in self.agents:
            self._expect(not agent.runs, f"{agent.name} still runs something")
            self._expect(not list(agent.ctx.journals.all()), f"{agent.name} has journals left")
        for task in self.accepted:
            self._expect(task in self.audit.ended(), f"{task} was accepted and has not ended")

    def _all_restart(self) -> None:
        while self.under_way:
            self.clock.advance(1000.0)
            self.actor().faults.arrive()
        for agent in self.agents:
            agent.start()

    def _round(self, seconds: float) -> None:
        for verb in ("renew", "work", "work", "work", "suspect", "hear", "hear", "hear", "sweep"):
            for who, _ in enumerate(self.agents[:2]):
                self.do(Op(verb, who), {})
        self.do(Op("sweep", 2), {})
        self._watch(seconds, 0, 1)

    def _open(self, *statuses: str) -> list[str]:
        histories = self.audit.history.items()
        return [task for task, states in histories if states[-1]["status"] in statuses]

    def _expect(self, condition: bool, message: str) -> None:
        if not condition:
            ends = {task: states[-1] for task, states in self.audit.history.items()}
            self.audit.violations.append(f"{message}: {ends}, {self.queue.bodies()}")
