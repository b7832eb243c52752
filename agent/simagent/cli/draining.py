"""`simagent drain`: let this machine's agent take no more tasks."""

import math
from pathlib import Path

from simagent.api.reading import to_seconds
from simagent.cli.text import put, say
from simagent.client import ClientError, UsageError
from simagent.config import Config
from simagent.ports.clock import SystemClock
from simagent.worker.drain import DrainFile
from simagent.worker.identity import Occupant, holder_of

_LOOK_EVERY = 0.2
_END_WITHIN = 15.0


def drain_agent(config: Config, *, wait: bool, undo: bool) -> None:
    """Ask for the drain, or take it back; print what comes of it."""
    folder = config.state_dir
    drain = DrainFile(folder)
    if undo:
        asked = drain.asked
        drain.withdraw()
        put(
            f"the agent on {folder} takes tasks" if asked else f"no drain was asked for on {folder}"
        )
        return
    agent = _ask(drain, folder)
    if agent is None:
        put(f"no agent runs on {folder}: nothing to drain")
        return
    say(
        f"the agent (pid {agent.pid}) takes no more tasks, and ends when those that it runs have "
        "ended"
    )
    if wait:
        _wait(drain, folder, agent)
        put(f"the agent on {folder} has drained")


def give_tasks_back(config: Config, *, wait: bool, undo: bool, within: str, asked: bool) -> None:
    """Have the tasks given back that the agent runs, which then ends; print what comes of it."""
    if undo or not asked:
        raise UsageError("--within goes with --give-back, and neither goes with --undo")
    seconds = to_seconds("--within", within)
    folder, drain, clock = config.state_dir, DrainFile(config.state_dir), SystemClock()
    agent = _ask(drain, folder, clock.now() + seconds)
    if agent is None:
        put(f"no agent runs on {folder}: nothing to give back")
        return
    say(f"the agent (pid {agent.pid}) gives its tasks back within {seconds:g} s, and ends")
    if wait:
        _wait(drain, folder, agent, within=seconds + _END_WITHIN)
        _check_nothing_left(folder)
        put(f"the agent on {folder} has given its tasks back")


def _ask(drain: DrainFile, folder: Path, until: float | None = None) -> Occupant | None:
    """Ask the agent, where one runs; None where none does. Raises `ClientError`."""
    agent = _agent_on(folder)
    if agent is not None:
        drain.ask(until)
        agent = _agent_on(folder)  # one that has ended meanwhile would leave it to the next one
    if agent is None:
        drain.withdraw()
        _check_nothing_left(folder)
    return agent


def _agent_on(folder: Path) -> Occupant | None:
    occupant = holder_of(folder)
    return occupant if occupant is not None and occupant.role == "agent" else None


def _check_nothing_left(folder: Path) -> None:
    other = holder_of(folder)
    if other is not None:
        raise ClientError(f"{other} has {folder}: it takes no other task, and ends with its own")
    attempts = folder / "attempts"
    left = len(list(attempts.iterdir())) if attempts.exists() else 0
    if left:
        raise ClientError(
            f"no agent runs on {folder}, but the last one left {left} tasks behind, which may run "
            "on: start it again, then drain it"
        )


def _wait(drain: DrainFile, folder: Path, agent: Occupant, *, within: float = math.inf) -> None:
    """Wait until the agent has drained and ended. Raises `ClientError` where it has not."""
    clock = SystemClock()
    deadline: float | None = None
    last = clock.now() + within
    while (running := _agent_on(folder)) is not None:
        if drain.asked:
            agent, deadline = running, None  # perhaps restarted meanwhile: it goes on draining
        elif running != agent:
            return
        else:
            deadline = deadline or clock.now() + _END_WITHIN
            if clock.now() > deadline:
                raise ClientError("the drain was taken back")
        if clock.now() > last:
            raise ClientError(
                f"the agent on {folder} has not ended in time: what it did not give back by now "
                "counts as lost"
            )
        clock.wait(_LOOK_EVERY)
    if drain.asked:
        raise ClientError(
            f"the agent on {folder} stopped before it had drained: what it ran may run on; started "
            "again it goes on draining"
        )
