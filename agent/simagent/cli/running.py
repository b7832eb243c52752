"""`simagent run`: submit a task, run it here, follow it, and sum it up."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue

from simagent.cli.agentlog import to_file
from simagent.cli.downloading import fetch
from simagent.cli.following import relay
from simagent.cli.report import headline, steps, tail, timeline
from simagent.cli.specfile import read_spec
from simagent.cli.tasks import exit_code, whoami
from simagent.cli.text import put, say
from simagent.client import Client, ClientError
from simagent.config import Config
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Spec
from simagent.domain.state import State
from simagent.wiring import open_agent, open_client
from simagent.worker.identity import StateFolderInUseError, alone_on
from simagent.worker.orders import Detached

_LEAVE_WITHIN = 10.0


def run_here(
    config: Config, path: Path, *, output_dir: Path | None, task_id: str | None, quiet: bool
) -> int:
    """Run a task to its end; tell the exit code that its outcome makes."""
    spec, base = read_spec(path, config)
    config = config.model_copy(update={"group": spec.group})
    client = open_client(config)
    client.check(spec, base=base, task_id=task_id)
    with ExitStack() as stack:
        try:
            stack.enter_context(alone_on(config.state_dir))
            elsewhere = ""
        except StateFolderInUseError as other:
            elsewhere = f"agent (pid {other.pid or 'unknown'})"
        task = client.submit(spec, base=base, task_id=task_id, ring=bool(elsewhere))
        if elsewhere:
            say(f"task {task.id} is left to the {elsewhere} that runs here, and followed")
            relay(client, task)
            state = client.wait(task)
        else:
            log = to_file(config)
            if not quiet:
                say(f"task {task.id} runs here; the agent's own log: {log}")
            state = _LocalRun(client, task).run(config)
    _sum_up(client, task, state, spec, output_dir, quiet=quiet)
    return exit_code(state)


class _LocalRun:
    """An agent for one task in a thread of this process, and the task's log on the terminal.

    What happens reaches the main thread through one queue: the end of either thread, by name and
    with the error it died of, and signals, which SimpleQueue.put may be called for at any moment.
    """

    def __init__(self, client: Client, task: TaskKeys) -> None:
        self._client = client
        self._task = task
        self._happened: SimpleQueue[tuple[str, BaseException | None]] = SimpleQueue()

    def run(self, config: Config) -> State:
        """Run the task to its end. Raises what the agent died of."""
        agent = open_agent(config, only=self._task)
        with self._signals():
            working = self._start("agent", agent.run)
            self._start("log", lambda: relay(self._client, self._task))
            try:
                self._watch()
            finally:
                agent.interrupt(Detached("the run is left"))
                working.join(_LEAVE_WITHIN)
        return self._client.state(self._task)

    def _watch(self) -> None:
        threads = {"agent", "log"}
        interrupts = 0
        while threads:
            what, error = self._happened.get()
            threads.discard(what)
            if what == "interrupt":
                interrupts += 1
                self._interrupted(interrupts)
            elif what == "log" and error is not None:
                say(f"the log cannot be followed ({error}); the task runs on")
            elif error is not None:
                raise error
            elif what == "agent" and not self._client.state(self._task).terminal:
                raise ClientError(f"the agent stopped before the end of task {self._task.id}")

    def _interrupted(self, times: int) -> None:
        if times > 1:
            say("leaving: what runs is ended in its time, the next agent publishes the rest")
            raise KeyboardInterrupt
        say(f"task {self._task.id} is being killed, its outputs kept; Ctrl-C again leaves at once")
        self._start("kill", lambda: self._client.kill(self._task, by=whoami()))

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
    client: Client,
    task: TaskKeys,
    state: State,
    spec: Spec,
    output_dir: Path | None,
    *,
    quiet: bool,
) -> None:
    lines = [*headline(task, state, spec)]
    if state.attempts:
        lines += [*steps(state.attempts[-1].steps), *timeline(state.attempts[-1])]
    lines += tail(state)
    if state.output is not None and output_dir is not None:
        lines += fetch(client, task, [], output_dir)
    elif state.output is not None:
        project = "" if spec.project == "default" else f" --project {spec.project}"
        lines.append(f"outputs: simagent download {task.id}{project}")
    if not quiet:
        put()
        for line in lines:
            put(line)
