"""`simagent agent`: the daemon, and what signals mean to it."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import structlog

from simagent.cli.agentlog import to_stderr
from simagent.cli.failures import CRASHED
from simagent.config import Config
from simagent.wiring import open_agent
from simagent.worker.identity import alone_on
from simagent.worker.loop import Agent
from simagent.worker.orders import Detached, Preempted

log = structlog.get_logger()


def run_agent(config: Config, *, until_empty: bool) -> int:
    """Run the agent until it is told to stop, or until there is nothing to do."""
    to_stderr(config)
    with alone_on(config.state_dir):
        agent = open_agent(config, until_empty=until_empty)
        with _signals(agent):
            try:
                agent.run()
            except Exception as error:
                log.error("the agent cannot go on", error=repr(error), exc_info=error)
                return CRASHED
    return 0


@contextmanager
def _signals(agent: Agent) -> Iterator[None]:
    """Let go on SIGTERM and SIGHUP; on SIGINT finish, then give back, then leave."""
    presses = 0

    def let_go(_number: int, _frame: FrameType | None) -> None:
        agent.interrupt(Detached("the agent was told to stop"))

    def escalate(_number: int, _frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        if presses == 1:
            _tell("no more tasks are taken; Ctrl-C again gives back those that run")
            agent.drain()
        elif presses == 2:
            _tell("giving the tasks back to the queue; Ctrl-C again leaves at once")
            agent.interrupt(Preempted("stopped by the operator"))
        else:
            _tell("leaving: commands run on, the next agent takes them up again")
            agent.interrupt(Detached("stopped by the operator"))
            raise KeyboardInterrupt

    handlers = {signal.SIGTERM: let_go, signal.SIGHUP: let_go, signal.SIGINT: escalate}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(text: str) -> None:
    """Print from a signal handler, past the buffers it may have interrupted."""
    with suppress(OSError):
        os.write(sys.stderr.fileno(), f"simagent: {text}\n".encode())
