"""What people and programs ask for: submit, wait, follow, kill, download, and the rest."""

from simagent.client.caller import whoami
from simagent.client.errors import ClientError, UsageError
from simagent.client.files import TaskFiles
from simagent.client.following import LogPiece
from simagent.client.listing import Listed
from simagent.client.tasks import Tasks

__all__ = ["ClientError", "Listed", "LogPiece", "TaskFiles", "Tasks", "UsageError", "whoami"]
