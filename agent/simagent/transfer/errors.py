"""What goes wrong with inputs and outputs."""

from typing import ClassVar

from simagent.domain.reasons import Reason


class InputError(Exception):
    """An input cannot be laid into the task's folder; `reason` names why."""

    reason: ClassVar[Reason]


class InputMissingError(InputError):
    """An input does not exist or cannot be reached."""

    reason = Reason.INPUT_MISSING


class InputRejectedError(InputError):
    """An input is corrupt, too large, or unsafe to lay where it wants to go."""

    reason = Reason.INPUT_REJECTED


class OutputChangedError(Exception):
    """An output does not have the checksum that its manifest tells."""


class TooManyOutputsError(OSError):
    """A folder cannot be published: there is more in it than a manifest may list."""
