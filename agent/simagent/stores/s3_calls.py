"""Calls to S3 by boto3: bounded in time, and their errors in the words of the store's port."""

import base64
import io
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import urllib3.exceptions
from boto3.session import Session
from botocore import exceptions as boto
from botocore.config import Config as BotoConfig
from botocore.loaders import Loader
from botocore.parsers import ResponseParserError
from botocore.session import Session as CoreSession

from simagent.ports.store import StoreRefusedError
from simagent.stores.s3_errors import EXPIRED, WRONG, Place, classify, code_of, stranger

CONNECT, ANSWER = 5.0, 30.0
"""Seconds: to connect, and between two signs of life."""
LEASE_CONNECT, LEASE_ANSWER = 2.0, 5.0
"""The same for the renewals of leases, which are tried again soon."""

_AT_ONCE = 64 << 10
"""Bytes below which a body goes with its request: it would take less time than being asked for."""

_FAILURES = (
    boto.ClientError,
    boto.BotoCoreError,
    RecursionError,  # boto3 looks for a bucket's region by calls that are redirected, too
    ResponseParserError,
    urllib3.exceptions.HTTPError,
)
_SETTINGS = ("create_bucket", "put_bucket", "put_public")
_PROOF = {
    "complete_multipart_upload": "ETag",
    "create_multipart_upload": "UploadId",
    "get_object": "ETag",
    "head_object": "ETag",
    "list_objects_v2": "IsTruncated",
    "put_object": "ETag",
    "upload_part": "ETag",
}
"""What every answer of S3's tells, and a page of somebody else's does not."""


@dataclass(frozen=True, slots=True)
class Access:
    """How a bucket is reached. Credentials and what is None are found as boto3 finds them."""

    endpoint: str | None = None
    region: str | None = None
    path_style: bool | None = None
    """None: where an endpoint is named, which may have no wildcard in its DNS."""
    ca_bundle: Path | None = None
    kms_key: str | None = None
    """Objects are encrypted with this key of KMS's."""
    connect: float = CONNECT
    answer: float = ANSWER


Connect = Callable[[Access, int], Any]
"""Makes a client that tries each call so many times."""


class S3Calls:
    """Calls about one bucket. Cheap to make, and safe between threads.

    ``once`` never repeats a call; ``again`` does, for what may be repeated by anyone.
    """

    def __init__(self, place: Place, access: Access, connect: Connect) -> None:
        self.place = place
        self._access = access
        self._connect = connect
        self._mutex = threading.Lock()
        self._clients: dict[int, Any] = {}
        if access.ca_bundle is not None and not access.ca_bundle.is_file():
            raise StoreRefusedError(f"s3_ca_bundle: there is no file {access.ca_bundle}")

    @property
    def region(self) -> str | None:
        """Where buckets are made; None of a server whose regions nobody has named."""
        if self._access.region is not None or self._access.endpoint is not None:
            return self._access.region
        with self.errors():
            return str(self._client(1).meta.region_name)

    def once(self, operation: str, key: str = "", **fields: Any) -> Any:
        """Call an operation on the bucket, or on the object ``key``. Raises StoreError."""
        return self._call(1, operation, key, fields)

    def again(self, operation: str, key: str = "", **fields: Any) -> Any:
        """Call an operation, three times if need be. Raises StoreError."""
        return self._call(3, operation, key, fields)

    def written(self) -> dict[str, str]:
        """Give what each request that makes an object has to say about it."""
        if self._access.kms_key is None:
            return {}
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self._access.kms_key}

    @contextmanager
    def errors(self, key: str = "", *, conditional: bool = False) -> Iterator[None]:
        """Turn what boto3 raises into StoreErrors."""
        try:
            yield
        except _FAILURES as error:
            if code_of(error) in EXPIRED | WRONG or isinstance(error, boto.NoCredentialsError):
                with self._mutex:  # the next call looks for credentials anew
                    self._clients.clear()
            raise classify(error, self.place, key, conditional=conditional) from error

    def _call(self, tries: int, operation: str, key: str, fields: dict[str, Any]) -> Any:
        conditional = "IfMatch" in fields or "IfNoneMatch" in fields
        if key:
            fields["Key"] = key
        if len(fields.get("Body", b"")) in range(1, _AT_ONCE):
            # Of bytes boto3 makes a file, before which it waits to be told to go on.
            fields["Body"] = bytearray(fields["Body"])
        with self.errors(key, conditional=conditional):
            client = self._client(tries)
            answer = getattr(client, operation)(Bucket=self.place.bucket, **fields)
        if _is_foreign(operation, answer):
            raise stranger(self.place)
        return answer

    def _client(self, tries: int) -> Any:
        with self._mutex:
            if tries not in self._clients:
                self._clients[tries] = self._connect(self._access, tries)
            return self._clients[tries]


def connect(access: Access, tries: int) -> Any:
    """Make a client of boto3's that tries each call so many times."""
    path_style = access.endpoint is not None if access.path_style is None else access.path_style
    config = BotoConfig(
        connect_timeout=access.connect,
        read_timeout=access.answer,
        retries={"total_max_attempts": tries, "mode": "standard"},
        max_pool_connections=32,
        s3={"addressing_style": "path" if path_style else "auto"},
        # We name a checksum where there is one. By itself boto3 would send it behind the body,
        # which not every server understands, and check parts against those of whole objects.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # A session of its own: boto3's default one is not safe between threads.
    session = CoreSession()
    session.register_component("data_loader", _descriptions())
    return Session(botocore_session=session).client(
        "s3",
        endpoint_url=access.endpoint,
        region_name=access.region,
        verify=str(access.ca_bundle) if access.ca_bundle else None,
        config=config,
    )


@cache
def _descriptions() -> Loader:
    """Give what boto3 reads of S3's API: for all clients once, as it takes time and much memory."""
    loader: Loader = CoreSession().get_component("data_loader")
    return loader


def checked(data: bytes) -> dict[str, str]:
    """Give what a request has to say of the bytes it brings, so that the server compares them.

    Ceph RGW ignores the checksum of a whole object where the algorithm is not named, too.
    """
    return {"ChecksumAlgorithm": "CRC32", "ChecksumCRC32": crc32(data)}


def _is_foreign(operation: str, answer: Mapping[str, Any]) -> bool:
    """Tell whether a good answer is not S3's, as where a network answers with its log-in page."""
    if operation in _PROOF:
        return _PROOF[operation] not in answer
    if operation.startswith(_SETTINGS):
        return False  # servers label these as they like; other calls are made before and after
    told = answer.get("ResponseMetadata", {})
    if told.get("HTTPStatusCode") == 204:
        return False  # no page at all, whatever it would have been
    return str(told.get("HTTPHeaders", {}).get("content-type", "")).startswith("text/html")


def crc32(data: bytes) -> str:
    """Give the checksum that S3 compares with the bytes it got."""
    return base64.b64encode(zlib.crc32(data).to_bytes(4)).decode()


class BodyStream(io.RawIOBase):
    """The body of an answer, as a stream whose errors are the store's."""

    def __init__(self, calls: S3Calls, key: str, body: Any) -> None:
        super().__init__()
        self._calls, self._key, self._body = calls, key, body

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        """Fill the buffer as far as one read does. Raises `StoreError`."""
        with self._calls.errors(self._key):
            data = self._body.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Let go of the connection."""
        self._body.close()
        super().close()
