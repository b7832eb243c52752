"""Members of clusters that end by themselves: they stay for a head, and for its ranks."""

import json
from collections.abc import Iterator
from pathlib import Path
from subprocess import TimeoutExpired

import pytest

from fakes.memberlab import MemberLab, pid_in, wait_for
from fakes.steps import alive
from simagent.cluster.connection import Connection
from simagent.cluster.messages import Departs, Exited, Started

TIMES = json.dumps({"heartbeat_every": 1.0, "renew_every": 0.5, "agent_ttl": 3.0, "lease_ttl": 2.0})


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[MemberLab]:
    lab = MemberLab(tmp_path)
    lab.settings = {"TIMES": TIMES}
    yield lab
    lab.end()


def stays(lab: MemberLab, seconds: float) -> bool:
    assert lab.process is not None
    try:
        lab.process.wait(seconds)
    except TimeoutExpired:
        return True
    return False


def ended(lab: MemberLab) -> int:
    assert lab.process is not None
    return lab.process.wait(60)


def see(connection: Connection, what: type) -> object:
    """Wait for something that a member tells."""
    while not isinstance(event := connection.next(30.0), what):
        assert event is not None
    return event


def test_a_member_goes_when_its_cluster_has_had_no_head_for_long(lab: MemberLab) -> None:
    told = lab.folder / "told"
    lab.settings |= {
        "IDLE_TIMEOUT": "1",
        "IDLE_ACTION": "command",
        "IDLE_COMMAND": json.dumps(["touch", str(told)]),
    }
    lab.ready()
    for beat in range(30):  # a head that renews its lease
        lab.lead(beat)
        assert stays(lab, 0.2)
    assert ended(lab) == 0
    assert told.exists()
    assert lab.record() is None


def test_ranks_hold_a_member(lab: MemberLab) -> None:
    lab.settings |= {"IDLE_TIMEOUT": "1"}
    lab.ready()
    with Connection(lab.relay(), lab.enter("sleep 10")) as connection:
        see(connection, Started)
        assert stays(lab, 5.0), "its head is long dead by then"
        see(connection, Exited)
    assert ended(lab) == 0


def test_a_member_whose_lifetime_is_over_takes_no_more_ranks_and_ends_with_those(
    lab: MemberLab,
) -> None:
    lab.settings |= {"MAX_LIFETIME": "10"}
    lab.ready()
    run = lab.enter("until [ -e go ]; do sleep 0.05; done")
    with Connection(lab.relay(), run) as connection:
        see(connection, Started)
        wait_for(lambda: (r := lab.record()) is not None and "lifetime" in r.trouble, "its word")
        (lab.work / "go").touch()
        see(connection, Exited)
    assert ended(lab) == 0


def test_after_the_grace_the_head_is_told_and_the_ranks_are_ended(lab: MemberLab) -> None:
    lab.settings |= {"MAX_LIFETIME": "10", "MAX_LIFETIME_GRACE": "1"}
    lab.ready()
    with Connection(lab.relay(), lab.enter("echo $$ >pid; exec sleep 600")) as connection:
        see(connection, Started)
        pid = pid_in(lab.work / "pid")
        departs = see(connection, Departs)
        assert isinstance(departs, Departs)
        assert departs.why == "the lifetime of 10 s is over, and the grace after it"
        assert ended(lab) == 0
        assert not alive(pid)
    assert any('"life_over"' in line for line in lab.lines)
