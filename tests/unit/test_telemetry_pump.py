"""The telemetry thread: when it ships, and that nothing but a bug ends it."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fakes.clock import FakeClock
from fakes.faults import UNAVAILABLE, Fault, Faults, FaultyStore
from fakes.store import MemoryStore
from simagent.domain.keys import AttemptKeys
from simagent.ports.clock import Clock, SystemClock
from simagent.ports.store import StoreRefusedError
from simagent.telemetry.log_reader import read_log
from simagent.telemetry.logs import LogShipper
from simagent.telemetry.metrics import Sampler
from simagent.telemetry.pump import LOCAL_PACE, REMOTE_PACE, Pace, TelemetryPump
from simagent.telemetry.segments import MetricsLog, read_samples

KEYS = AttemptKeys("p/default/tasks/t/a/1/")


class Attempt:
    """An attempt's folder, a store that can be broken, and a pump between them."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.clock = clock
        self.log = folder / "stdout"
        self.metrics = folder / "metrics.jsonl"
        self.folder = folder
        self.store = MemoryStore()
        self.faults = Faults(clock)
        self.crashes: list[Exception] = []

    def pump(
        self, pace: Pace = REMOTE_PACE, pids: Callable[[], list[int]] = lambda: [os.getpid()]
    ) -> TelemetryPump:
        store = FaultyStore(self.store, self.faults)
        return TelemetryPump(
            logs=LogShipper(store, KEYS, {"stdout": self.log}, chunk_bytes=1000),
            metrics=MetricsLog(store, KEYS, self.metrics),
            sampler=Sampler(pids=pids, workdir=self.folder, host="h", clock=self.clock),
            clock=self.clock,
            on_crash=self.crashes.append,
            pace=pace,
        )

    def print(self, data: bytes) -> None:
        with self.log.open("ab") as file:
            file.write(data)

    def shipped(self) -> bytes:
        return b"".join(read_log(self.store, KEYS, "stdout"))

    def break_store(self) -> None:
        self.faults.plan = lambda call, key: UNAVAILABLE

    def mend_store(self) -> None:
        self.faults.plan = lambda call, key: None


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def attempt(tmp_path: Path, clock: FakeClock) -> Attempt:
    return Attempt(tmp_path, clock)


@pytest.fixture
def live(tmp_path: Path) -> Attempt:
    """An attempt in real time, for a real thread."""
    return Attempt(tmp_path, SystemClock())


def run(pump: TelemetryPump, clock: FakeClock, seconds: float) -> int:
    """Turn the pump for some seconds; tell how often."""
    end, turns = clock.now() + seconds, 0
    while clock.now() < end:
        clock.advance(min(pump.turn(), end - clock.now()))
        turns += 1
        assert turns < 100 + 20 * seconds, "the pump does not wait"
    return turns


def seconds_until(
    pump: TelemetryPump, clock: FakeClock, condition: Callable[[], bool], limit: float = 200
) -> float:
    begin = clock.now()
    while not condition():
        assert clock.now() < begin + limit
        clock.advance(pump.turn())
    return clock.now() - begin


def test_the_first_lines_are_shipped_within_15_seconds(attempt: Attempt, clock: FakeClock) -> None:
    attempt.print(b"hello\n")
    pump = attempt.pump()
    assert 10 < seconds_until(pump, clock, lambda: attempt.shipped() == b"hello\n") <= 16


def test_a_late_first_line_is_shipped_at_once(attempt: Attempt, clock: FakeClock) -> None:
    pump = attempt.pump()
    run(pump, clock, 100)
    attempt.print(b"hello\n")
    assert seconds_until(pump, clock, lambda: attempt.shipped() == b"hello\n") <= 2


def test_when_nobody_follows_small_output_waits_and_full_chunks_do_not(
    attempt: Attempt, clock: FakeClock
) -> None:
    pump = attempt.pump()
    attempt.print(b"hello\n")
    run(pump, clock, 20)
    attempt.print(b"more\n")
    run(pump, clock, 30)
    assert attempt.shipped() == b"hello\n"
    attempt.print(b"x" * 1000)
    run(pump, clock, 2)
    assert len(attempt.shipped()) == 1000
    run(pump, clock, 60)
    assert len(attempt.shipped()) == 1011


def test_a_follower_sees_output_soon_until_it_leaves(attempt: Attempt, clock: FakeClock) -> None:
    pump = attempt.pump()
    attempt.print(b"a")
    run(pump, clock, 20)
    pump.follow(clock.now() + 30)
    for letter in b"bcdefg":
        attempt.print(bytes([letter]))
        run(pump, clock, 2.5)
        assert attempt.shipped().endswith(bytes([letter]))
    run(pump, clock, 20)
    attempt.print(b"z")
    run(pump, clock, 10)
    assert not attempt.shipped().endswith(b"z")


def test_a_local_store_gets_output_at_once(attempt: Attempt, clock: FakeClock) -> None:
    pump = attempt.pump(LOCAL_PACE)
    for letter in b"abc":
        attempt.print(bytes([letter]))
        run(pump, clock, 0.6)
        assert attempt.shipped().endswith(bytes([letter]))


