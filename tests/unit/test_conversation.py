"""What a member says to its head over one connection, and what it makes of silence."""

import errno
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from fakes.clock import FastClock
from simagent.cluster.conversation import Conversation
from simagent.cluster.duties import Hold
from simagent.cluster.messages import (
    Beat,
    Check,
    Checked,
    Departs,
    Enter,
    Exited,
    Fetch,
    Fetched,
    Leave,
    Sampled,
)
from simagent.domain.cluster import Spanning
from simagent.ports.clock import Waitable, Wake

TIMES = 5.0
"""The silence of 15 s is 3 s then: this thread, too, may have to wait for a core."""


@dataclass
class FakeRun:
    """A run that ends ``takes`` seconds after it was told to; some of the clock's."""

    clock: FastClock
    takes: float = 3.0
    taken: Wake = field(default_factory=Wake)
    waits: int = 0
    samples: int = 0
    left: list[tuple[float, str]] = field(default_factory=list)
    released: bool = False
    ends_at: float | None = None

    def wait(self, timeout: float | None, *wakes: Waitable) -> Exited | None:
        self.waits += 1
        if self.ends_at is not None:
            left = self.ends_at - self.clock.now()
            timeout = left if timeout is None else min(timeout, left)
        self.clock.wait(max(0.0, timeout or 0.0), *wakes)
        over = self.ends_at is not None and self.clock.now() >= self.ends_at
        return Exited(code=7) if over else None

    def sample(self) -> Sampled:
        self.samples += 1
        if self.samples == 1:
            raise OSError(errno.EMFILE, "no more files")
        return Sampled(sample={"host": "vm2"})

    def leave(self, grace: float, why: str) -> None:
        if not self.left:
            self.ends_at = self.clock.now() + self.takes
        self.left.append((grace, why))

    def release(self) -> None:
        self.released = True


@dataclass
class FakeDuties:
    run: FakeRun
    departs: Wake = field(default_factory=Wake)

    def departure(self) -> Departs:
        return Departs(why="the machine goes", left=9.0)

    def check(self, request: Check) -> Checked:
        raise RuntimeError("a bug\nof two lines")

    def fetch(self, request: Fetch, gone: Waitable) -> Fetched:
        return Fetched()

    def enter(self, request: Enter, gone: Waitable) -> Hold:
        return self.run


class Talk:
    """A conversation in a thread, and its other side."""

    def __init__(self) -> None:
        self.clock = FastClock(TIMES)
        self.run = FakeRun(self.clock)
        self.stop = Wake()
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(30.0)
        self._said = self.ours.makefile()
        self.began = self.clock.now()
        self.duties = FakeDuties(self.run)
        talk = Conversation(theirs, self.duties, self.clock, self.stop)
        self._theirs = theirs
        self.thread = threading.Thread(target=talk.run)
        self.thread.start()

    def say(self, *words: Enter | Check | Fetch | Leave | Beat) -> None:
        for word in words:
            self.ours.sendall(word.model_dump_json().encode() + b"\n")

    def hear(self, event: str) -> dict[str, object]:
        """Listen for an event, beating meanwhile as a head does."""
        while True:
            self.say(Beat())
            told = json.loads(self._said.readline())
            if told["event"] == event:
                assert isinstance(told, dict)
                return told

    def hang_up(self) -> None:
        self._said.close()
        self.ours.close()

    def over(self) -> None:
        self.thread.join(30.0)
        assert not self.thread.is_alive()

    def end(self) -> None:
        self.stop.set()
        self.over()
        self._theirs.close()
        self.hang_up()


@pytest.fixture
def talk() -> Iterator[Talk]:
    talk = Talk()
    yield talk
    talk.end()


ENTER = Enter(
    entry="x",
    attempt=Spanning(project="default", task="melt", epoch=1),
    agent="vm1",
    step=0,
    runtime="process",
    image=None,
    folder="work",
    uid=0,
    gid=0,
    env={},
    command="true",
    grace=4.0,
    sample_every=1.0,
)


def test_a_run_is_sampled_as_far_as_that_is_possible_until_it_is_left_and_over(talk: Talk) -> None:
    talk.say(ENTER)
    talk.hear("started")
    assert talk.hear("sampled")["sample"] == {"host": "vm2"}
    talk.say(Leave(grace=2.0))
    assert talk.hear("exited")["code"] == 7
    talk.over()
    assert talk.run.left == [(2.0, "the head ended it")]
    assert talk.run.released


def test_a_head_is_told_once_that_the_host_goes_away(talk: Talk) -> None:
    talk.say(ENTER)
    talk.hear("started")
    talk.duties.departs.set()
    assert talk.hear("departs") == {"event": "departs", "why": "the machine goes", "left": 9.0}
    talk.hear("sampled")
    talk.say(Leave(grace=2.0))
    assert talk.hear("exited")["code"] == 7


def test_a_leave_takes_no_longer_than_the_step_may(talk: Talk) -> None:
    talk.say(ENTER, Leave(grace=99.0))
    talk.hear("exited")
    assert talk.run.left == [(4.0, "the head ended it")]


def test_a_head_that_hangs_up_is_not_waited_for_in_haste(talk: Talk) -> None:
    talk.say(ENTER)
    talk.hear("started")
    before = talk.run.waits
    talk.hang_up()
    talk.over()
    assert {why for _, why in talk.run.left} == {"the head closed the connection"}
    assert talk.run.waits - before < 20
    assert talk.run.released


def test_a_head_that_falls_silent_is_lost(talk: Talk) -> None:
    talk.say(ENTER)
    began = talk.clock.now()
    talk.over()
    assert {why for _, why in talk.run.left} == {"the head fell silent"}
    assert 15.0 <= talk.clock.now() - began < 60.0


def test_another_connection_that_has_the_run_ends_this_one(talk: Talk) -> None:
    talk.say(ENTER)
    talk.hear("started")
    talk.run.taken.set()
    talk.over()
    assert talk.run.left == []


def test_an_agent_that_stops_leaves_the_run_alone(talk: Talk) -> None:
    talk.say(ENTER)
    talk.hear("started")
    talk.stop.set()
    talk.over()
    assert talk.run.left == []


def test_a_bug_is_said_in_a_line_and_ends_nothing_else(talk: Talk) -> None:
    talk.say(Check(folder="a", token="b", uid=0, version="1"))
    told = talk.hear("refused")
    assert told["reason"] == "agent_error"
    assert "\n" not in str(told["why"])


def test_a_line_that_never_ends_is_not_kept(talk: Talk) -> None:
    talk.ours.settimeout(2.0)
    with pytest.raises(TimeoutError):  # nobody reads any more
        talk.ours.sendall(b"x" * (8 << 20))
    talk.over()


def test_who_says_nothing_at_all_is_let_go(talk: Talk) -> None:
    talk.over()
    assert talk.clock.now() - talk.began >= 15.0
