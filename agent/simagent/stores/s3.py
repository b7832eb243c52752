"""The store of a fleet: objects in a bucket of S3's, of AWS or of any server with its conditions.

Version tags are S3's etags, compared by S3 alone and never taken for a checksum. Two versions of
the same bytes share one, so what is changed by compare-and-swap carries something new each time.
"""

import io
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from simagent.ports.store import (
    Blob,
    Body,
    Entry,
    NotFoundError,
    PreconditionError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
)
from simagent.stores.s3_calls import Access, BodyStream, Connect, S3Calls, checked, connect
from simagent.stores.s3_errors import NO_CONDITIONS, Place, code_of, status_of
from simagent.stores.s3_proof import checks_contents
from simagent.stores.s3_upload import upload

_PAGE = 1000
_LONGEST_KEY = 1024
_READ_BUFFER = 1 << 18


class S3Store:
    """Objects beneath the prefix of ``url``, s3://BUCKET/PREFIX.

    Cheap to make: nothing is asked of the server. With ``prove`` the first conditional write, or
    `prove`, finds out whether the server honours conditions. Raises `StoreRefusedError`.
    """

    def __init__(
        self, url: str, access: Access, *, prove: bool = False, connect: Connect = connect
    ) -> None:
        self._place = place_of(url, access)
        self._base = self._place.prefix
        self._calls = S3Calls(self._place, access, connect)
        self._proving = threading.Lock()
        self._proven = not prove
        self._checks_contents = False

    def get(self, key: str) -> Blob:
        """Read a small object whole. Raises `NotFoundError`."""
        answer = self._calls.once("get_object", self._name(key), ChecksumMode="ENABLED")
        with self._calls.errors(key):
            return Blob(answer["Body"].read(), answer["ETag"])

    def put(
        self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        """Write an object whole and return its etag. Raises `PreconditionError`."""
        name = self._name(key)
        if (if_match is not None or if_absent) and not self._proven:
            self.prove()
        return self._put(name, data, if_match=if_match, if_absent=if_absent)

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is no error."""
        with suppress(NotFoundError):
            self._calls.once("delete_object", self._name(key))

    def scan(self, prefix: str, *, after: str = "", limit: int | None = None) -> Iterator[Entry]:
        """Yield the objects with this prefix and a key greater than ``after``, in key order."""
        folder = prefix.rpartition("/")[0]
        if folder:
            self._name(folder)
        if limit is None or limit > 0:
            yield from self._walk(prefix, after, limit)

    def head(self, key: str) -> Entry:
        """Tell an object's size and etag. Raises `NotFoundError`."""
        name = self._name(key)
        try:
            answer = self._calls.once("head_object", name)
        except NotFoundError:
            self._check_bucket()
            raise
        except StoreRefusedError:
            # An answer to HEAD has no body that would say why: credentials may have expired.
            self._calls.once("get_object", name, Range="bytes=0-0")["Body"].close()
            raise
        return Entry(key, answer["ContentLength"], answer["ETag"])

    @contextmanager
    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        """Read an object, or the byte range from ``start``, as a stream. Raises `NotFoundError`."""
        body = self._body(key, start, length)
        with io.BufferedReader(BodyStream(self._calls, key, body), _READ_BUFFER) as stream:
            yield stream

    def upload(self, key: str, body: Body) -> Entry:
        """Write a large object from a stream; all of it or nothing appears."""
        etag, size = upload(self._calls, self._name(key), body)
        return Entry(key, size, etag, checked=self._checks_contents)

    def prove(self) -> None:
        """Find out by trying whether the server honours conditions, and permits what is needed.

        Also whether it refuses contents that are not what was sent, so that uploads need not be
        read again. Raises StoreError, `StoreRefusedError` saying what to do where it does not.
        """
        with self._proving:
            if self._proven:
                return
            name = self._name(f"checks/{secrets.token_hex(8)}")
            try:
                self._try_conditions(name)
                self._checks_contents = checks_contents(self._calls, name)
            finally:
                with suppress(StoreError):
                    self._calls.once("delete_object", name)
            self._calls.once("list_objects_v2", Prefix=self._base, MaxKeys=1)
            self._proven = True

    def _try_conditions(self, name: str) -> None:
        try:
            first = self._put(name, b"1", if_absent=True)
            self._must_lose(name, if_absent=True)
            second = self._put(name, b"2", if_match=first)
        except PreconditionError as error:  # nobody else knows the name: a passing conflict
            raise StoreUnavailableError(f"{self._place}: {error}") from error
        self._must_lose(name, if_match=first)
        if self._calls.once("get_object", name)["ETag"] != second:
            raise StoreRefusedError(f"{self._place}: what was written is not what is read")

    def _must_lose(
        self, name: str, *, if_match: str | None = None, if_absent: bool = False
    ) -> None:
        try:
            self._put(name, b"3", if_match=if_match, if_absent=if_absent)
        except PreconditionError:
            return
        raise StoreRefusedError(f"{self._place}: {NO_CONDITIONS}")

    def _put(
        self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        if if_match is not None:
            condition["IfMatch"] = if_match
        answer = self._calls.once(
            "put_object",
            name,
            Body=data,
            **checked(data),
            **condition,
            **self._calls.written(),
        )
        return str(answer["ETag"])

    def _body(self, key: str, start: int, length: int | None) -> Any:
        name = self._name(key)
        if length == 0:
            self.head(key)
            return io.BytesIO()
        if start == 0 and length is None:
            return self._calls.once("get_object", name, ChecksumMode="ENABLED")["Body"]
        last = "" if length is None else str(start + length - 1)
        try:
            return self._calls.once("get_object", name, Range=f"bytes={start}-{last}")["Body"]
        except StoreRefusedError as error:
            cause = error.__cause__
            if isinstance(cause, Exception) and (
                status_of(cause) == 416 or code_of(cause) == "InvalidRange"
            ):
                return io.BytesIO()  # it ends before
            raise

    def _walk(self, prefix: str, after: str, limit: int | None) -> Iterator[Entry]:
        fields: dict[str, Any] = {"StartAfter": self._base + after} if after else {}
        given = 0
        while True:
            size = _PAGE if limit is None else min(_PAGE, limit - given)
            page = self._calls.once(
                "list_objects_v2", Prefix=self._base + prefix, MaxKeys=size, **fields
            )
            for found in page.get("Contents", ()):
                key = found["Key"].removeprefix(self._base)
                if objection(key) is None:  # others may have made folders, or what else
                    yield Entry(key, found["Size"], found["ETag"])
                    given += 1
            if not page.get("IsTruncated") or given == limit:
                return
            fields = {"ContinuationToken": page["NextContinuationToken"]}

    def _check_bucket(self) -> None:
        """Raise where the whole bucket is gone: the answer to HEAD does not tell that apart."""
        try:
            self._calls.once("head_bucket")
        except NotFoundError:
            # Somebody else may have answered for S3: this says who does.
            self._calls.once("list_objects_v2", Prefix=self._base, MaxKeys=1)
        except StoreRefusedError:
            return  # it is there

    def _name(self, key: str) -> str:
        name = self._base + key
        why = objection(key)
        if why is None and len(name.encode()) > _LONGEST_KEY:
            why = f"with the prefix it has more than {_LONGEST_KEY} bytes"
        if why is not None:
            raise StoreRefusedError(f"{key!r} cannot be the key of an object: {why}")
        return name


def place_of(url: str, access: Access) -> Place:
    """Take the URL of a store apart."""
    parts = urlsplit(url)
    prefix = unquote(parts.path).strip("/")
    return Place(parts.netloc, f"{prefix}/" if prefix else "", access.endpoint)


def objection(key: str) -> str | None:
    """Say why something cannot be a key, if that is so."""
    if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        return "it is empty, or a part of it is, or is . or .., or it has a NUL"
    try:
        key.encode()
    except UnicodeEncodeError:
        return "it is no valid text"
    return None
