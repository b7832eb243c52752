"""A task as it is shown: all of it as JSON, or a summary for people."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from simagent.api.text import columns, moment, printable, seconds, size
from simagent.domain.fleet import Refused
from simagent.domain.spec import Spec
from simagent.domain.state import Attempt, State, Status, StepRecord

_TAIL_LINES = 15


class Named(Protocol):
    """What names a task."""

    @property
    def id(self) -> str:
        """The task's id."""

    @property
    def project(self) -> str:
        """The project it belongs to."""


Paint = Callable[[str, str], str]
"""Gives a text the colour of a status."""


def plain(text: str, _status: str) -> str:
    """Give it none."""
    return text


def describe(task: Named, state: State, spec: Spec | None) -> dict[str, Any]:
    """Make the JSON document: the whole state, the steps and timings of the last attempt on top.

    Times are Unix seconds, durations seconds, sizes bytes.
    """
    stored = state.model_dump(mode="json")
    last = stored["attempts"][-1] if stored["attempts"] else {}
    return {
        "id": task.id,
        "project": task.project,
        "name": spec.name if spec else None,
        "group": spec.group if spec else None,
        "tags": dict(spec.tags) if spec else {},
        **stored,
        "steps": last.get("steps", []),
        "timings": last.get("timings", {}),
        "outputs": stored["output"] or {},
    }


def headline(task: Named, state: State, spec: Spec | None, paint: Paint = plain) -> Iterator[str]:
    """Write who the task is and how it stands."""
    name = f" ({printable(spec.name)})" if spec and spec.name else ""
    reason = f": {state.reason}" if state.reason else ""
    yield f"task {task.id}{name} {paint(state.status, state.status)}{reason}"
    yield from (f"  {line}" for line in printable(state.message).splitlines())
    if state.kill and not state.terminal:
        yield f"  a kill was asked for by {printable(state.kill.by)}"


def tail(state: State) -> Iterator[str]:
    """Write the last lines of standard error, where the task did not succeed."""
    lines = printable(state.stderr_tail).rstrip("\n").splitlines()[-_TAIL_LINES:]
    if lines:
        yield "last lines of stderr:"
        yield from (f"  {line}" for line in lines)


def timeline(attempt: Attempt) -> Iterator[str]:
    """Write how long each operation of an attempt took, and what it moved."""
    rows = [
        (f"  {name}", seconds(timing.seconds), size(timing.bytes))
        for name, timing in sorted(
            attempt.timings.items(), key=lambda item: item[1].started or float("inf")
        )
    ]
    if rows:
        yield "timeline:"
        yield from columns(rows)


def steps(records: Sequence[StepRecord]) -> Iterator[str]:
    """Write the steps of an attempt: how each ended, how long it took, what it used."""
    rows = [
        (
            f"  {step.number}",
            _ending(step),
            seconds(step.seconds),
            f"cpu {seconds(_cpu(step))}",
            f"memory {size(step.max_rss_bytes) or '-'}",
            _command_line(step.argv),
        )
        for step in records
    ]
    if rows:
        yield "steps:"
        yield from columns(rows)


def full(
    task: Named,
    state: State,
    spec: Spec | None,
    refusals: Sequence[Refused] = (),
    paint: Paint = plain,
) -> Iterator[str]:
    """Write all that `simagent show` shows; ``refusals`` are those of a task that waits."""
    yield from headline(task, state, spec, paint)
    for refused in refusals:
        yield f"  waiting: refused by {printable(refused.agent)}: {printable(refused.why)}"
    yield f"  submitted {moment(state.submitted_at)} by {printable(state.submitted_by) or '-'}"
    if state.ended_at:
        word = "deleted" if state.status is Status.DELETED else "ended"
        yield f"  {word:<9} {moment(state.ended_at)}"
    if state.retry_of:
        yield f"  a retry of {state.retry_of}"
    if spec:
        tags = ", ".join(f"{key}={printable(value)}" for key, value in spec.tags.items())
        yield f"  project {task.project}, group {spec.group}{f', tags {tags}' if tags else ''}"
    if state.lease:
        yield f"  held by {state.lease.agent}"
    yield from _attempts(state)
    if state.attempts:
        yield from timeline(state.attempts[-1])
        yield from steps(state.attempts[-1].steps)
    if state.checkpoint:
        kept = state.checkpoint
        yield (
            f"checkpoint: {kept.files} files, {size(kept.bytes)}, "
            f"of attempt {kept.epoch} at {moment(kept.at)}"
        )
    if state.output:
        out = state.output
        stored = f"{size(out.archive_bytes)} packed" if out.archive else "as single files"
        yield f"outputs: {out.files} files, {size(out.bytes)} ({stored})"
    yield from tail(state)


def _attempts(state: State) -> Iterator[str]:
    rows = [
        (
            f"  {attempt.epoch}",
            attempt.agent,
            moment(attempt.started),
            f"ran {seconds(attempt.ran_seconds)}",
            str(attempt.reason or ""),
        )
        for attempt in state.attempts
    ]
    if not rows:
        return
    yield "attempts:"
    for attempt, row in zip(state.attempts, columns(rows), strict=True):
        yield row
        if attempt.restart is not None:
            yield f"     goes on from the checkpoint of attempt {attempt.restart}"
        if attempt.note:
            yield f"     {printable(attempt.note)}"
        if attempt.message not in state.message:
            yield from (f"     {line}" for line in printable(attempt.message).splitlines())


def _ending(step: StepRecord) -> str:
    if step.signal is not None:
        return f"signal {step.signal}"
    if step.exit_code is not None:
        return f"exit {step.exit_code}"
    return "not started" if step.seconds is None else "unknown"


def _cpu(step: StepRecord) -> float | None:
    if step.user_seconds is None or step.system_seconds is None:
        return None
    return step.user_seconds + step.system_seconds


def _command_line(argv: Sequence[str]) -> str:
    line = printable(" ".join(argv).replace("\n", " "))
    return line if len(line) <= 80 else line[:79] + "…"
