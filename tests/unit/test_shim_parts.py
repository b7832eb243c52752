import os
import signal
import subprocess
import time

from simagent.shim import Attention, Process, descendants, look, send


def test_an_agent_that_touches_its_mark_is_there() -> None:
    attention = Attention(100.0, now=0.0)
    assert not any(attention.look(mark, now=25.0 * mark) for mark in range(1, 100))


def test_without_a_touch_the_limit_is_reached() -> None:
    attention = Attention(100.0, now=0.0)
    looks = [attention.look(1, now) for now in (0.0, 25.0, 50.0, 75.0, 99.0, 100.0)]
    assert looks == [False] * 5 + [True]


def test_a_touch_starts_the_limit_anew() -> None:
    attention = Attention(100.0, now=0.0)
    marks = {0.0: 1, 25.0: 1, 50.0: 1, 75.0: 2, 100.0: 2, 125.0: 2, 150.0: 2}
    assert not any(attention.look(mark, now) for now, mark in marks.items())
    assert attention.look(2, now=175.0)


def test_a_mark_that_goes_back_is_a_touch() -> None:
    attention = Attention(100.0, now=0.0)
    attention.look(1_000, now=0.0)
    attention.look(1_000, now=40.0)
    attention.look(5, now=80.0)
    assert not attention.look(5, now=120.0)


def test_time_in_which_nothing_ran_does_not_count() -> None:
    attention = Attention(100.0, now=0.0)
    attention.look(1, now=0.0)
    assert not attention.look(1, now=1_000_000.0)


def test_a_missing_mark_is_a_missing_agent() -> None:
    attention = Attention(100.0, now=0.0)
    assert [attention.look(None, now) for now in (25.0, 50.0, 75.0, 100.0)][-1]


def test_long_limits_are_looked_at_often_enough() -> None:
    assert Attention(1800.0, now=0.0).due(now=0.0) == 30.0
    assert Attention(10.0, now=0.0).due(now=1.0) == 1.5
    assert Attention(10.0, now=0.0).due(now=60.0) == 0.0


def test_a_name_of_spaces_and_brackets_does_not_confuse() -> None:
    fields = b"S 11 22 33 " + b"0 " * 15 + b"4242 0 0"
    process = Process(7, b"7 (a) b (c)) " + fields)
    assert (process.state, process.parent, process.session) == ("S", 11, 33)
    assert process.start == 4242


def test_a_recycled_number_is_not_signalled() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        process = look(child.pid)
        assert process is not None
        process.start += 1
        assert not send(process, signal.SIGKILL)
        assert child.poll() is None
        process.start -= 1
        assert send(process, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert not send(process, signal.SIGKILL)
    assert look(child.pid) is None


def test_descendants_are_found_through_generations() -> None:
    with subprocess.Popen(["sh", "-c", "sh -c 'sleep 600 & wait' & wait"]) as child:
        deadline = time.monotonic() + 30
        while len(found := descendants(child.pid)) < 2:
            assert time.monotonic() < deadline
        assert os.getpid() not in {process.pid for process in found}
        for process in [*found, look(child.pid)]:
            assert process is not None
            send(process, signal.SIGKILL)
