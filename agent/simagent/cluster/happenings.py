"""What the broker of a step tells of the hosts: lines of a file, read while it is written."""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from simagent.domain.state import Record

EVENTS = "events.jsonl"
_MOST_READ = 8 << 20
_FEWER_SAMPLES_EACH = 16 << 20
"""Bytes of the file after which only every eighth sample is kept, then every 64th, and so on."""

Kind = Literal["ready", "entered", "sampled", "departs", "exited", "lost", "refused"]


class Happening(Record):
    """A line of what the broker tells: something that happened on a ``host``, by its name.

    ``ready`` comes first, and is of no host. ``lost`` and ``refused`` say ``why``; ``refused`` has
    a Reason's value as ``reason``. ``departs`` says ``why`` the host goes away, and that all there
    has to be over in ``left`` seconds. ``exited`` has a ``code`` or ``signal``, and as ``why`` what
    there is to say of it. One of these three is the last of an ``entry``. ``at`` is Unix time.
    """

    event: Kind
    at: float
    host: str = ""
    address: str = ""
    entry: str = ""
    why: str = ""
    reason: str = ""
    code: int | None = None
    signal: int | None = None
    left: float | None = None
    sample: dict[str, int | float | str | list[float] | None] | None = None


class Telling:
    """The file, as the broker writes it, from any thread."""

    def __init__(self, folder: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(folder / EVENTS, flags, 0o600)
        self._lock = threading.Lock()
        self._bytes = os.fstat(self._fd).st_size
        self._samples = 0
        self._torn = False

    def tell(self, happening: Happening) -> None:
        """Add a line; without it where the disk is full: what it tells of must go on."""
        line = happening.model_dump_json(exclude_defaults=True).encode() + b"\n"
        with self._lock:
            if happening.event == "sampled":
                self._samples += 1
                if self._samples % 8 ** min(self._bytes // _FEWER_SAMPLES_EACH, 8):
                    return
            try:
                written = os.write(self._fd, b"\n" + line if self._torn else line)
            except OSError as error:
                print(f"not written: {happening.event}: {error}", file=sys.stderr)  # noqa: T201
                return
            self._torn = written < len(line)
            self._bytes += written


def now(event: Kind, **fields: object) -> Happening:
    """Make a happening of this moment."""
    return Happening.model_validate({"event": event, "at": round(time.time(), 3), **fields})


def read_events(folder: Path, offset: int = 0) -> tuple[list[Happening], int]:
    """Read what the broker told from a byte offset on, and the offset to go on at.

    Nothing, while there is no such file; of very much only a part at once. Raises OSError.
    """
    try:
        with open(folder / EVENTS, "rb") as file:
            file.seek(offset)
            data = file.read(_MOST_READ)
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    happenings = []
    for line in whole.splitlines():
        try:
            happenings.append(Happening.model_validate_json(line))
        except ValidationError:  # the disk was full, or a newer broker says more
            continue
    return happenings, offset + len(whole)
