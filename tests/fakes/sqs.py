"""Queues of SQS in moto, and what lies in them."""

from typing import Any

from boto3.session import Session

from fakes.aws import Moto
from simagent.ports.clock import Clock
from simagent.queues.sqs import DEAD, SqsQueue, queue_name, unpacked
from simagent.queues.sqs_setup import create_queue


class ListedQueue(SqsQueue):
    """A queue whose dead letters can be read, as nobody but a test need do."""

    def __init__(self, moto: Moto, pattern: str, group: str, clock: Clock) -> None:
        super().__init__(pattern, group, clock, region=moto.region, endpoint=moto.endpoint)
        self.moto = moto
        self.name = queue_name(pattern, group)

    def dead_letters(self) -> list[tuple[str, str]]:
        return [
            (unpacked(message), message["MessageAttributes"]["simagent.reason"]["StringValue"])
            for message in taken(self.moto, self.name + DEAD)
        ]


def make_queue(moto: Moto, pattern: str, clock: Clock, group: str) -> ListedQueue:
    """Make the queue of a group where it is not there, and open it."""
    create_queue(queue_name(pattern, group), region=moto.region, endpoint=moto.endpoint)
    return ListedQueue(moto, pattern, group, clock)


def client(moto: Moto) -> Any:
    return Session().client("sqs", region_name=moto.region, endpoint_url=moto.endpoint)


def taken(moto: Moto, name: str) -> list[dict[str, Any]]:
    """Receive all visible messages of a queue, which stay visible."""
    sqs = client(moto)
    url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
    found: dict[str, dict[str, Any]] = {}
    while True:
        answer = sqs.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=10,
            VisibilityTimeout=60,
            WaitTimeSeconds=0,
            MessageAttributeNames=["All"],
        )
        if not answer.get("Messages"):
            break
        found |= {message["MessageId"]: message for message in answer["Messages"]}
    for message in found.values():
        sqs.change_message_visibility(
            QueueUrl=url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0
        )
    return list(found.values())


def count(moto: Moto, name: str) -> int:
    """Count the messages of a queue: visible, hidden and delayed."""
    sqs = client(moto)
    url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    return sum(
        int(attributes[f"ApproximateNumberOfMessages{kind}"])
        for kind in ("", "NotVisible", "Delayed")
    )
