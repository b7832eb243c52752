"""One machine in miniature: a queue, a store, a client, and agents as threads or processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from simagent.client import Tasks
from simagent.config import Config
from simagent.config_load import load_config
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Spec
from simagent.domain.state import State
from simagent.wiring.agent import open_agent, open_context
from simagent.wiring.life import open_terms
from simagent.wiring.tasks import open_tasks
from simagent.worker.context import Context
from simagent.worker.identity import alone_on
from simagent.worker.loop import Agent
from simagent.worker.trial import Trial

_T = TypeVar("_T")

# A tenth of the real times or less: what is tested is their order, not their length.
TIMES = {
    "lease_ttl": 3.0,
    "renew_every": 0.5,
    "renew_retry": 0.2,
    "bell_visibility": 5.0,
    "bell_extend": 1.0,
    "hide_submitted": 0.5,
    "hide_refused": 0.5,
    "hide_alive": 2.0,
    "sweep_every": 2.0,
    "ring_after": 2.0,
}


class Rig:
    """Everything beneath one folder, but for what other settings ``engines`` has."""

    def __init__(
        self, folder: Path, engines: Mapping[str, str] | None = None, /, **times: float
    ) -> None:
        self.folder = folder
        self._engines = {
            "queue": f"sqlite://{folder}/queue.db",
            "store": f"file://{folder}/store",
            **(engines or {}),
        }
        self._times = TIMES | times
        self.client: Tasks = open_tasks(self.config())

    def config(self, name: str = "state") -> Config:
        return load_config(
            None,
            state_dir=self.folder / name,
            **self._engines,
            times=self._times,
            sample_every=1.0,
        )

    def submit(self, *commands: object, **fields: object) -> TaskKeys:
        spec = Spec.model_validate({"commands": commands, **fields})
        return self.client.submit(spec, base=self.folder)

    @contextmanager
    def agent(
        self,
        name: str = "state",
        *,
        until_empty: bool = False,
        in_fleet: bool = False,
        change: Callable[[Context], Context] | None = None,
        trial: Callable[[Context], Trial] | None = None,
        **fields: object,
    ) -> Iterator[Agent]:
        """Run an agent in a thread; at the end it is drained, or what the test asked for before.

        ``change`` may replace some of what it works with; then only one ``in_fleet`` shows itself,
        and a ``trial`` can be had.
        ``fields`` are of its configuration.
        """
        held = ExitStack()
        config = self.config(name).model_copy(update=fields)
        held.enter_context(alone_on(config.state_dir))
        if change is None:
            agent = open_agent(config, until_empty=until_empty)
        else:
            ctx = change(open_context(config))
            agent = Agent(
                ctx,
                slots=config.slots,
                until_empty=until_empty,
                in_fleet=in_fleet,
                terms=open_terms(config, ctx.clock),
                trial=trial(ctx) if trial is not None else None,
            )
        errors: list[BaseException] = []

        def run() -> None:
            try:
                agent.run()
            except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
                errors.append(error)

        # One that does not stop fails its test alone, and holds up nothing after it.
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield agent
        finally:
            agent.drain()
            thread.join(180)
            held.close()
        assert not thread.is_alive(), "the agent did not stop"
        if errors:
            raise errors[0]

    def process(self, name: str = "state", *options: str) -> subprocess.Popen[bytes]:
        """Run an agent as a process of its own."""
        config = self.config(name)
        environment = os.environ | {
            "SIMAGENT_STATE_DIR": str(config.state_dir),
            "SIMAGENT_TIMES": config.times.model_dump_json(),
            **{f"SIMAGENT_{name.upper()}": value for name, value in self._engines.items()},
        }
        argv = [sys.executable, "-m", "simagent", "agent", *options]
        return subprocess.Popen(argv, env=environment)

    def finish(self, task: TaskKeys, seconds: float = 60.0) -> State:
        """Wait for the task's end."""
        return self.until(lambda: self.ended(task), seconds)

    def ended(self, task: TaskKeys) -> State | None:
        state = self.client.state(task)
        return state if state.terminal else None

    def running(self, task: TaskKeys) -> State | None:
        state = self.client.state(task)
        return state if state.status == "running" else None

    def until(self, look: Callable[[], _T | None], seconds: float = 60.0) -> _T:
        """Look until there is something to see."""
        deadline = time.monotonic() + seconds
        pause = threading.Event()
        while (seen := look()) is None or seen is False:
            assert time.monotonic() < deadline, "waited in vain"
            pause.wait(0.02)
        return seen

    def log(self, task: TaskKeys, stream: str = "stdout") -> bytes:
        pieces = self.client.logs(task)
        return b"".join(piece.data for piece in pieces if piece.stream == stream)


def kill9(process: subprocess.Popen[bytes]) -> None:
    """End a process as a power cut would."""
    process.send_signal(signal.SIGKILL)
    process.wait(60)
