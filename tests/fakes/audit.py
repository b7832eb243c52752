"""The promise, written down once more: what every history of every task has to look like.

Nothing here uses the protocol's own code. States are the JSON that was stored; who wrote it is
told by the store's wrapper, and when, by the one clock of the model that all others are set by.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, BinaryIO

from simagent.ports.store import Blob, Body, Entry, NotFoundError, Store

Json = dict[str, Any]

LEGAL = {
    "submitted": {"queued", "killed", "error"},
    "queued": {"queued", "preparing", "killed", "error"},
    "preparing": {"preparing", "running", "finalizing", "queued", "killed", "error"},
    "running": {"running", "preparing", "finalizing", "queued", "killed", "error"},
    "finalizing": {
        "finalizing",
        "preparing",
        "succeeded",
        "failed",
        "killed",
        "timed_out",
        "error",
    },
    "succeeded": {"deleted"},
    "failed": {"deleted"},
    "killed": {"deleted"},
    "timed_out": {"deleted"},
    "error": {"deleted"},
    "deleted": set[str](),
}
HELD = {"preparing", "running", "finalizing"}
ENDED = {"succeeded", "failed", "killed", "timed_out", "error", "deleted"}
CONSTANT = ("spec_sha256", "submitted_at", "submitted_by", "format", "retry_of")


@dataclass(frozen=True)
class Writer:
    """Who writes: an incarnation of an agent, or a name alone."""

    name: str
    incarnation: str = ""


@dataclass(frozen=True)
class Execution:
    """A start of an attempt, or a restart after its agent's."""

    epoch: int
    agent: str
    incarnation: str


class Audit:
    """Every state of every task in its order, and what is wrong with it."""

    def __init__(self, now: Callable[[], float], *, ttl: float, limits: tuple[int, int]) -> None:
        self.violations: list[str] = []
        self.history: dict[str, list[Json]] = defaultdict(list)
        self.executions: dict[str, list[Execution]] = defaultdict(list)
        self._now = now
        self._ttl = ttl
        self._max_failures, self._max_preemptions = limits
        self._seen_alive: dict[str, float] = {}

    def ended(self) -> set[str]:
        """Tell which tasks have ended."""
        return {task for task, states in self.history.items() if states[-1]["status"] in ENDED}

    def holds(self, task: str, agent: str, epoch: int) -> bool:
        """Tell whether an agent holds a task in an epoch."""
        states = self.history[task]
        return bool(states) and states[-1]["epoch"] == epoch and _holder(states[-1])[0] == agent

    def executed(self, task: str, execution: Execution, ended_before: set[str]) -> None:
        """An attempt begins to run, or to run on under a new incarnation of its agent."""
        self._check(task not in ended_before, f"{task} had ended, but is executed: {execution}")
        for other in self.executions[task]:
            same = other.epoch == execution.epoch
            self._check(
                not same or other.agent == execution.agent,
                f"{task} is executed twice in one epoch: {other}, {execution}",
            )
            self._check(other != execution, f"{task} is started twice: {execution}")
        self.executions[task].append(execution)

    def wrote(self, writer: Writer, task: str, data: bytes) -> None:
        """Somebody wrote the state of a task."""
        new = json.loads(data)
        states = self.history[task]
        old = states[-1] if states else None
        states.append(new)
        for wrong in self._objections(writer, task, old, new):
            self.violations.append(f"{task}: {writer.name}: {wrong}\n  from {old}\n  to   {new}")
        if old is None or _holder(old) != _holder(new) or old["epoch"] != new["epoch"]:
            self._seen_alive[task] = self._now()

    def removed(self, writer: Writer, task: str) -> None:
        """Somebody removed the state of a task."""
        self.violations.append(f"{task}: {writer.name} removed the state")

    def _check(self, condition: bool, message: str) -> None:
        if not condition:
            self.violations.append(message)

    def _objections(self, writer: Writer, task: str, old: Json | None, new: Json) -> Iterator[str]:
        if old is None:
            if new["status"] != "submitted" or new["epoch"] != 0:
                yield "a task begins as submitted, in epoch 0"
            return
        if new["status"] not in LEGAL[old["status"]]:
            yield f"{old['status']} never becomes {new['status']}"
        if any(old.get(name) != new.get(name) for name in CONSTANT):
            yield "a constant has changed"
        yield from _kill_and_outcome(old, new)
        yield from _lease(writer, old, new)
        yield from self._counters(writer, old, new)
        yield from self._claim(writer, old, new)
        yield from self._holding(writer, task, old, new)
        yield from _output(writer, old, new)
        epochs = [attempt["epoch"] for attempt in new["attempts"]]
        if len(epochs) > 20 or epochs != sorted(set(epochs)):
            yield f"the attempts are {epochs}"
        if new["epoch"] and epochs[-1] != new["epoch"]:
            yield f"the attempt of epoch {new['epoch']} is not told of"

    def _counters(self, writer: Writer, old: Json, new: Json) -> Iterator[str]:
        before, after = old["counters"], new["counters"]
        grown = {name: after[name] - before[name] for name in after if after[name] != before[name]}
        expected: list[dict[str, int]] = [{}]
        if old["status"] in HELD:
            if new["epoch"] > old["epoch"]:
                expected = [{"losses": 1}]
            elif new["status"] == "queued":
                expected = [{"errors": 1}, {"preemptions": 1}]
            elif new["status"] in ENDED:
                own = old["status"] == "finalizing" and _is_holder(writer, old)
                expected = [{"losses": 1}, {}] if own else [{"losses": 1}]
        if grown not in expected:
            yield f"counted {grown}, not any of {expected}"
        if after["losses"] + after["errors"] > self._max_failures:
            yield f"more failures than allowed: {after}"
        if after["preemptions"] > self._max_preemptions:
            yield f"more preemptions than allowed: {after}"

    def _claim(self, writer: Writer, old: Json, new: Json) -> Iterator[str]:
        if new["epoch"] == old["epoch"]:
            return
        if new["epoch"] != old["epoch"] + 1:
            yield f"epoch {old['epoch']} became {new['epoch']}"
        if new["status"] != "preparing" or not _is_holder(writer, new):
            yield "a claim makes the claimer the holder, and the task preparing"
        if old["kill"] is not None:
            yield "a task to be killed was claimed"

    def _holding(self, writer: Writer, task: str, old: Json, new: Json) -> Iterator[str]:
        """What may be done to a held task, and by whom."""
        if old["status"] not in HELD:
            return
        lost = new["counters"]["losses"] > old["counters"]["losses"]
        if lost:
            silent = self._now() - self._seen_alive[task]
            if silent < self._ttl:
                yield f"it was taken from a holder that was silent for {silent} s only"
            return
        adopted = writer.name == _holder(old)[0] and _is_holder(writer, new)
        changed = {name for name in new if new[name] != old.get(name)}
        if not _is_holder(writer, old) and not adopted and changed != {"kill", "write_id"}:
            yield f"it is held by {_holder(old)}, and written by another, {writer}: {changed}"


