"""Heartbeats of agents that are gone do not stay for ever."""

import pytest

from fakes.clock import FakeClock
from fakes.store import MemoryStore
from simagent.domain import keys
from simagent.ledger import Ledger
from simagent.worker.fleet import Vanished

HOUR = 3600.0


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def left(store: MemoryStore) -> list[str]:
    return [keys.agent_name(entry.key) for entry in store.scan(keys.AGENTS)]


def test_who_does_not_change_for_a_day_is_removed(store: MemoryStore) -> None:
    clock = FakeClock()
    vanished = Vanished(Ledger(store), clock)
    store.put(keys.agent("gone"), b"1")
    for hour in range(24):
        store.put(keys.agent("lives"), b"%d" % hour)
        vanished.prune_if_due()
        assert left(store) == ["gone", "lives"]
        clock.advance(HOUR)
    vanished.prune_if_due()
    assert left(store) == ["lives"]


def test_who_shows_itself_late_is_not(store: MemoryStore) -> None:
    clock = FakeClock()
    vanished = Vanished(Ledger(store), clock)
    store.put(keys.agent("slow"), b"1")
    vanished.prune_if_due()
    clock.advance(23 * HOUR)
    store.put(keys.agent("slow"), b"2")
    vanished.prune_if_due()
    clock.advance(23 * HOUR)
    vanished.prune_if_due()
    assert left(store) == ["slow"]


def test_it_looks_once_an_hour(store: MemoryStore) -> None:
    clock = FakeClock()
    vanished = Vanished(Ledger(store), clock)
    store.put(keys.agent("gone"), b"1")
    vanished.prune_if_due()
    clock.advance(HOUR - 1)
    vanished.prune_if_due()  # has not looked: the day counts from the first look
    clock.advance(23 * HOUR)
    vanished.prune_if_due()
    assert left(store) == ["gone"]
    clock.advance(HOUR)
    vanished.prune_if_due()
    assert left(store) == []
