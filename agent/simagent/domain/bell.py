"""The body of a queue message: it only says that a task may want an agent."""

import json

from simagent.domain.ids import check_id, check_name
from simagent.domain.keys import TaskKeys

FORMAT = 1


class NewerBellError(ValueError):
    """The message was written by a newer version: left for agents that can read it."""


def encode(task: TaskKeys) -> str:
    """Make the message about a task."""
    return json.dumps({"format": FORMAT, "project": task.project, "task": task.id})


def parse(body: str) -> TaskKeys:
    """Read a message.

    Raises ValueError that says what is wrong with it, `NewerBellError` where a newer version wrote
    it in a way this one cannot read.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the message is not JSON") from None
    if not isinstance(fields, dict):
        raise ValueError("the message is not a JSON object")
    try:
        return TaskKeys(check_name(fields["project"]), check_id(fields["task"]))
    except (KeyError, TypeError, ValueError) as error:
        version = fields.get("format", FORMAT)
        if isinstance(version, int) and version > FORMAT:
            raise NewerBellError(f"it has format {version}, this version reads {FORMAT}") from None
        raise ValueError(_what(error)) from None


def _what(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"the message lacks {error.args[0]!r}"
    if isinstance(error, TypeError):
        return "project and task have to be strings"
    return str(error)
