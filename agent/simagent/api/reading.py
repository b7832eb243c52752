"""What the Python client reads: durations that were given to it, and lines that were printed."""

from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator

from simagent.client.errors import UsageError
from simagent.client.following import LogPiece
from simagent.domain.keys import STREAMS
from simagent.domain.quantities import parse_duration

Duration = float | str
"""Seconds, or text as "90s", "30min", "2h"."""


def to_seconds(what: str, value: Duration) -> float:
    """Read a duration. Raises `UsageError`."""
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        raise UsageError(f"{what}: {value!r} is no duration: give seconds, or text as 2h")
    return float(seconds)


def lines(pieces: Iterable[LogPiece]) -> Iterator[str]:
    """Cut what was printed into lines; one without an end is yielded when nothing follows it."""
    new = getincrementaldecoder("utf-8")
    decoders = {stream: new(errors="replace") for stream in STREAMS}
    rests = dict.fromkeys(STREAMS, "")
    epoch = 0
    for piece in pieces:
        if piece.epoch != epoch:
            yield from filter(None, rests.values())
            epoch, rests = piece.epoch, dict.fromkeys(STREAMS, "")
        text = rests[piece.stream] + decoders[piece.stream].decode(piece.data)
        *lines, rests[piece.stream] = text.split("\n")
        yield from lines
    yield from filter(None, rests.values())