def _holder(state: Json) -> tuple[str, str, int]:
    lease = state["lease"]
    return (lease["agent"], lease["incarnation"], lease["beat"]) if lease else ("", "", -1)


def _is_holder(writer: Writer, state: Json) -> bool:
    return (writer.name, writer.incarnation) == _holder(state)[:2]


def _kill_and_outcome(old: Json, new: Json) -> Iterator[str]:
    if old["kill"] is not None and new["kill"] != old["kill"]:
        yield "the first wish for an end stands"
    if new["kill"] is not None and new["status"] == "queued":
        yield "a task to be killed was given back"
    if new["status"] in ENDED - {"deleted"} and new["outcome"] != new["status"]:
        yield "it ended otherwise than with its outcome"
    if old["outcome"] is None or new["epoch"] > old["epoch"] or new["outcome"] == old["outcome"]:
        return
    closed = new["lease"] is None and new["output"] is None
    if not closed or new["outcome"] not in {"killed", "error"}:
        yield "the outcome that was fixed has changed"


def _lease(writer: Writer, old: Json, new: Json) -> Iterator[str]:
    if (new["status"] in HELD) != (new["lease"] is not None):
        yield f"{new['status']} with the lease {new['lease']}"
    if not new["lease"] or not old["lease"] or new["epoch"] != old["epoch"]:
        return
    was, now = _holder(old), _holder(new)
    if was[0] != now[0]:
        yield "one epoch has two agents"
    if was[1] != now[1] and (now[1] != writer.incarnation or now[2] <= was[2]):
        yield "a lease is handed on by the new incarnation, with a new beat"
    if now[2] < was[2]:
        yield "the beat went back"


def _output(writer: Writer, old: Json, new: Json) -> Iterator[str]:
    if new["output"] is None:
        if new["status"] == "succeeded":
            yield "it succeeded without its outputs"
        return
    if new["status"] not in ENDED or new["output"]["epoch"] != new["epoch"]:
        yield f"its output is {new['output']}"
    if old["output"] is None and (old["status"] != "finalizing" or not _is_holder(writer, old)):
        yield "outputs are published by the holder that fixed the outcome"


class AuditedStore:
    """A store as one writer uses it; tells the audit who wrote what."""

    def __init__(self, inner: Store, audit: Audit, writer: Writer) -> None:
        self.inner = inner
        self._audit = audit
        self._writer = writer

    def get(self, key: str) -> Blob:
        return self.inner.get(key)

    def put(
        self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        etag = self.inner.put(key, data, if_match=if_match, if_absent=if_absent)
        if key.endswith("/state.json"):
            self._audit.wrote(self._writer, key.split("/")[-2], data)
        return etag

    def delete(self, key: str) -> None:
        if key.endswith("/state.json"):
            try:
                self.inner.head(key)
            except NotFoundError:
                return
            self._audit.removed(self._writer, key.split("/")[-2])
        self.inner.delete(key)

    def scan(self, prefix: str, *, after: str = "", limit: int | None = None) -> Iterator[Entry]:
        return self.inner.scan(prefix, after=after, limit=limit)

    def head(self, key: str) -> Entry:
        return self.inner.head(key)

    def open(
        self, key: str, *, start: int = 0, length: int | None = None
    ) -> AbstractContextManager[BinaryIO]:
        return self.inner.open(key, start=start, length=length)

    def upload(self, key: str, body: Body) -> Entry:
        return self.inner.upload(key, body)
