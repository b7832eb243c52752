"""`simagent run`: submit a task, run it here, follow it, and sum it up."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue

from simagent.api import ClientError, Spec, State, Task, UsageError
from simagent.api.report import headline, steps, tail, timeline
from simagent.api.specs import read_spec
from simagent.cli.agentlog import to_file
from simagent.cli.daemon import occupant
from simagent.cli.downloading import fetch
from simagent.cli.following import relay
from simagent.cli.opening import open_client
from simagent.cli.tasks import exit_code, send
from simagent.cli.text import coloured, put, say
from simagent.config import Config
from simagent.domain.keys import TaskKeys
from simagent.ports.clock import SystemClock
from simagent.wiring.agent import open_agent
from simagent.wiring.machine import open_launchers, open_runtimes
from simagent.wiring.window import open_window
from simagent.worker.capacity import lacking, refusal
from simagent.worker.identity import Occupant, StateFolderInUseError, alone_on, holder_of
from simagent.worker.journal import Journals
from simagent.worker.orders import Detached
from simagent.worker.window import Window

_LEAVE_WITHIN = 10.0
_LOOK_EVERY = 0.2


def run_here(
    config: Config, path: Path, *, output_dir: Path | None, task_id: str | None, quiet: bool
) -> int:
    """Run a task to its end; tell the exit code that its outcome makes."""
    spec, base = read_spec(path, config)
    config = config.model_copy(update={"group": spec.group})
    client = open_client(config)
    client.check(spec, base=base, task_id=task_id)
    with ExitStack() as stack:
        agent = take_place(config, spec, stack)
        task = send(client, spec, base=base, task_id=task_id, ring=agent is not None)
        if agent is not None:
            say(f"task {task.id} is left to {agent} that runs here, and followed")
            state = Run(task).elsewhere()
        else:
            log = to_file(config, None if quiet else say)
            if not quiet:
                say(f"task {task.id} runs here; the agent's own log: {log}")
            state = Run(task).here(config)
    _sum_up(task, state, spec, output_dir, quiet=quiet)
    return exit_code(state)


def take_place(config: Config, spec: Spec, stack: ExitStack) -> Occupant | None:
    """Hold the state folder while the stack is open; else give the agent that takes the task.

    Waits while another run has it. Writes nothing before it is known that the task can run. Raises
    `UsageError` where this machine cannot run it, `ClientError` where the agent takes no such task.
    """
    folder, me = config.state_dir, occupant(config, "run")
    waiting = False
    while True:
        other = holder_of(folder)
        if other is None:
            _check(spec, config)
            with suppress(StateFolderInUseError):
                stack.enter_context(alone_on(folder, me))
                return None
        elif other.takes_from(me):
            _refuse(lacking(spec.resources, folder))
            return other
        elif other.role == "agent":
            raise ClientError(
                f"{other} runs on {folder} and takes other tasks (group {other.group}, queue "
                f"{other.queue}, store {other.store}): give this run another --state-dir"
            )
        elif not waiting:
            _check(spec, config)
            say(f"{other} has {folder}: waiting for its end; another --state-dir goes beside it")
            waiting = True
        SystemClock().wait(_LOOK_EVERY)


def _check(spec: Spec, config: Config) -> None:
    """Find what would keep the agent of this process from the task. Raises `UsageError`."""
    allowed = config.process_allowed
    found = refusal(
        spec,
        runtimes=open_runtimes(config),
        preferred=config.runtimes,
        allow_process=allowed,
        launchers=open_launchers(config),
        folder=config.state_dir,
        min_free=config.min_free,
        mpi_slots=config.mpi.slots,
        hosts_known=config.cluster is None,
        mpi_mode=config.mpi.mode,
    )
    _refuse(found.why if found else None)


def _refuse(why: str | None) -> None:
    if why is not None:
        raise UsageError(f"this machine cannot run the task: {why}")


class Run:
    """The run of one task, followed; Ctrl-C kills it.

    ``follow`` shows it, up to its end: by default its log on the terminal.

    What happens reaches the main thread through one queue: the end of each thread, by name and
    with the error it died of, and signals, which SimpleQueue.put may be called for at any moment.
    """

    def __init__(self, task: Task, follow: Callable[[Task], object] = relay) -> None:
        self._task = task
        self._follow = follow
        self._happened: SimpleQueue[tuple[str, BaseException | None]] = SimpleQueue()

    def elsewhere(self) -> State:
        """Follow the task to its end, while another process runs it."""
        with self._signals():
            self._start("agent", lambda: self._task.wait(progress=False))
            self._start("log", lambda: self._follow(self._task))
            self._watch("the agent that runs here ends it in its time")
        return self._task.state

    def here(self, config: Config) -> State:
        """Run the task to its end, in a thread of this process. Raises what the agent died of."""
        with open_window(config, "run") as window:
            return self._here(config, window)

    def _here(self, config: Config, window: Window) -> State:
        keys = TaskKeys(self._task.project, self._task.id)
        agent = open_agent(config, only=keys)
        window.show(agent.snapshot)
        left = [j for j in Journals(config.state_dir).all() if j.entry.keys != keys]
        for journal in left:
            say(f"task {journal.entry.task}, left by an earlier agent, is finished beside this one")
        with self._signals():
            working = self._start("agent", agent.run)
            self._start("log", lambda: self._follow(self._task))
            try:
                self._watch("what runs is ended in its time, the next agent publishes the rest")
            finally:
                agent.interrupt(Detached("the run is left"))
                working.join(_LEAVE_WITHIN)
        for journal in left:
            if journal.folder.exists():
                say(f"task {journal.entry.task} runs on: the next agent or run here takes it up")
        return self._task.state

    def _watch(self, who_goes_on: str) -> None:
        threads = {"agent", "log"}
        interrupts = 0
        while threads:
            what, error = self._happened.get()
            threads.discard(what)
            if what == "interrupt":
                interrupts += 1
                self._interrupted(interrupts, who_goes_on)
            elif what == "log" and error is not None:
                say(f"the log cannot be followed ({error}); the task runs on")
            elif error is not None:
                raise error
            elif what == "agent" and not self._task.state.terminal:
                raise ClientError(f"the agent stopped before the end of task {self._task.id}")

    def _interrupted(self, times: int, who_goes_on: str) -> None:
        if times > 1:
            say(f"leaving: {who_goes_on}")
            raise KeyboardInterrupt
        say(f"task {self._task.id} is being killed, its outputs kept; Ctrl-C again leaves at once")
        self._start("kill", self._task.kill)

    def _start(self, name: str, target: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            error: BaseException | None = None
            try:
                target()
            except BaseException as caught:  # noqa: BLE001 - raised again by the main thread
                error = caught
            self._happened.put((name, error))

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    @contextmanager
    def _signals(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {
            number: signal.signal(number, lambda *_: self._happened.put(("interrupt", None)))
            for number in numbers
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _sum_up(
    task: Task,
    state: State,
    spec: Spec,
    output_dir: Path | None,
    *,
    quiet: bool,
) -> None:
    lines = [*headline(task, state, spec, coloured)]
    if state.attempts:
        lines += [*steps(state.attempts[-1].steps), *timeline(state.attempts[-1])]
    lines += tail(state)
    if state.output is not None and output_dir is not None:
        lines += fetch(task, [], output_dir)
    elif state.output is not None:
        project = "" if spec.project == "default" else f" --project {spec.project}"
        lines.append(f"outputs: simagent download {task.id}{project}")
    if not quiet:
        put()
        for line in lines:
            put(line)
