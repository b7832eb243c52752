"""Makes what is seen of an agent from outside, and notes its calls to queue and store."""

from functools import partial
from typing import Literal

import structlog

from simagent.config import Config
from simagent.ports.clock import Clock, SystemClock
from simagent.ports.queue import Queue
from simagent.ports.store import Store
from simagent.telemetry.contact import Contact, WatchedQueue, WatchedStore
from simagent.telemetry.tally import Count, Tally
from simagent.worker.observing import Life, first_look
from simagent.worker.snapshot import Source
from simagent.worker.window import Shutter, Window


def open_window(config: Config, role: Literal["agent", "run"]) -> Window:
    """Make the window of an agent, or a `simagent run`, which serves no metrics."""
    clock = SystemClock()
    first = partial(
        first_look,
        "member" if config.role == "member" and role == "agent" else role,
        clock,
        Life(clock),
        group=config.group,
        cluster=config.cluster or "",
    )
    listen = config.metrics_listen if role == "agent" else None
    if listen is None:
        return Window(config.state_dir, clock, first)
    host, _, port = listen.rpartition(":")

    def serve(source: Source) -> Shutter:
        from simagent.worker.metricserver import MetricServer

        return MetricServer(host.strip("[]"), int(port), clock, source)

    return Window(config.state_dir, clock, first, serve)


class Watch:
    """Notes the calls to queue and store; ``tally`` is what is counted, also by others."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self.tally = Tally()
        self._store = Contact(
            "store",
            config.store_url,
            clock,
            self.tally,
            calls=Count.STORE_CALLS,
            failures=Count.STORE_CALL_FAILURES,
        )
        self._queue = Contact(
            "queue",
            config.queue_url,
            clock,
            self.tally,
            calls=Count.QUEUE_CALLS,
            failures=Count.QUEUE_CALL_FAILURES,
        )

    def store(self, store: Store) -> Store:
        """Note the calls to the store, by any of its clients."""
        return WatchedStore(store, self._store)

    def doubt(self, why: str) -> None:
        """Note, and log, that the store did not answer when it was opened."""
        self._store.failed(why)
        structlog.get_logger().warning("the store cannot be used yet", error=why)

    def queue(self, queue: Queue) -> Queue:
        """Note the calls to the queue."""
        return WatchedQueue(queue, self._queue)

    @property
    def of_agent(self) -> tuple[Contact, ...]:
        """How an agent stands with them."""
        return self._store, self._queue

    @property
    def of_member(self) -> tuple[Contact, ...]:
        """How a member of a cluster stands with them: it hears no queue."""
        return (self._store,)
