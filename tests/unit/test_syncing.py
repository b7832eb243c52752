"""Syncs that end with the commands of their task."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from fakes.clock import FakeClock
from fakes.store import MemoryStore
from simagent.domain.keys import TaskKeys
from simagent.domain.live import Request
from simagent.ledger import Ledger
from simagent.ports.clock import Wake
from simagent.ports.store import Entry
from simagent.worker.syncing import Syncing
from simagent.worker.threads import Threads


class Listed(MemoryStore):
    """A store in which something happens while it is listed."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], object] = lambda: None

    def scan(self, prefix: str, *, after: str = "", limit: int | None = None) -> Iterator[Entry]:
        self.meanwhile()
        return super().scan(prefix, after=after, limit=limit)


class Unstarted(Threads):
    """Begins nothing, and notes what was to begin."""

    def __init__(self) -> None:
        super().__init__(Wake())
        self.begun: list[str] = []

    def start(self, name: str, target: Callable[[], None]) -> Any:
        self.begun.append(name)


def test_none_begins_when_the_commands_end_while_room_is_made_for_it() -> None:
    store, clock, threads = Listed(), FakeClock(), Unstarted()
    entry = SimpleNamespace(steps_started=1.0, epoch=1, task="t", keys=TaskKeys("p", "t"))
    ctx: Any = SimpleNamespace(clock=clock, ledger=Ledger(store))
    syncing = Syncing(ctx, SimpleNamespace(), SimpleNamespace(entry=entry), threads)  # type: ignore[arg-type]
    first = Request.model_validate({"op": "sync", "path": "", "sync": "first"})
    assert syncing.answer(first, waits=True) is None
    clock.advance(600.0)
    store.meanwhile = lambda: syncing.stop(0.0)
    answer = syncing.answer(first.with_(sync="second"), waits=True)
    assert answer is not None
    assert answer.error == "refused"
    assert "its commands are over" in answer.message
    assert len(threads.begun) == 1
