"""Packing beside commands that run."""

import threading

import pytest

from simagent.transfer.manners import Manners


class Thread:
    """A thread as the kernel accounts for it."""

    def __init__(self) -> None:
        self.ran = self.waited = 0.0
        self.slept: list[float] = []
        self.yields = True
        self.manners = Manners(lambda: self.yields, times=self._times, sleep=self.slept.append)

    def _times(self) -> tuple[float, float]:
        return self.ran, self.waited

    def work(self, ran: float, waited: float) -> list[float]:
        """Work for so long; give for how long it rested then."""
        self.ran += ran
        self.waited += waited
        before = len(self.slept)
        self.manners.rest()
        return self.slept[before:]


@pytest.fixture
def thread() -> Thread:
    thread = Thread()
    thread.manners.rest()  # from here on it is looked at
    return thread


def test_who_had_to_wait_for_a_core_rests_for_much_longer_than_it_ran(thread: Thread) -> None:
    (slept,) = thread.work(0.01, 0.01)
    assert slept == pytest.approx(0.19)
    (slept,) = thread.work(0.02, 0.003)
    assert slept == pytest.approx(0.38)


def test_it_rests_at_most_so_long_that_it_hears_when_nobody_runs_any_more(thread: Thread) -> None:
    assert thread.work(10.0, 10.0) == [0.5]


def test_who_has_a_core_to_itself_does_not_rest(thread: Thread) -> None:
    assert thread.work(0.01, 0.0005) == []


def test_who_waits_for_something_else_does_not_rest(thread: Thread) -> None:
    assert thread.work(0.0, 0.0) == []


def test_where_no_commands_run_nobody_rests(thread: Thread) -> None:
    thread.yields = False
    assert thread.work(0.01, 0.01) == []


def test_threads_are_looked_at_one_by_one() -> None:
    slept: list[float] = []
    times = {threading.get_ident(): (1.0, 0.0)}
    manners = Manners(
        lambda: True, times=lambda: times.get(threading.get_ident(), (5.0, 5.0)), sleep=slept.append
    )
    manners.rest()
    other = threading.Thread(target=manners.rest)
    other.start()
    other.join()
    manners.rest()
    assert slept == []


def test_the_kernel_tells_how_long_this_thread_ran() -> None:
    manners = Manners(lambda: True)
    manners.rest()
    sum(range(100_000))
    manners.rest()  # whatever it has to say, it can be read
