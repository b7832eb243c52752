"""What `simagent show` writes for people."""

from simagent.api.report import full
from simagent.domain.keys import TaskKeys
from simagent.domain.reasons import Reason
from simagent.domain.state import Attempt, State, Status


def attempt(epoch: int, message: str) -> Attempt:
    return Attempt(
        epoch=epoch,
        agent="a",
        version="1",
        started=float(epoch),
        reason=Reason.IMAGE_PULL,
        message=message,
    )


def shown(state: State) -> list[str]:
    return list(full(TaskKeys("default", "01J0000000000000000000TASK"), state, None))


def test_why_an_attempt_was_in_vain_is_shown_while_the_next_one_is_on() -> None:
    attempts = (attempt(1, "registry\x1b away"), attempt(2, ""))
    state = State(
        status=Status.PREPARING, spec_sha256="0" * 64, submitted_at=0.0, attempts=attempts
    )
    lines = shown(state)
    assert "     registry� away" in lines


def test_what_the_task_says_is_not_said_again() -> None:
    state = State(
        status=Status.ERROR,
        spec_sha256="0" * 64,
        submitted_at=0.0,
        reason=Reason.IMAGE_PULL,
        message="registry away; no attempt is left",
        attempts=(attempt(1, "disk away"), attempt(2, "registry away")),
    )
    lines = shown(state)
    assert "     disk away" in lines
    assert sum("registry away" in line for line in lines) == 1


def test_what_is_not_known_yet_is_no_zero_and_the_time_of_a_deletion_no_end() -> None:
    attempts = (attempt(1, ""),)
    state = State(status=Status.RUNNING, spec_sha256="0" * 64, submitted_at=0.0, attempts=attempts)
    assert any("ran -" in line for line in shown(state))
    gone = shown(state.with_(status=Status.DELETED, ended_at=5.0))
    assert any(line.startswith("  deleted   ") for line in gone)
    assert not any(line.startswith("  ended") for line in gone)
