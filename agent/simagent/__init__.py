"""simagent: the worker agent of a simulation fleet, and the Python client of one.

>>> from simagent import Client
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simagent.api import (
        AgentInfo,
        Array,
        Client,
        ClientError,
        ConfigError,
        Item,
        Listing,
        LogPiece,
        NoAnswerError,
        Progress,
        QueueError,
        QueueRefusedError,
        QueueUnavailableError,
        Reason,
        Spec,
        SpecFields,
        State,
        Status,
        StoreError,
        StoreRefusedError,
        StoreUnavailableError,
        Task,
        TaskFailedError,
        UsageError,
        WaitTimeoutError,
    )

__version__ = "0.1.0"

__all__ = [
    "AgentInfo",
    "Array",
    "Client",
    "ClientError",
    "ConfigError",
    "Item",
    "Listing",
    "LogPiece",
    "NoAnswerError",
    "Progress",
    "QueueError",
    "QueueRefusedError",
    "QueueUnavailableError",
    "Reason",
    "Spec",
    "SpecFields",
    "State",
    "Status",
    "StoreError",
    "StoreRefusedError",
    "StoreUnavailableError",
    "Task",
    "TaskFailedError",
    "UsageError",
    "WaitTimeoutError",
    "__version__",
]


def __getattr__(name: str) -> object:
    """Import the client when it is first named: the agent and `--help` start without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("simagent.api"), name)


def __dir__() -> list[str]:
    return __all__
