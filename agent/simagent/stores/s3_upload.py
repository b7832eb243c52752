"""Large objects go up in parts, while the stream they are made of is of unknown length.

Some parts are under way at the same time, so that memory is bounded whatever the stream does: six
of the first size, later ones alone, and one that is being filled.
"""

import io
import secrets
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

from simagent.ports.store import Body, StoreError, StoreUnavailableError
from simagent.stores.s3_calls import S3Calls, checked

FIRST_PART = 8 << 20
"""Bytes of a part: at least 5 MiB, and S3 takes no more than 10,000 of them."""
_PARTS_OF_A_SIZE = 1000
_UNDER_WAY = 6 * FIRST_PART
_MARK = "simagent-upload"


def upload(calls: S3Calls, key: str, body: Body) -> tuple[str, int]:
    """Write an object; give its etag and size. Raises StoreError, and what ``body`` does."""
    with closing(_chunks(body)) as chunks, closing(parts_of(chunks)) as parts:
        first = next(parts, b"")
        second = next(parts, None)
        if second is None:
            answer = calls.once("put_object", key, Body=first, **checked(first), **calls.written())
            return str(answer["ETag"]), len(first)
        waiting = deque([first, second])
        del first, second
        return _in_parts(calls, key, _then(waiting, parts))


def parts_of(chunks: Iterable[bytes], first: int = FIRST_PART) -> Generator[bytes, None, None]:
    """Cut a stream into parts, larger ones the further it goes: they have to reach to its end.

    Chunks that are parts already are given as they are.
    """
    buffer = io.BytesIO()
    made = 0
    for chunk in chunks:
        left = memoryview(chunk)
        while left:
            size = first << (made // _PARTS_OF_A_SIZE)
            taken = left[: size - buffer.tell()]
            left = left[len(taken) :]
            whole = len(taken) == len(chunk) == size and isinstance(chunk, bytes)
            if not whole:
                buffer.write(taken)
            if whole or buffer.tell() == size:
                made += 1
                yield chunk if whole else _emptied(buffer)
    if buffer.tell():
        yield _emptied(buffer)


def _emptied(buffer: io.BytesIO) -> bytes:
    """Take what is in a buffer, which does not copy it."""
    data = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return data


def _then(waiting: deque[bytes], parts: Iterator[bytes]) -> Iterator[bytes]:
    while waiting:
        yield waiting.popleft()
    yield from parts


def _chunks(body: Body) -> Generator[bytes, None, None]:
    """Yield what a body does; closed, it closes the body, which may hold files and processes."""
    yield from body()


def _in_parts(calls: S3Calls, key: str, parts: Iterator[bytes]) -> tuple[str, int]:
    mark = secrets.token_hex(8)
    made = calls.once(
        "create_multipart_upload",
        key,
        ChecksumAlgorithm="CRC32",
        Metadata={_MARK: mark},
        **calls.written(),
    )
    upload_id = made["UploadId"]
    try:
        sent, size = _send(calls, key, upload_id, parts)
        return _complete(calls, key, upload_id, sent, mark), size
    except BaseException:
        # Where that fails, too, the bucket's rule for incomplete uploads removes the parts.
        with suppress(StoreError):
            calls.again("abort_multipart_upload", key, UploadId=upload_id)
        raise


def _send(
    calls: S3Calls, key: str, upload_id: str, parts: Iterator[bytes]
) -> tuple[list[dict[str, Any]], int]:
    def send(number: int, data: bytes) -> dict[str, Any]:
        checksum = checked(data)
        answer = calls.again(
            "upload_part",
            key,
            UploadId=upload_id,
            PartNumber=number,
            Body=data,
            **checksum,
        )
        return {
            "ETag": answer["ETag"],
            "PartNumber": number,
            "ChecksumCRC32": checksum["ChecksumCRC32"],
        }

    sent: list[dict[str, Any]] = []
    size = held = 0
    under_way: deque[tuple[int, Future[dict[str, Any]]]] = deque()
    with ThreadPoolExecutor(_UNDER_WAY // FIRST_PART, thread_name_prefix="upload") as pool:
        try:
            for number, data in enumerate(parts, 1):
                size += len(data)
                while under_way and held + len(data) > _UNDER_WAY:
                    length, first = under_way.popleft()
                    sent.append(first.result())
                    held -= length
                held += len(data)
                under_way.append((len(data), pool.submit(send, number, data)))
                del data
            sent += [each.result() for _, each in under_way]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)  # none may be sent after the abort
            raise
    return sent, size


def _complete(
    calls: S3Calls, key: str, upload_id: str, sent: list[dict[str, Any]], mark: str
) -> str:
    """Make the object of its parts; a lost answer is looked for, instead of sending all again."""
    try:
        answer = calls.once(
            "complete_multipart_upload",
            key,
            UploadId=upload_id,
            MultipartUpload={"Parts": sent},
        )
    except StoreUnavailableError as error:
        try:
            found = calls.again("head_object", key)
        except StoreError:
            raise error from None
        if found.get("Metadata", {}).get(_MARK) != mark:
            raise
        answer = found
    return str(answer["ETag"])
