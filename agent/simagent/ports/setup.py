"""Making what a fleet's engines need: what was found, and what was done about it."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "made", "changed", "planned", "differs", "note", "skipped"]


@dataclass(frozen=True, slots=True)
class Way:
    """How to go about it: ``update`` sets right what is there and differs, ``dry`` does nothing."""

    update: bool = False
    dry: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a fleet needs, and how it is now.

    `planned` would have been made or changed, `differs` was left as it is, `skipped` is what the
    server does not have.
    """

    what: str
    verdict: Verdict
    text: str
