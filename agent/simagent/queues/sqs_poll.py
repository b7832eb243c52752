"""A long poll that can be left: nothing ends one at SQS before its time is over."""

import threading
from collections.abc import Callable
from contextlib import suppress

from simagent.ports.clock import Wake
from simagent.ports.queue import Message, QueueError


class Poll:
    """One call in a thread of its own; ready, for select(), when it has ended.

    Who waits for it may `leave`: a message that comes all the same is given back at once. The
    thread keeps no process alive: of one that ends meanwhile the message stays hidden as it was
    asked for, and comes again.
    """

    def __init__(
        self, call: Callable[[], Message | None], give_back: Callable[[Message], None]
    ) -> None:
        self._call = call
        self._give_back = give_back
        self._ended = Wake()
        self._mutex = threading.Lock()
        self._left = False
        self._message: Message | None = None
        self._error: Exception | None = None
        threading.Thread(target=self._run, name="sqs-poll", daemon=True).start()

    def fileno(self) -> int:
        """Give the file descriptor."""
        return self._ended.fileno()

    @property
    def ended(self) -> bool:
        """Whether there is a result."""
        return self._ended.is_set()

    def result(self) -> Message | None:
        """Give what came. Raises QueueError."""
        if self._error is not None:
            raise self._error
        return self._message

    def leave(self) -> None:
        """Want nothing of it any more; does not wait."""
        with self._mutex:
            self._left = True
            ended = self._ended.is_set()
        if ended and self._message is not None:
            threading.Thread(target=self._return, name="sqs-return", daemon=True).start()

    def _run(self) -> None:
        try:
            self._message = self._call()
        except Exception as error:  # noqa: BLE001 - raised again by `result`
            self._error = error
        with self._mutex:
            self._ended.set()
            left = self._left
        if left:
            self._return()

    def _return(self) -> None:
        # Else it comes again by itself when its visibility is over.
        with suppress(QueueError):
            if self._message is not None:
                self._give_back(self._message)
