"""The Python client: what `from simagent import Client` gives, and the command line stands on."""

from simagent.api.agents import AgentInfo
from simagent.api.array import Array
from simagent.api.client import Client
from simagent.api.fields import SpecFields
from simagent.api.task import Listing, Task
from simagent.api.waiting import Progress
from simagent.client.asking import NoAnswerError
from simagent.client.errors import ClientError, TaskFailedError, UsageError, WaitTimeoutError
from simagent.client.following import LogPiece
from simagent.config import ConfigError
from simagent.domain.live import Item
from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.domain.state import State, Status
from simagent.ports.queue import QueueError, QueueRefusedError, QueueUnavailableError
from simagent.ports.store import StoreError, StoreRefusedError, StoreUnavailableError

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
]
