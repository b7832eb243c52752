"""A task as the Python client has it in hand."""

import html
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simagent.api.reading import Duration, lines, to_seconds
from simagent.api.report import Paint, describe, full, plain
from simagent.api.report import tail as stderr_lines
from simagent.api.text import printable
from simagent.api.waiting import OnBytes, OnWait, Progress, transferring, waiting
from simagent.client.caller import whoami
from simagent.client.calls import Notice
from simagent.client.errors import ClientError, TaskFailedError, UsageError, WaitTimeoutError
from simagent.client.following import LogPiece
from simagent.client.tasks import Tasks
from simagent.domain.fleet import Refused
from simagent.domain.keys import STREAMS, Stream, TaskKeys
from simagent.domain.live import Item
from simagent.domain.spec import Spec
from simagent.domain.state import State, Status, Timing

_ANSWER = 10.0
"""Seconds that the agent of a running task may take to answer."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies in a folder of a task's: iterate over it for its items.

    An item has ``name``, ``kind`` (file, folder, link, …), ``size`` in bytes and ``mtime`` in Unix
    time. ``more`` tells how many names are left out.
    """

    items: tuple[Item, ...]
    more: int = 0

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class Task:
    """The handle of a task: it holds no more than the task's name, and asks the store anew.

    Made by `Client.submit`, `Client.task` and `Client.tasks`. Safe between threads. Methods raise
    `ClientError` where there is no such task, and what `Client` says.
    """

    def __init__(
        self,
        tasks: Callable[[], Tasks],
        keys: TaskKeys,
        *,
        spec: Spec | None = None,
        state: State | None = None,
    ) -> None:
        self._open = tasks
        self._keys = keys
        self._spec = spec
        self._last = state

    @property
    def id(self) -> str:
        """The task's id."""
        return self._keys.id

    @property
    def project(self) -> str:
        """The project it belongs to."""
        return self._keys.project

    @property
    def state(self) -> State:
        """All that is known of it, read now: status, reason, attempts, steps, outputs."""
        return self._seen(self._open().state(self._keys))

    @property
    def status(self) -> Status:
        """Its status, read now: it equals text as "running"."""
        return self.state.status

    @property
    def last_state(self) -> State | None:
        """The state that was read last, without reading it again; None where none was."""
        return self._last

    @property
    def spec(self) -> Spec:
        """What was submitted; read once, for it never changes."""
        if self._spec is None:
            self._spec = self._open().spec(self._keys)
        return self._spec

    def wait(
        self,
        timeout: Duration | None = None,
        *,
        progress: bool | OnWait = True,
        check: bool = False,
    ) -> State:
        """Wait for its end, and give its last state, however it ended.

        ``timeout`` is in seconds or text as "2h"; after it `WaitTimeoutError` is raised, and the
        task goes on. On a terminal a line shows its status, the time, and what it printed last;
        ``progress`` switches that off, or is a function that is told the `Progress` instead, at
        each look. With ``check`` a task that did not succeed raises `TaskFailedError`.
        """
        tasks = self._open()
        within = None if timeout is None else to_seconds("timeout", timeout)
        with waiting(progress) as tell:
            for look in tasks.looks(self._keys, within=within, line=tell is not None):
                state = self._seen(look.state)
                if tell is not None:
                    line = printable(look.line)
                    tell(Progress(self.id, state, look.elapsed, line))
        if not state.terminal:
            raise WaitTimeoutError(
                f"task {self.id} is {state.status} after {within:g} s: it goes on; wait again, "
                "or kill it"
            )
        if check and state.status is not Status.SUCCEEDED:
            raise self._failed(state)
        return state

    def states(self) -> Iterator[State]:
        """Yield its state now and whenever it has changed, up to the terminal one."""
        return map(self._seen, self._open().states(self._keys))

    def logs(self, *, stream: Stream | None = None, follow: bool = False) -> Iterator[str]:
        """Yield the lines that its commands printed, without their ends.

        With ``follow`` up to its end, else as far as they are known now. ``stream`` is "stdout" or
        "stderr"; without it the lines of both are yielded as they come.
        Bytes that are no UTF-8 are replaced; `log_pieces` has them as they are.
        """
        pieces = self.log_pieces(None if stream is None else (stream,), follow=follow)
        return lines(pieces)

    def log_pieces(
        self, streams: Iterable[Stream] | None = None, *, follow: bool = False
    ) -> Iterator[LogPiece]:
        """Yield what its commands printed, byte for byte: ``epoch``, ``stream`` and ``data``.

        Pieces are in order within their stream and attempt; where another attempt begins its log
        is told from its start.
        """
        wanted = STREAMS if streams is None else tuple(streams)
        unknown = [stream for stream in wanted if stream not in STREAMS]
        if unknown:
            raise UsageError(f"stream: {unknown[0]!r} is none: use {' or '.join(STREAMS)}")
        return self._open().logs(self._keys, wanted, follow=follow)

    def ls(self, path: str = "", *, timeout: float = _ANSWER) -> Listing:
        """List a folder of the task's, or one file, also while it runs.

        The agent that holds it is asked, and may take ``timeout`` seconds (`NoAnswerError`); of an
        ended task, what it published is listed.
        """
        items, more = self._open().files(self._keys, timeout=timeout).list(path)
        return Listing(tuple(items), more)

    def tail(self, path: str, n: int = 10, *, timeout: float = _ANSWER) -> str:
        """Give the last ``n`` lines of one of its files, also while it runs."""
        data = b"".join(self.follow(path, n, until_end=False, timeout=timeout))
        return data.decode(errors="replace")

    def follow(
        self,
        path: str,
        n: int = 10,
        *,
        until_end: bool = True,
        timeout: float = _ANSWER,
        on_note: Notice = lambda _text: None,
    ) -> Iterator[bytes]:
        """Yield the last ``n`` lines of one of its files, then what is added until it ends.

        ``on_note`` is told what a person should know meanwhile, as that the file is waited for.
        """
        if n < 0:
            raise UsageError(f"n: {n} is less than none: give a number of lines")
        files = self._open().files(self._keys, timeout=timeout, on_note=on_note)
        return files.tail(path, lines=n, follow=until_end)

    def kill(self, *, grace: Duration | None = None) -> State:
        """Ask for its end, and give its state then: terminal where it had ended, or was queued.

        ``grace`` is between SIGTERM and SIGKILL, in seconds or text; without it the spec's. What
        it has written is published all the same; `wait` waits for that.
        """
        seconds = None if grace is None else to_seconds("grace", grace)
        return self._seen(self._open().kill(self._keys, by=whoami(), grace=seconds))

    def retry(self) -> "Task":
        """Submit it once more, when it has ended: a new task with the same spec and inputs."""
        tasks = self._open()
        return Task(self._open, tasks.retry(self._keys), spec=self._spec)

    def delete(self) -> None:
        """Delete it, when it has ended, with its logs and outputs."""
        self._open().delete(self._keys)
        self._last = None

    def download(
        self,
        patterns: str | Iterable[str] = (),
        to: str | os.PathLike[str] | None = None,
        *,
        attempt: int | None = None,
        progress: bool | OnBytes = True,
        on_skip: Callable[[str, str], None] | None = None,
    ) -> Sequence[Path]:
        """Fetch the outputs that match a glob, or all, into a folder, and give their paths.

        ``to`` is by default a folder named as the task; ``attempt`` asks for those that there were
        when this one was given back. On a terminal a line shows how far it is; ``progress``
        switches that off, or is a function that is told the bytes written so far, and how many
        there will be, if that is known. ``on_skip`` is told the path of what is left out because
        it would lead out of the folder, and why. Raises OSError, too.
        """
        globs = [patterns] if isinstance(patterns, str) else list(patterns)
        output = self.state.output if not globs and attempt is None else None
        total = output.bytes if output is not None else None
        done = 0
        with transferring("outputs", progress) as tell:

            def count(piece: int) -> None:
                nonlocal done
                done += piece
                if tell is not None:
                    tell(done, total)

            target = Path(self.id if to is None else to)
            return self._open().download(
                self._keys, globs, target, attempt=attempt, on_progress=count, on_skip=on_skip
            )

    def sync(
        self,
        patterns: str | Iterable[str] = (),
        to: str | os.PathLike[str] | None = None,
        *,
        progress: bool | OnBytes = True,
        timeout: float = _ANSWER,
        on_skip: Callable[[str, str], None] | None = None,
        on_note: Notice = lambda _text: None,
    ) -> Sequence[Path]:
        """Fetch what it has made so far, while it runs, and give the paths.

        The agent that holds it puts the files that match a glob, or all, into the store, each as
        it is then. The agent may take ``timeout`` seconds to answer (`NoAnswerError`);
        ``on_note`` is told how many files were being written. Else as `download`.
        """
        globs = [patterns] if isinstance(patterns, str) else list(patterns)
        done = 0
        with transferring("sync", progress) as tell:

            def sent(count: int) -> None:
                if tell is not None:
                    tell(count, None)

            def count(piece: int) -> None:
                nonlocal done
                done += piece
                if tell is not None:
                    tell(done, None)

            target = Path(self.id if to is None else to)
            fetched = self._open().sync(
                self._keys,
                globs,
                target,
                timeout=timeout,
                on_sent=sent,
                on_progress=count,
                on_skip=on_skip,
            )
        if fetched.changed:
            on_note(f"{fetched.changed} files were being written: they are as they were then")
        return fetched.paths

    def refusals(self) -> Sequence[Refused]:
        """Tell which agents cannot run it, while it is queued: each has ``agent`` and ``why``."""
        return self._open().refusals(self._keys)

    def timeline(self) -> Mapping[str, Timing]:
        """Tell how long each operation of its last attempt took, in the order they began.

        A timing has ``seconds``, ``bytes`` and ``started`` in Unix time.
        """
        state = self.state
        timings = state.attempts[-1].timings if state.attempts else {}
        began = sorted(timings.items(), key=lambda item: item[1].started or float("inf"))
        return dict(began)

    def describe(self) -> dict[str, Any]:
        """Give all of it as plain dicts and lists: what `simagent show --json` prints."""
        state = self.state
        refusals = self.refusals() if state.status is Status.QUEUED else ()
        return {
            **describe(self, state, self.readable_spec()),
            "refusals": [refused.model_dump() for refused in refusals],
        }

    def show(self, *, paint: Paint = plain) -> str:
        """Write it for a person: what `simagent show` prints.

        ``paint`` gives a text the colour of a status, where there are colours.
        """
        state = self.state
        refusals = self.refusals() if state.status is Status.QUEUED else ()
        return "\n".join(full(self, state, self.readable_spec(), refusals, paint))

    def readable_spec(self) -> Spec | None:
        """Give `spec`; None where it was deleted, or cannot be read."""
        try:
            return self.spec
        except ClientError:
            return None

    def _seen(self, state: State) -> State:
        self._last = state
        return state

    def _failed(self, state: State) -> TaskFailedError:
        why = f": {state.reason}" if state.reason else ""
        lines = [f"task {self.id} {state.status}{why}", *filter(None, [state.message])]
        lines += stderr_lines(state)
        return TaskFailedError("\n".join(lines), task_id=self.id, state=state)

    def __eq__(self, other: object) -> bool:
        return self._keys == other._keys if isinstance(other, Task) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._keys)

    def __repr__(self) -> str:
        known = f" {last.status}" if (last := self._last) else ""
        return f"<Task {self.id}{known}>"

    def _repr_html_(self) -> str:
        name = html.escape(printable(self._spec.name)) if self._spec else ""
        status = f" <b>{last.status}</b>" if (last := self._last) else ""
        return f"task <code>{self.id}</code>{f' {name}' if name else ''}{status}"
