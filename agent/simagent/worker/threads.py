"""The agent's threads: one that dies of an error stops the agent."""

import threading
from collections.abc import Callable

import structlog

from simagent.domain.events import Event
from simagent.ports.clock import Wake

log = structlog.get_logger()


class CoreThread(threading.Thread):
    """A thread of the agent. ``ended`` is true as soon as its work is done, before it is gone."""

    ended = False


class Threads:
    """Starts threads and notices when one dies of an error.

    They are daemon threads: what must survive the agent's end is written down, not waited for.
    """

    def __init__(self, wake: Wake) -> None:
        self._wake = wake
        self.error: BaseException | None = None

    def start(self, name: str, target: Callable[[], None]) -> CoreThread:
        """Run ``target`` in a thread of its own."""

        def run() -> None:
            try:
                target()
            except BaseException as error:  # noqa: BLE001 - reported, and it ends the agent
                self.crashed(error)
            finally:
                thread.ended = True
                self._wake.set()

        thread = CoreThread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def crashed(self, error: BaseException) -> None:
        """Note that a thread died of an error: the agent stops."""
        if self.error is None:
            self.error = error
        name = threading.current_thread().name
        log.error(Event.AGENT_CRASHED, thread=name, error=repr(error), exc_info=error)
        self._wake.set()
