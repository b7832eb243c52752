"""An object store in memory."""

import io
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import BinaryIO

from simagent.ports.store import (
    Blob,
    Body,
    Entry,
    NotFoundError,
    PreconditionError,
    StoreRefusedError,
)


class MemoryStore:
    """What the contract asks for, and no more."""

    def __init__(self) -> None:
        self._objects: dict[str, Blob] = {}
        self._versions = itertools.count(1)
        self._mutex = threading.Lock()

    def get(self, key: str) -> Blob:
        _check_key(key)
        try:
            return self._objects[key]
        except KeyError:
            raise NotFoundError(key) from None

    def put(
        self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        _check_key(key)
        with self._mutex:
            current = self._objects.get(key)
            if if_absent and current is not None:
                raise PreconditionError(f"{key} exists")
            if if_match is not None and (current is None or current.etag != if_match):
                raise PreconditionError(f"{key} is not version {if_match}")
            etag = f"v{next(self._versions)}"
            self._objects[key] = Blob(bytes(data), etag)
            return etag

    def delete(self, key: str) -> None:
        _check_key(key)
        with self._mutex:
            self._objects.pop(key, None)

    def scan(self, prefix: str, *, after: str = "", limit: int | None = None) -> Iterator[Entry]:
        if prefix:
            _check_key(prefix.rpartition("/")[0] or "root")
        with self._mutex:
            objects = sorted(self._objects.items(), key=lambda item: item[0].encode())
        found = (
            Entry(key, len(blob.data), blob.etag)
            for key, blob in objects
            if key.startswith(prefix) and key.encode() > after.encode()
        )
        yield from islice(found, limit)

    def head(self, key: str) -> Entry:
        blob = self.get(key)
        return Entry(key, len(blob.data), blob.etag)

    @contextmanager
    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        data = self.get(key).data
        yield io.BytesIO(data[start:] if length is None else data[start : start + length])

    def upload(self, key: str, body: Body) -> Entry:
        _check_key(key)
        data = b"".join(body())
        return Entry(key, len(data), self.put(key, data))


def _check_key(key: str) -> None:
    parts = key.split("/")
    if parts[0] == ".simagent" or "\0" in key or any(part in ("", ".", "..") for part in parts):
        raise StoreRefusedError(f"{key!r} cannot be the key of an object")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise StoreRefusedError(f"{key!r} is no valid text") from None
