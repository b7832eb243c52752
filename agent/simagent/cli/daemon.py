"""`simagent agent`: the daemon, and what signals mean to it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from queue import Empty, SimpleQueue
from typing import Literal, NoReturn, Protocol

import structlog
from pydantic import ValidationError

from simagent.cli.agentlog import to_stderr
from simagent.cli.cluster_check import ClusterCheck
from simagent.cli.failures import CRASHED, TAKEN_AWAY
from simagent.cli.leaving import INTERRUPTED, leave
from simagent.cli.text import say
from simagent.config import Config, ConfigError
from simagent.ports.clock import SystemClock
from simagent.wiring.agent import open_agent
from simagent.wiring.member import open_member
from simagent.wiring.window import open_window
from simagent.worker.identity import Occupant, alone_on
from simagent.worker.notify import Notifier
from simagent.worker.orders import Detached, Interrupted, Preempted

_STOP_WITHIN = 9.0
_LEAVE_WITHIN = 1.0
# Linux may hand a signal to any thread. Python's handler runs in the main one, once that wakes.
_LOOK_EVERY = 1.0

log = structlog.get_logger()


def run_agent(config: Config, *, until_empty: bool) -> NoReturn:
    """Run the agent until it is told to stop, or until there is nothing to do; end the process.

    Nothing is left to be waited for: threads that are at an upload may wait for its answer long.
    """
    if config.role == "member" and until_empty:
        raise ConfigError("role: a member takes no tasks: leave --until-empty away")
    to_stderr(config)
    Notifier().starting()
    with (
        alone_on(config.state_dir, occupant(config, "agent")),
        open_window(config, "agent") as window,
    ):
        if config.role == "member":
            member = open_member(config)
            window.show(member.snapshot)
            code = _Daemon(member).run()
        else:
            probe = partial(ClusterCheck, config) if config.mpi.check else None
            agent = open_agent(config, until_empty=until_empty, probe=probe)
            window.show(agent.snapshot)
            code = _Daemon(agent).run()
    leave(code, at_once=True)


def in_cluster(config: Config, cluster: str | None, role: str | None) -> Config:
    """Set the cluster, and the role in it, where they are given. Raises `ConfigError`."""
    given = {"cluster": cluster, "role": role}
    wanted = {name: value for name, value in given.items() if value is not None}
    try:
        config = Config.model_validate(dict(config) | wanted) if wanted else config
    except ValidationError as error:
        found = error.errors()[0]
        text = found["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{found['loc'][0]}: {text}") from None
    if config.role == "member" and config.cluster is None:
        raise ConfigError("cluster: a member needs the name of its cluster: add --cluster NAME")
    return config


def occupant(config: Config, role: Literal["agent", "run"]) -> Occupant:
    """Tell who holds the state folder, for others to read."""
    return Occupant(role=role, group=config.group, queue=config.queue_url, store=config.store_url)


class _Agent(Protocol):
    """What runs until it is told to stop."""

    def run(self) -> None:
        """Run; raises what it cannot go on after."""

    def drain(self) -> None:
        """Take nothing more; end when what runs has ended."""

    def interrupt(self, order: Interrupted) -> None:
        """End what runs, or leave it, as the order says."""

    @property
    def taken_away(self) -> bool:
        """Whether it ends because the cloud takes the machine."""


class _Daemon:
    """The agent, in a thread of its own: a call that hangs must not keep a signal waiting.

    Signals and the agent's end reach the main thread through one queue, whose put may be called
    at any moment. SIGTERM and SIGHUP let go; SIGINT finishes, then gives back, then leaves.
    """

    def __init__(self, agent: _Agent) -> None:
        self._agent = agent
        self._clock = SystemClock()
        self._happened: SimpleQueue[int | BaseException | None] = SimpleQueue()
        self._deadline: float | None = None
        self._interrupts = 0
        self._code = 0

    def run(self) -> int:
        """Run it to its end; tell the exit code."""
        with self._signals():
            threading.Thread(target=self._work, name="agent", daemon=True).start()
            while True:
                try:
                    what = self._happened.get(timeout=min(_LOOK_EVERY, self._left()))
                except Empty:
                    if self._left() > 0:
                        continue
                    self._abandon()
                if what is None:
                    return TAKEN_AWAY if self._agent.taken_away else self._code
                if isinstance(what, BaseException):
                    log.error("the agent cannot go on", error=repr(what), exc_info=what)
                    Notifier().status(f"the agent could not go on: {what!r}")
                    return CRASHED
                if what == signal.SIGINT:
                    self._escalate()
                else:
                    self._let_go("the agent was told to stop", _STOP_WITHIN)

    def _work(self) -> None:
        try:
            self._agent.run()
        except BaseException as error:  # noqa: BLE001 - the main thread reports it
            self._happened.put(error)
        else:
            self._happened.put(None)

    def _escalate(self) -> None:
        self._interrupts += 1
        if self._interrupts == 1:
            say("no more tasks are taken; Ctrl-C again gives back those that run")
            self._agent.drain()
        elif self._interrupts == 2:
            say("giving the tasks back to the queue; Ctrl-C again leaves at once")
            self._agent.interrupt(Preempted("stopped by the operator"))
        else:
            say("leaving: commands run on, the next agent takes them up again")
            self._code = INTERRUPTED
            self._let_go("stopped by the operator", _LEAVE_WITHIN)

    def _let_go(self, why: str, within: float) -> None:
        deadline = self._clock.now() + within
        self._deadline = min(deadline, self._deadline or deadline)
        self._agent.interrupt(Detached(why))

    def _left(self) -> float:
        return inf if self._deadline is None else max(0.0, self._deadline - self._clock.now())

    def _abandon(self) -> None:
        """End here and now, as a crash would: all that the next agent needs is written down."""
        log.warning("left in the midst of a call that hangs; the next agent goes on")
        os._exit(self._code)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        before = {
            number: signal.signal(number, lambda number, _frame: self._happened.put(number))
            for number in numbers
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
