"""How the steps of an attempt ended, for who deals with that afterwards."""

from dataclasses import dataclass

from simagent.domain.reasons import Reason
from simagent.domain.state import Status
from simagent.ports.runtime import StepExit

# What shells and launchers exit with whose programs were ended by SIGTERM or SIGKILL.
_OF_SIGNALS = (9, 15, 128 + 9, 128 + 15)


@dataclass(frozen=True, slots=True)
class Ending:
    """How the steps ended: the outcome, and why where it is not `succeeded`."""

    outcome: Status
    reason: Reason | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Left:
    """How a command ended, for who has to judge its files.

    ``by_itself``: it exited, as one does that has seen to them. ``told_at`` is when it was told
    to, by `simagent.transfer.checkpoint.file_clock`; 0 where it was not, or that is not known.
    """

    by_itself: bool
    told_at: int


def left_by(exit_: StepExit, *, told_at: int) -> Left:
    """Tell in which way a command left its files."""
    code = exit_.exit_code
    by_itself = exit_.signal is None and code is not None and code not in _OF_SIGNALS
    return Left(by_itself, told_at)


class StepLostError(Exception):
    """A step was not run to its own end, through no fault of the task; `reason` names why."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
