"""A queue of SQS: a standard queue of each group, and one beside it for the dead letters.

A receiver asks by long polls of up to 20 s, so an idle agent costs one request for each of its
waits. SQS counts in whole seconds: all times are rounded up to the next.
"""

import hashlib
import json
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from simagent.domain.ids import check_name
from simagent.ports.clock import Clock, Waitable
from simagent.ports.queue import Message, QueueRefusedError, QueueUnavailableError
from simagent.queues.sqs_batch import MAX_BYTES, batches, send_batch
from simagent.queues.sqs_calls import LONGEST_POLL, SqsCalls, StaleReceiptError
from simagent.queues.sqs_poll import Poll

DEAD = "-dead"
"""What the name of the dead letters' queue ends with."""

_GROUP = "{group}"
_NAME = re.compile(r"[0-9A-Za-z_-]{1,75}")
_ANSWER_WITHIN = 5.0
"""Seconds that the answer to a poll may be late."""
_MAX_DELAY = 900
_MAX_VISIBILITY = 12 * 3600
_MAX_DEAD, _MAX_REASON = 20_000, 1_000
"""Characters kept of a dead letter, so that it fits into a message however it is written."""
_MOVE_WITHIN = 60
"""Seconds that a message is hidden while it becomes a dead letter."""
_REMEMBERED = 1000
_ENCODING = "simagent.encoding"
_REASON, _RECEIVES = "simagent.reason", "simagent.receives"
# The only characters that SQS takes.
_PLAIN = re.compile("[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")
_NOT_PLAIN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def queue_name(pattern: str, group: str) -> str:
    """Give the name of a group's queue. Raises ValueError for a group that is no valid name.

    Raises `QueueRefusedError` where SQS takes no queue of that name.
    """
    name = pattern.replace(_GROUP, check_name(group))
    if not _NAME.fullmatch(name):
        raise QueueRefusedError(
            f"sqs://{name}: SQS takes up to 75 letters, digits, '-' and '_' in the name of a "
            "queue: use another group or queue"
        )
    return name


