"""What goes wrong when something is asked for."""

from simagent.domain.state import State


class ClientError(Exception):
    """What was asked for cannot be done; the message says why, and what to do."""


class UsageError(ClientError):
    """What was asked for is wrong in itself: nothing was written."""


class WaitTimeoutError(ClientError, TimeoutError):
    """A task had not ended when the time to wait for it was over; it goes on."""


class TaskFailedError(ClientError):
    """A task that had to succeed did not; the message ends with the last lines of its stderr.

    ``task_id`` names it, ``state`` is its last one, with ``reason`` and ``message``.
    """

    def __init__(self, message: str, *, task_id: str, state: State) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.state = state
