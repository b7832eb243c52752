"""Tasks that this agent can never run: it says so, and ends what no agent of the group can run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import structlog
from pydantic import ValidationError

from simagent.domain import mutations
from simagent.domain.fleet import Refused
from simagent.domain.keys import TaskKeys
from simagent.domain.state import State
from simagent.ports.store import NotFoundError, StoreError
from simagent.worker.context import Context
from simagent.worker.fleet import Fleet, look_quietly
from simagent.worker.receive import Hide

_WATCH_FOR = 20
_MOST_NOTED = 10_000
_MOST_NAMES = 5
_MOST_REASONS = 20

log = structlog.get_logger()


@dataclass(slots=True)
class _Noted:
    """Since when, on this agent's clock, an epoch of a task is refused, and what was written."""

    epoch: int
    since: float
    written: str = ""


class Refusals:
    """What an agent does about the tasks that it refuses for good.

    It writes down why, beside the task. A task that it has refused for `agent_ttl`, so long that
    whoever lives has been seen to, and that every other agent of the group refuses too, in the
    incarnation in which it lives, is to be ended. Store failures only put that off.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._fleet = Fleet(
            ctx.ledger,
            ctx.clock,
            ctx.times,
            group=ctx.settings.group,
            agent=ctx.identity.agent,
        )
        self._noted: dict[TaskKeys, _Noted] = {}
        self._watch_until = 0.0

    def watch(self) -> None:
        """Look at the fleet where that is due, while there are tasks that this agent refuses."""
        if self._noted and self._ctx.clock.now() < self._watch_until and self._fleet.due:
            look_quietly(self._fleet)

    def end(self, task: TaskKeys, verdict: Hide) -> Callable[[State], State] | None:
        """Note a refusal; give the task's end where no agent of the group can run it."""
        state = verdict.never
        if state is None:
            return None
        now = self._ctx.clock.now()
        self._watch_until = now + _WATCH_FOR * self._ctx.times.agent_ttl
        noted = self._note(task, state.epoch, now)
        try:
            self._write(task, noted, verdict.why)
            if now - noted.since < self._ctx.times.agent_ttl:
                return None
            whys = self._all_refuse(task)
        except StoreError as error:
            log.debug("refusal not settled", task=task.id, error=str(error))
            return None
        if whys is None:
            return None
        whys[self._ctx.identity.agent] = verdict.why
        message = _message(self._ctx.settings.group, whys)
        at = self._ctx.clock.wall()
        return partial(mutations.give_up, judged=state.judged, message=message, at=at)

    def _note(self, task: TaskKeys, epoch: int, now: float) -> _Noted:
        noted = self._noted.get(task)
        if noted is None or noted.epoch != epoch:
            written = noted.written if noted else ""
            noted = self._noted[task] = _Noted(epoch, now, written)
            while len(self._noted) > _MOST_NOTED:
                del self._noted[next(iter(self._noted))]
        return noted

    def _write(self, task: TaskKeys, noted: _Noted, why: str) -> None:
        if noted.written == why:
            return
        identity = self._ctx.identity
        refused = Refused(
            agent=identity.agent,
            incarnation=identity.incarnation,
            why=why,
            at=self._ctx.clock.wall(),
        )
        data = refused.model_dump_json(indent=1).encode()
        self._ctx.ledger.store.put(task.refusal(identity.agent), data)
        noted.written = why

    def _all_refuse(self, task: TaskKeys) -> dict[str, str] | None:
        """Give why the other agents of the group refuse a task; None where one does not (yet)."""
        said = {entry.key for entry in self._ctx.ledger.store.scan(task.refusals)}
        if self._silent(task, said):  # as far as was seen before: costs nothing
            return None
        self._fleet.look()
        if self._silent(task, said):
            return None
        self._fleet.read()
        whys: dict[str, str] = {}
        for agent, incarnation in self._fleet.alive():
            refused = self._read(task, agent) if task.refusal(agent) in said else None
            if refused is None or refused.incarnation != incarnation:
                return None
            whys[agent] = refused.why
        return whys

    def _silent(self, task: TaskKeys, said: set[str]) -> bool:
        """Tell whether any agent that may live has never said anything about a task."""
        return any(task.refusal(agent) not in said for agent, _ in self._fleet.alive())

    def _read(self, task: TaskKeys, agent: str) -> Refused | None:
        try:
            data = self._ctx.ledger.store.get(task.refusal(agent)).data
            return Refused.model_validate_json(data)
        except (NotFoundError, ValidationError):
            return None


def _message(group: str, whys: dict[str, str]) -> str:
    """Write why nobody can run a task: each reason once, with the agents that gave it."""
    agents: dict[str, list[str]] = {}
    for agent, why in sorted(whys.items()):
        agents.setdefault(why, []).append(agent)
    lines = [f"no agent of group {group} can run it:"]
    lines += [f"{_names(names)}: {why}" for why, names in list(agents.items())[:_MOST_REASONS]]
    if len(agents) > _MOST_REASONS:
        lines.append(f"and {len(agents) - _MOST_REASONS} more reasons")
    return "\n".join(lines)


def _names(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
