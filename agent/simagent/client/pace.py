"""How often a client looks whether something has come."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Polls:
    """Seconds between two looks: they begin with ``first`` and grow.

    Up to ``log`` for who follows a log, ``state`` for who waits for a task's end, ``answer`` for
    who asked an agent something; those look after the task itself every ``holder``.
    """

    first: float
    log: float
    state: float
    answer: float
    holder: float


REMOTE_POLLS = Polls(first=0.5, log=1.0, state=2.0, answer=0.5, holder=3.0)
"""For a store that charges for every look."""
LOCAL_POLLS = Polls(first=0.02, log=0.25, state=0.25, answer=0.2, holder=0.5)
"""For a store on this machine."""
