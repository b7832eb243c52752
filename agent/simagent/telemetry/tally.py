"""What is counted over the life of an agent, for those who watch over it: docs/metrics.md."""

import threading
from collections.abc import Mapping
from enum import StrEnum
from typing import Self


class Described(StrEnum):
    """Names of metrics, each with what it means and the labels that it has."""

    explanation: str
    labels: tuple[str, ...]

    def __new__(cls, code: str, explanation: str = "", labels: str = "") -> Self:
        """Attach the explanation and the names of the labels to the name."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.explanation = explanation
        member.labels = tuple(labels.split())
        return member


class Count(Described):
    """What is counted. Names are those of Prometheus, without `simagent_` and `_total`."""

    ATTEMPTS_CLAIMED = "attempts_claimed", "Tasks that the agent took."
    ATTEMPTS_ADOPTED = "attempts_adopted", "Attempts that it went on with after a restart."
    TASKS_ENDED = (
        "tasks_ended",
        "Tasks that ended here, by status and reason.",
        "outcome reason",
    )
    TASKS_REQUEUED = "tasks_requeued", "Tasks that it gave back to the queue, by reason.", "reason"
    LEASES_LOST = "leases_lost", "Attempts that were given up: another has the task."
    LEASE_RENEWALS = "lease_renewals", "Leases renewed."
    LEASE_RENEWAL_FAILURES = "lease_renewal_failures", "Renewals that were not answered."
    STORE_CALLS = "store_calls", "Calls to the store."
    STORE_CALL_FAILURES = (
        "store_call_failures",
        "Calls that the store did not answer, or refused.",
    )
    STORE_SENT_BYTES = "store_sent_bytes", "Bytes written to the store."
    STORE_RECEIVED_BYTES = "store_received_bytes", "Bytes read from the store."
    QUEUE_CALLS = "queue_calls", "Calls to the queue."
    QUEUE_CALL_FAILURES = (
        "queue_call_failures",
        "Calls that the queue did not answer, or refused.",
    )


Counted = tuple[Count, tuple[str, ...]]
"""What was counted, and the values of its labels."""


class Tally:
    """Adds up. Any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[Counted, int] = {(count, ()): 0 for count in Count if not count.labels}

    def add(self, count: Count, *labels: str, amount: int = 1) -> None:
        """Count something, with a value for each of its labels."""
        assert len(labels) == len(count.labels)
        with self._lock:
            self._sums[count, labels] = self._sums.get((count, labels), 0) + amount

    def read(self) -> Mapping[Counted, int]:
        """Give all sums so far."""
        with self._lock:
            return dict(self._sums)
