"""Messages sent to SQS ten at a time: one call, and one charge, for all of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simagent.ports.queue import QueueRefusedError, QueueUnavailableError
from simagent.queues.sqs_calls import SqsCalls

MAX_BYTES = 256 * 1024
"""Bytes that a message, or those of one call together, may have."""
_MOST = 10
_TRIES = 3

Fields = Mapping[str, Any]
"""What one message is sent with."""


def batches(messages: Sequence[Fields]) -> Iterator[list[Fields]]:
    """Yield messages in batches that SQS takes, in their order."""
    batch: list[Fields] = []
    room = MAX_BYTES
    for fields in messages:
        size = _size(fields)
        if batch and (len(batch) == _MOST or size > room):
            yield batch
            batch, room = [], MAX_BYTES
        batch.append(fields)
        room -= size
    if batch:
        yield batch


def send_batch(calls: SqsCalls, name: str, messages: Sequence[Fields]) -> None:
    """Send what fits into one call, again what SQS did not take at once. Raises QueueError."""
    left = {str(number): fields for number, fields in enumerate(messages)}
    for _ in range(_TRIES):
        entries = [{"Id": number, **fields} for number, fields in left.items()]
        failed = calls.on_queue(name, "send_message_batch", Entries=entries).get("Failed", [])
        for failure in failed:
            if failure.get("SenderFault"):
                raise QueueRefusedError(f"sqs://{name}: {_what(failure)}")
        left = {failure["Id"]: left[failure["Id"]] for failure in failed}
        if not left:
            return
    raise QueueUnavailableError(
        f"sqs://{name}: {len(left)} of {len(messages)} messages were not taken: {_what(failed[0])}"
    )


def _what(failure: Mapping[str, Any]) -> str:
    return f"{failure.get('Code', 'unknown')}: {failure.get('Message', '')}".rstrip(": ")


def _size(fields: Fields) -> int:
    size = len(fields["MessageBody"].encode())
    for name, value in fields.get("MessageAttributes", {}).items():
        size += len(f"{name}{value['DataType']}{value['StringValue']}".encode())
    return size