def test_it_rests_between_its_turns(attempt: Attempt, clock: FakeClock) -> None:
    pump = attempt.pump()
    assert run(pump, clock, 100) < 150
    attempt.print(b"a")
    run(pump, clock, 20)
    assert run(pump, clock, 100) < 150


def test_samples_are_taken_every_5_seconds_and_shipped(attempt: Attempt, clock: FakeClock) -> None:
    pump = attempt.pump()
    run(pump, clock, 99)
    assert len(attempt.metrics.read_bytes().splitlines()) == 20
    shipped = list(read_samples(attempt.store, KEYS))
    assert 10 < len(shipped) <= 20


def test_a_store_that_fails_is_tried_again_ever_more_seldom_with_one_warning(
    attempt: Attempt, clock: FakeClock
) -> None:
    pump = attempt.pump(LOCAL_PACE)
    attempt.print(b"a" * 10)
    attempt.break_store()
    with capture_logs() as lines:
        assert run(pump, clock, 300) < 200
        assert 20 < len(attempt.faults.calls) < 70
        attempt.mend_store()
        seconds_until(pump, clock, lambda: attempt.shipped() == b"a" * 10, limit=31)
        run(pump, clock, 31)
    assert [(line["late"], line["log_level"]) for line in lines if line["late"] == "logs"] == [
        ("logs", "warning"),
        ("logs", "info"),
    ]
    assert len(lines) == 4
    assert len(attempt.metrics.read_bytes().splitlines()) >= 60


def test_a_disk_that_fails_does_not_hold_up_the_logs(attempt: Attempt, clock: FakeClock) -> None:
    attempt.metrics.mkdir()
    pump = attempt.pump(LOCAL_PACE)
    with capture_logs() as lines:
        for letter in b"abc":
            attempt.print(bytes([letter]))
            run(pump, clock, 4)
            assert attempt.shipped().endswith(bytes([letter]))
    assert sorted(line["late"] for line in lines) == ["metrics", "samples"]


def test_stop_ships_everything_and_ends_the_thread(live: Attempt) -> None:
    pump = live.pump()
    pump.start()
    live.print(b"x" * 2500)
    assert pump.stop(live.clock.now() + 30)
    assert live.shipped() == b"x" * 2500
    assert len(list(read_samples(live.store, KEYS))) >= 1
    assert pump.stop(live.clock.now() + 30)
    assert not live.crashes


def test_the_final_stop_joins_small_chunks(live: Attempt) -> None:
    shipper = LogShipper(live.store, KEYS, {"stdout": live.log}, chunk_bytes=1000)
    for _ in range(4):
        live.print(b"x" * 10)
        shipper.ship(flush=True)
    pump = live.pump()
    pump.start()
    assert pump.stop(live.clock.now() + 30)
    assert [entry.size for entry in live.store.scan(KEYS.logs("stdout"))] == [40]


def test_stop_tries_until_the_deadline(live: Attempt) -> None:
    live.print(b"x")
    live.break_store()
    pump = live.pump()
    pump.start()
    assert not pump.stop(live.clock.now() + 0.2)
    live.mend_store()
    assert live.shipped() == b""
    again = live.pump()
    again.start()
    assert again.stop(live.clock.now() + 30)
    assert live.shipped() == b"x"


def test_stop_outlives_a_store_that_comes_back(live: Attempt) -> None:
    failures = iter(range(2))

    def plan(call: str, key: str) -> Fault | None:
        return UNAVAILABLE if next(failures, None) is not None else None

    live.faults.plan = plan
    live.print(b"x")
    pump = live.pump()
    pump.start()
    assert pump.stop(live.clock.now() + 30)
    assert live.shipped() == b"x"


def test_a_later_stop_can_shorten_the_deadline(live: Attempt) -> None:
    live.break_store()
    live.print(b"x")
    pump = live.pump()
    pump.start()
    patient = threading.Thread(target=pump.stop, args=[live.clock.now() + 3600])
    patient.start()
    assert not pump.stop(live.clock.now())
    patient.join(60)
    assert not patient.is_alive()


def test_detaching_leaves_the_attempt_to_the_next_pump(live: Attempt) -> None:
    pump = live.pump()
    pump.start()
    live.print(b"first ")
    assert pump.stop(live.clock.now() + 30, final=False)
    assert live.shipped() == b"first "
    live.print(b"second")
    later = live.pump()
    later.start()
    assert later.stop(live.clock.now() + 30)
    assert live.shipped() == b"first second"
    taken = [json.loads(line) for line in live.metrics.read_text().splitlines()]
    assert list(read_samples(live.store, KEYS)) == taken


def test_a_store_that_refuses_does_not_crash_the_agent(attempt: Attempt, clock: FakeClock) -> None:
    def refuse(call: str, key: str) -> None:
        raise StoreRefusedError("no permission")

    attempt.faults.before = refuse
    attempt.print(b"x")
    pump = attempt.pump()
    run(pump, clock, 60)
    assert len(attempt.metrics.read_bytes().splitlines()) == 12


def test_a_bug_reaches_the_supervisor(live: Attempt) -> None:
    def bug() -> list[int]:
        raise ZeroDivisionError("bug")

    pump = live.pump(pids=bug)
    pump.start()
    assert not pump.stop(live.clock.now() + 30)
    assert [type(error) for error in live.crashes] == [ZeroDivisionError]
