"""What people and programs ask for: submit, wait, follow, kill, download, and the rest."""

from simagent.client.caller import whoami
from simagent.client.client import Client, Listed
from simagent.client.errors import ClientError, UsageError
from simagent.client.files import TaskFiles
from simagent.client.following import LogPiece

__all__ = ["Client", "ClientError", "Listed", "LogPiece", "TaskFiles", "UsageError", "whoami"]
