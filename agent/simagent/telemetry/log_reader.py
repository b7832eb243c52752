"""Reading a log from the store, also while it is being written and its chunks are joined."""

from collections.abc import Iterator

from simagent.domain.keys import AttemptKeys, Stream
from simagent.ports.store import NotFoundError, Store
from simagent.telemetry.chunks import list_chunks

_READ_BYTES = 256 * 1024
_ROUNDS = 5


def read_log(
    store: Store, keys: AttemptKeys, stream: Stream, *, start: int = 0, final: bool = False
) -> Iterator[bytes]:
    """Yield the bytes of a log from ``start`` on, as far as they are in the store now.

    To follow a log, call it again with ``start`` advanced by what was yielded. It ends at the
    first missing byte, or with ``final`` yields a line that says which bytes are missing and goes
    on after them. Raises `StoreError`; what was yielded before is right.
    """
    position, idle = start, 0
    while True:
        before, after_gap = position, None
        try:
            for chunk in list_chunks(store, keys, stream, around=position):
                if chunk.offset > position:
                    after_gap = chunk.offset
                    break
                if chunk.end > position:
                    key = keys.log_chunk(stream, chunk.offset)
                    with store.open(key, start=position - chunk.offset) as body:
                        while data := body.read(_READ_BYTES):
                            position += len(data)
                            yield data
        except NotFoundError:
            # Joined into a longer chunk since it was listed.
            if idle == _ROUNDS - 1:
                raise
            idle = 0 if position > before else idle + 1
            continue
        if position > before:
            idle = 0
            continue
        if after_gap is None:
            return
        idle += 1
        # Chunks joined while they are listed look like a gap: only one that stays is one.
        if idle > 1 and not final:
            return
        if idle > 1:
            yield f"\n[simagent: bytes {position} to {after_gap - 1} are missing]\n".encode()
            position, idle = after_gap, 0


def log_size(store: Store, keys: AttemptKeys, stream: Stream) -> int:
    """Tell where the store's copy of a log ends, in bytes. Raises `StoreError`."""
    return max((chunk.end for chunk in list_chunks(store, keys, stream)), default=0)


def tail(store: Store, keys: AttemptKeys, stream: Stream, max_bytes: int) -> bytes:
    """Read the last bytes of a log, at most ``max_bytes``. Raises `StoreError`."""
    end = bytearray()
    begin = max(0, log_size(store, keys, stream) - max_bytes)
    for data in read_log(store, keys, stream, start=begin, final=True):
        end += data
        del end[: max(0, len(end) - max_bytes)]
    return bytes(end)
