"""What lies in a bucket and in queues, for the recorder. Knows nothing of simagent.

The bucket's objects are copied into a folder, where they are looked at as those of a store that is
one; what has not changed since is not fetched again. All is asked of the servers themselves.
"""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boto3.session import Session
from botocore.config import Config

AT_A_TIME = 8


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Where the run's bucket and queue are; credentials are found as boto3 finds them."""

    s3: str
    bucket: str
    prefix: str
    sqs: str
    queue: str
    region: str

    def client(self, service: str) -> Any:
        """Make a client for S3 or SQS that tries again, as nothing is to be missed."""
        return Session().client(
            service,
            endpoint_url=self.s3 if service == "s3" else self.sqs,
            region_name=self.region,
            config=Config(
                retries={"total_max_attempts": 5, "mode": "standard"},
                max_pool_connections=2 * AT_A_TIME,
                s3={"addressing_style": "path"},
            ),
        )


class Mirror:
    """The bucket as a folder, and what the queues hold. Safe between threads."""

    def __init__(self, servers: Servers, folder: Path) -> None:
        self._servers = servers
        self._folder = folder
        self._s3, self._sqs = servers.client("s3"), servers.client("sqs")
        self._known: dict[str, str] = {}
        self._mutex = threading.Lock()

    @classmethod
    def of(cls, run: Path) -> "Mirror | None":
        """Make the mirror of a run whose file ``servers`` says where they are."""
        note = run / "servers"
        if not note.exists():
            return None
        return cls(Servers(**json.loads(note.read_text())), run / "store")

    def refresh(self, *endings: str) -> None:
        """Make the folder like the bucket; of the objects that are new, fetch these alone."""
        with self._mutex:
            listed = self._listed()
            wanted = [
                key
                for key, etag in listed.items()
                if self._known.get(key) != etag and (not endings or key.endswith(endings))
            ]
            with ThreadPoolExecutor(AT_A_TIME) as pool:
                for key, etag in pool.map(self._fetch, wanted):
                    if etag is not None:
                        self._known[key] = etag
            for key in set(self._known) - set(listed):
                self._path(key).unlink(missing_ok=True)
                del self._known[key]
            for key in listed:  # that it is there can be seen, if not what it is
                if key not in self._known and "/a/" not in key:
                    self._path(key).parent.mkdir(parents=True, exist_ok=True)

    def markers(self) -> list[str]:
        """List what stands for tasks that have not ended."""
        return [key for key in self._listed("open/") if key.count("/") == 2]

    def bells(self) -> int:
        """Count the messages: visible, hidden and delayed."""
        url = self._sqs.get_queue_url(QueueName=self._servers.queue)["QueueUrl"]
        answer = self._sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
        kinds = ("", "NotVisible", "Delayed")
        counts = (answer["Attributes"][f"ApproximateNumberOfMessages{kind}"] for kind in kinds)
        return sum(map(int, counts))

    def dead(self) -> list[str]:
        """Read the dead letters, which stay there."""
        url = self._sqs.get_queue_url(QueueName=f"{self._servers.queue}-dead")["QueueUrl"]
        found: dict[str, Any] = {}
        while True:
            answer = self._sqs.receive_message(
                QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=60
            )
            if not answer.get("Messages"):
                break
            found |= {message["MessageId"]: message for message in answer["Messages"]}
        for message in found.values():
            self._sqs.change_message_visibility(
                QueueUrl=url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0
            )
        return [message["Body"] for message in found.values()]

    def _listed(self, prefix: str = "") -> dict[str, str]:
        base = self._servers.prefix + prefix
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._servers.bucket, Prefix=base
        )
        return {
            entry["Key"].removeprefix(self._servers.prefix): entry["ETag"]
            for page in pages
            for entry in page.get("Contents", [])
        }

    def _fetch(self, key: str) -> tuple[str, str | None]:
        try:
            answer = self._s3.get_object(
                Bucket=self._servers.bucket, Key=self._servers.prefix + key
            )
        except self._s3.exceptions.NoSuchKey:
            return key, None
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"..{path.name}.{threading.get_ident()}")
        part.write_bytes(answer["Body"].read())
        os.replace(part, path)
        return key, str(answer["ETag"])

    def _path(self, key: str) -> Path:
        return self._folder / key