class SqsQueue:
    """The queue of one group; its name is ``pattern`` with the group in the place of {group}.

    Cheap to make: SQS is asked by the first call. Safe between threads. Raises as `queue_name`.
    """

    def __init__(
        self,
        pattern: str,
        group: str,
        clock: Clock,
        *,
        region: str | None = None,
        endpoint: str | None = None,
        ca_bundle: Path | None = None,
    ) -> None:
        self.name = queue_name(pattern, group)
        self._clock = clock
        self._calls = SqsCalls(region, endpoint, ca_bundle)
        self._mutex = threading.Lock()
        self._rejected: OrderedDict[bytes, None] = OrderedDict()

    def send(self, body: str, *, delay: float = 0.0) -> None:
        """Add a message, visible after ``delay`` seconds, 15 minutes at most."""
        fields = _packed(body, {})
        seconds = min(math.ceil(delay), _MAX_DELAY)
        self._calls.on_queue(self.name, "send_message", DelaySeconds=seconds, **fields)

    def send_many(self, bodies: Sequence[str]) -> None:
        """Add messages, ten with each call. Where it raises, some may have been added."""
        for entries in batches([_packed(body, {}) for body in bodies]):
            send_batch(self._calls, self.name, entries)

    def receive(self, *, visibility: float, wait: float, wake: Waitable) -> Message | None:
        """Take one visible message and hide it from others for ``visibility`` seconds.

        Waits up to ``wait`` seconds; a ``wake`` that is ready goes before any message. A poll that
        a wake cut short goes on at SQS, and gives back what it gets: that counts as received.
        """
        deadline = self._clock.now() + wait
        while not self._clock.wait(0, wake):
            left = max(0.0, deadline - self._clock.now())
            seconds = min(LONGEST_POLL, math.ceil(left))
            poll = Poll(
                partial(self._take, math.ceil(visibility), seconds),
                lambda message: self.hide(message.receipt, 0.0),
            )
            self._clock.wait(seconds + _ANSWER_WITHIN, wake, poll)
            if self._clock.wait(0, wake):
                poll.leave()
                break
            if not poll.ended:
                poll.leave()
                raise QueueUnavailableError(f"sqs://{self.name} does not answer")
            message = poll.result()
            if message is not None or self._clock.now() >= deadline:
                return message
        return None

    def hide(self, receipt: str, seconds: float) -> None:
        """Let the message become visible ``seconds`` from now; 0 is at once.

        Raises `QueueRefusedError` where it would be hidden for more than 12 hours in all.
        """
        self._hide(receipt, seconds)

    def delete(self, receipt: str) -> None:
        """Remove the message."""
        self._with_receipt("delete_message", receipt)

    def reject(self, message: Message, reason: str) -> None:
        """Move the message to the dead letters, with the reason.

        Of those alike this object sends one there: nobody can look into a queue of SQS. Raises
        QueueError where that fails; the message comes again then.
        """
        # SQS deletes by a stale receipt without a word: this tells whether it is one.
        if not self._hide(message.receipt, _MOVE_WITHIN):
            return
        key = hashlib.sha256(json.dumps([message.body, reason]).encode()).digest()
        with self._mutex:
            known = key in self._rejected
        if not known:
            why = _NOT_PLAIN.sub("?", reason[:_MAX_REASON]) or "unknown"
            notes = {_REASON: why, _RECEIVES: str(message.receives)}
            fields = _packed(message.body[:_MAX_DEAD], notes)
            self._calls.on_queue(self.name + DEAD, "send_message", **fields)
            self._remember(key)
        self.delete(message.receipt)

    def find(self) -> None:
        """Look for the queue and that of its dead letters. Raises QueueError."""
        for name in (self.name, self.name + DEAD):
            self._calls.find(name)

    def check(self) -> str:
        """Tell how many messages wait, from both queues. Raises QueueError."""
        counts = []
        for name in (self.name, self.name + DEAD):
            wanted = "ApproximateNumberOfMessages"
            answer = self._calls.on_queue(name, "get_queue_attributes", AttributeNames=[wanted])
            counts.append(answer["Attributes"][wanted])
        return f"{counts[0]} messages wait, {counts[1]} dead letters"

    def _take(self, visibility: int, seconds: int) -> Message | None:
        answer = self._calls.on_queue(
            self.name,
            "receive_message",
            MaxNumberOfMessages=1,
            VisibilityTimeout=min(visibility, _MAX_VISIBILITY),
            WaitTimeSeconds=seconds,
            # Deprecated for a longer name that older servers of this kind do not know.
            AttributeNames=["ApproximateReceiveCount"],
            MessageAttributeNames=[_ENCODING],
        )
        for message in answer.get("Messages", []):
            receives = int(message.get("Attributes", {}).get("ApproximateReceiveCount", 1))
            return Message(unpacked(message), str(message["ReceiptHandle"]), receives)
        return None

    def _hide(self, receipt: str, seconds: float) -> bool:
        whole = min(max(0, math.ceil(seconds)), _MAX_VISIBILITY)
        return self._with_receipt("change_message_visibility", receipt, VisibilityTimeout=whole)

    def _with_receipt(self, operation: str, receipt: str, **fields: object) -> bool:
        """Do something with a received message; False where the receipt is stale."""
        try:
            self._calls.on_queue(self.name, operation, ReceiptHandle=receipt, **fields)
        except StaleReceiptError:
            return False
        return True

    def _remember(self, key: bytes) -> None:
        with self._mutex:
            self._rejected[key] = None
            while len(self._rejected) > _REMEMBERED:
                self._rejected.popitem(last=False)


def _packed(body: str, notes: Mapping[str, str]) -> dict[str, Any]:
    """Make the fields that send a text with notes beside it, in characters that SQS takes."""
    if not _PLAIN.fullmatch(body):
        body, notes = json.dumps(body), {**notes, _ENCODING: "json"}
    beside = (f"{key}String{value}" for key, value in notes.items())
    size = len(body.encode()) + sum(len(text.encode()) for text in beside)
    if size > MAX_BYTES:
        raise QueueRefusedError(f"a message of {size} bytes: SQS takes at most {MAX_BYTES}")
    values = {key: {"DataType": "String", "StringValue": value} for key, value in notes.items()}
    return {"MessageBody": body, **({"MessageAttributes": values} if values else {})}


def unpacked(message: Mapping[str, Any]) -> str:
    """Give the text of a message as SQS delivers it; anybody may have sent it, marked wrongly."""
    body = str(message["Body"])
    if _ENCODING not in message.get("MessageAttributes", {}):
        return body
    try:
        text = json.loads(body)
    except (ValueError, RecursionError):
        return body
    return text if isinstance(text, str) else body
