"""Waiting for tasks and following their logs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from simagent.client.attention import Attention
from simagent.client.calls import Calls
from simagent.domain.keys import STREAMS, Stream, TaskKeys
from simagent.domain.state import HELD, State
from simagent.telemetry.log_reader import read_log


@dataclass(frozen=True, slots=True)
class LogPiece:
    """Some bytes of a task's log, in order within their stream and attempt."""

    epoch: int
    stream: Stream
    data: bytes


class Follower:
    """Watches one task."""

    def __init__(self, calls: Calls, task: TaskKeys) -> None:
        self._ledger = calls.ledger
        self._clock = calls.clock
        self._retry = calls.retried
        self._task = task
        self._polls = calls.polls
        self._poll = calls.polls.first

    def states(self) -> Iterator[State]:
        """Yield the state now and whenever it has changed, up to the terminal one."""
        shown: str | None = None
        while True:
            state = self._state()
            if state.write_id != shown:
                shown = state.write_id
                self._poll = self._polls.first
                yield state
            if state.terminal:
                return
            self._pause(self._polls.state)

    def logs(
        self, streams: Sequence[Stream] = STREAMS, *, follow: bool = True
    ) -> Iterator[LogPiece]:
        """Yield the logs as they come, up to the end of the task.

        When another attempt begins, its logs follow from their start. Without ``follow`` it ends
        where the logs end now. With it the agent is told that somebody reads along.
        """
        attention = Attention(self._ledger.store, self._clock, self._task)
        epoch = 0
        positions: dict[Stream, int] = {}
        while True:
            state = self._state()
            if state.epoch != epoch:
                epoch, positions = state.epoch, dict.fromkeys(streams, 0)
            if follow and state.status in HELD:
                attention.keep()
            progress = False
            ended = state.terminal or not follow
            for stream, start in positions.items():
                for data in self._read(epoch, stream, start, final=ended):
                    positions[stream] += len(data)
                    progress = True
                    yield LogPiece(epoch, stream, data)
            if ended:
                return
            self._poll = self._polls.first if progress else self._poll
            self._pause(self._polls.log)

    def _read(self, epoch: int, stream: Stream, start: int, *, final: bool) -> Iterator[bytes]:
        keys = self._task.attempt(epoch)
        return read_log(self._ledger.store, keys, stream, start=start, final=final)

    def _state(self) -> State:
        return self._retry(lambda: self._ledger.state(self._task))

    def _pause(self, longest: float) -> None:
        self._clock.wait(self._poll)
        self._poll = min(longest, self._poll * 1.5)
