"""What a list of tasks reads, and in which order it has them."""

from collections import Counter

import pytest

from fakes.clock import FakeClock
from fakes.faults import Faults, FaultyStore
from fakes.queue import MemoryQueue
from fakes.store import MemoryStore
from fakes.tasks import place
from simagent.client import Tasks
from simagent.client.listing import Wanted
from simagent.domain import keys
from simagent.domain.keys import TaskKeys
from simagent.domain.state import Status
from simagent.ledger import Ledger
from simagent.ports.store import StoreRefusedError

_OLD = 300


class Shelf:
    """Many ended tasks, and an open one of each kind among them; the newest has number 0."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.faults = Faults(self.clock)
        good = Ledger(self.store)
        self.notes: list[str] = []
        for number in range(_OLD):
            status = {70: "running", 170: "queued", 171: "deleted"}.get(number, "succeeded")
            at = self.clock.wall() - number
            spec: dict[str, object] = {"name": f"n{number}", "tags": {"ten": str(number % 10)}}
            task = place(good, status, id=f"T{number:04d}", spec=spec, submitted_at=at)
            self.store.put(keys.index_entry("default", task.id, at), b"")
            if status not in ("running", "queued"):
                good.remove_marker("default", task)
        good.open_marker("default", TaskKeys("another", "T0070"))
        self.store.put(keys.open_prefix("default") + "no.such.marker!", b"")
        queue = MemoryQueue(self.clock)
        self.tasks = Tasks(
            Ledger(FaultyStore(self.store, self.faults)),
            lambda _: queue,
            self.clock,
            project="default",
            notice=self.notes.append,
        )

    def list(self, limit: int | None = None, **wanted: object) -> list[str]:
        rows = self.tasks.list(Wanted(**wanted), limit)  # type: ignore[arg-type]
        return [row.task.id for row in rows]

    def calls(self) -> Counter[str]:
        return Counter(call for call, _ in self.faults.calls)


@pytest.fixture(scope="module")
def filled() -> Shelf:
    return Shelf()


@pytest.fixture
def shelf(filled: Shelf) -> Shelf:
    filled.faults.calls.clear()
    filled.notes.clear()
    return filled


def test_a_page_reads_what_it_shows_and_no_more(shelf: Shelf) -> None:
    assert shelf.list(50) == [f"T{number:04d}" for number in range(50)]
    assert shelf.calls() == {"scan": 1, "get": 100}


def test_all_are_listed_newest_first_without_those_that_were_deleted(shelf: Shelf) -> None:
    assert shelf.list() == [f"T{number:04d}" for number in range(_OLD) if number != 171]
    assert shelf.list(statuses=frozenset({Status.DELETED})) == ["T0171"]


def test_open_tasks_are_found_without_reading_those_that_ended(shelf: Shelf) -> None:
    assert shelf.list(50, statuses=frozenset({Status.RUNNING})) == ["T0070"]
    assert shelf.calls()["get"] <= 4
    wanted = frozenset({Status.QUEUED, Status.RUNNING})
    assert shelf.list(statuses=wanted) == ["T0070", "T0170"]
    assert shelf.list(statuses=wanted, name="n17*") == ["T0170"]
    assert shelf.list(1, statuses=wanted) == ["T0070"]


def test_who_may_not_list_open_tasks_walks_all(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = shelf.store.scan

    def refuse(prefix: str, **more: object) -> object:
        if prefix.startswith("open/"):
            raise StoreRefusedError("s3:ListBucket is not allowed")
        return inner(prefix, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(shelf.store, "scan", refuse)
    assert shelf.list(50, statuses=frozenset({Status.QUEUED})) == ["T0170"]


def test_filters_read_no_further_than_to_the_last_that_is_shown(shelf: Shelf) -> None:
    assert shelf.list(2, tags={"ten": "3"}) == ["T0003", "T0013"]
    assert shelf.calls()["get"] < 2 * _OLD
    assert shelf.list(name="n29?", tags={"ten": "3"}) == ["T0293"]


def test_a_long_walk_is_told_of_once(shelf: Shelf) -> None:
    start = shelf.clock.now()
    shelf.faults.before = lambda _call, _key: shelf.clock.advance(0.05)
    try:
        shelf.list(name="n299")
    finally:
        shelf.faults.before = lambda _call, _key: None
    assert shelf.clock.now() > start + 3
    (note,) = shelf.notes
    assert "of the" in note
