"""What `simagent doctor` finds."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. Only `missing` keeps the agent from its work; ``fix`` is a command or advice."""

    name: str
    verdict: Literal["ok", "note", "missing"]
    text: str
    fix: str = ""
