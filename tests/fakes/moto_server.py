"""Moto's server with queues as strict as SQS: run as a program, with moto's own options.

- Of a message's receipts only the newest is good, and hides it only while it is in flight.
- A message is received once, however many ask at the same time.
- None is hidden for longer than 12 hours since it was received, or the seconds of the queue's tag
  `longest`.
- Messages that are empty, or have characters that XML lacks, are refused.

Who reads an object of S3's while it is replaced gets it whole. Of many who write one under a
condition at the same time one wins: moto looks, and writes a moment later. An Auto Scaling group at
its least size does not get smaller.
"""

import re
import threading
import time
from collections.abc import Callable
from typing import Any

from moto import server
from moto.autoscaling.exceptions import ValidationError
from moto.autoscaling.models import AutoScalingBackend
from moto.s3.models import FakeKey
from moto.s3.responses import S3Response
from moto.sqs import models
from moto.sqs.exceptions import InvalidParameterValue, ReceiptHandleIsInvalid

ALLOWED = re.compile("[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")
PATIENCE = 0.1
"""Seconds between two looks for what became visible by itself."""

mutex = threading.RLock()
mark_received = models.Message.mark_received
delete = models.Queue.delete_message
validate = models.SQSBackend._validate_message
receive = models.SQSBackend.receive_message
terminate = AutoScalingBackend.terminate_instance
put = S3Response.put_object
post = S3Response._key_response_post
conditional = threading.RLock()


def of_receipt(queue: Any, receipt: str) -> Any:
    """Give the message whose newest receipt this is, None if it is stale."""
    for message in queue._messages:
        if message.had_receipt_handle(receipt):
            return message if message.receipt_handle == receipt else None
    if receipt in queue.deleted_messages:
        return None
    raise ReceiptHandleIsInvalid


def strict_mark_received(self: Any, visibility_timeout: int | None = None) -> None:
    mark_received(self, visibility_timeout)
    self.received_at = time.time()


def strict_delete(self: Any, receipt_handle: str) -> None:
    with mutex:
        if of_receipt(self, receipt_handle) is not None:
            delete(self, receipt_handle)


def strict_validate(self: Any, queue: Any, message_body: str, *args: Any, **more: Any) -> None:
    if not ALLOWED.fullmatch(message_body):
        raise InvalidParameterValue("The message is empty, or has characters that are not allowed.")
    validate(self, queue, message_body, *args, **more)


def strict_receive(
    self: Any, queue_name: str, count: int, wait_seconds_timeout: int, *args: Any, **more: Any
) -> list[Any]:
    until = time.monotonic() + wait_seconds_timeout
    while True:
        with mutex:
            found = receive(self, queue_name, count, 0, *args, **more)
        left = until - time.monotonic()
        if found or left <= 0:
            return found
        queue = self.get_queue(queue_name)
        with queue._messages_lock:
            queue._messages_lock.wait(min(left, PATIENCE))


def retained(self: Any, queue_name: str, message: Any) -> bool:
    """Tell whether a message is young enough, without counting all of the queue for it."""
    kept = self.get_queue(queue_name).message_retention_period
    return bool(message.sent_timestamp / 1000 + kept > time.time())


def strict_change(self: Any, queue_name: str, receipt_handle: str, visibility_timeout: int) -> None:
    with mutex:
        queue = self.get_queue(queue_name)
        message = of_receipt(queue, receipt_handle)
        if message is None or message.visible:
            raise InvalidParameterValue(
                f"Value {receipt_handle} for parameter ReceiptHandle is invalid. Reason: Message "
                "does not exist or is not available for visibility timeout change."
            )
        longest = float(queue.tags.get("longest", 43_200))
        if time.time() + int(visibility_timeout) - message.received_at > longest:
            raise InvalidParameterValue(
                f"Value {visibility_timeout} for parameter VisibilityTimeout is invalid. Reason: "
                f"Total VisibilityTimeout for the message is beyond the limit [{longest:g} seconds]"
            )
        message.change_visibility(int(visibility_timeout))


def keep(self: Any, garbage: bool = False) -> None:
    """Leave an object's content to its readers: it ends with the last of them."""
    self.disposed = True


def one_wins(write: Callable[..., Any]) -> Callable[..., Any]:
    """Let one condition at a time be looked at and written on."""

    def alone(self: Any, *args: Any, **more: Any) -> Any:
        if not any(self.headers.get(name) for name in ("If-Match", "If-None-Match")):
            return write(self, *args, **more)
        with conditional:
            return write(self, *args, **more)

    return alone


def strict_terminate(self: Any, instance_id: str, should_decrement: bool) -> Any:
    groups = self.autoscaling_groups.values()
    of = [g for g in groups if instance_id in (s.instance.id for s in g.instance_states)]
    if not of:
        raise ValidationError(
            f"Instance Id not found - No managed instance found for instance ID {instance_id}"
        )
    if should_decrement and of[0].desired_capacity <= of[0].min_size:
        raise ValidationError(
            f"Currently, desiredSize equals minSize ({of[0].min_size}). Terminating instance "
            "without replacement will violate group's min size constraint. Either set "
            "shouldDecrementDesiredCapacity flag to false or lower group's min size."
        )
    return terminate(self, instance_id, should_decrement)


if __name__ == "__main__":
    for of, name, stricter in (
        (models.Message, "mark_received", strict_mark_received),
        (models.Queue, "delete_message", strict_delete),
        (models.SQSBackend, "_validate_message", strict_validate),
        (models.SQSBackend, "receive_message", strict_receive),
        (models.SQSBackend, "is_message_valid_based_on_retention_period", retained),
        (models.SQSBackend, "change_message_visibility", strict_change),
        (FakeKey, "dispose", keep),
        (S3Response, "put_object", one_wins(put)),
        (S3Response, "_key_response_post", one_wins(post)),
        (AutoScalingBackend, "terminate_instance", strict_terminate),
        # Asked for with each look at each message.
        (models, "unix_time_millis", lambda: time.time() * 1000),
    ):
        setattr(of, name, stricter)
    server.main()
