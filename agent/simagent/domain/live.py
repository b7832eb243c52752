"""Live files: what is asked of the agent that runs a task about its files, and its answers.

A request is a small JSON object beside the task's state. Its answer lies beside the request: one
line of JSON, then the bytes that were asked for, as they are in the file. Paths are relative to the
folder in which the task's commands start; bytes of names that are no UTF-8 are lone surrogates.
One more object, the only one that the agent looks at while nobody asks anything, tells it to look.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from simagent.domain.state import Output, Record

FORMAT = 1
MAX_REQUEST = 65_536
"""Bytes of a request."""
MAX_DATA = 1_000_000
"""Bytes of a file in one answer: with its first line, an answer stays below 1 MiB."""
MAX_NAMES = 10_000
MAX_NAMES_BYTES = 900_000
"""Bytes that the names and the rest of a listing may take, in JSON."""
MAX_WAIT = 30.0
MAX_PATH = 4096
MEMORY = 64
"""Bytes before a place in a file by which it is recognised."""
ATTENDED = 30.0
"""Seconds for which an agent takes a task as attended to, once somebody has said so."""


class Place(Record):
    """How far a file has been read.

    ``file`` is the identity of the file, ``before`` the last bytes (up to 64) ahead of the
    ``offset``, in hexadecimal: a file that was written anew may keep its identity.
    """

    file: str = Field(max_length=200)
    offset: int = Field(ge=0)
    before: str = Field("", max_length=2 * MEMORY)


class Request(Record):
    """What is asked: the names in a folder, some bytes of a file, or all that was made so far.

    With ``since`` those after that place, else the last ``lines`` lines. ``wait`` is the seconds
    that the answer may be put off while there is nothing (new) to tell.

    The files that match ``patterns``, or all, are put into the store under the name ``sync``; each
    request with that name is told how far that is, the one that is ``over`` has them removed.
    """

    format: int = FORMAT
    op: Literal["list", "read", "sync"]
    path: str = ""
    lines: int = Field(10, ge=0)
    since: Place | None = None
    wait: float = Field(0.0, ge=0.0, le=MAX_WAIT)
    sync: str = Field("", max_length=64, pattern=r"^[0-9A-Za-z]*$")
    patterns: tuple[str, ...] = ()
    over: bool = False

    def encode(self) -> bytes:
        """Write it."""
        return json.dumps(self.model_dump()).encode()


class Item(Record):
    """Something in a folder: ``size`` in bytes, ``mtime`` Unix time in seconds.

    Kinds are file, folder, link, fifo, socket, device.
    """

    name: str
    kind: str
    size: int
    mtime: float


class Synced(Record):
    """How far a sync is: ``sent`` bytes, packed; at its end what is in the store.

    Of ``changed`` files it has the bytes that were read while they were being written.
    """

    sent: int = 0
    output: Output | None = None
    changed: int = 0


class Answer(Record):
    """What the agent of attempt ``epoch`` has to say.

    A listing has ``items``, and ``more`` tells how many names it leaves out. The bytes of a file
    end at ``place``; ``cut`` says that the lines asked for are more than fit, ``anew`` that the
    file is not the one that was read before, or not as it was: they are from its start.
    """

    format: int = FORMAT
    epoch: int = 0
    error: Literal["missing", "refused", "failed", "unsupported"] | None = None
    message: str = ""
    items: tuple[Item, ...] = ()
    more: int = 0
    place: Place | None = None
    cut: bool = False
    anew: Literal["truncated", "replaced"] | None = None
    sync: Synced | None = None

    def encode(self, data: bytes = b"") -> bytes:
        """Write it, with the bytes of the file."""
        return json.dumps(self.model_dump()).encode() + b"\n" + data


class Attention(Record):
    """That somebody follows a task, or has asked something: told by any change of ``nonce``."""

    format: int = FORMAT
    nonce: str

    def encode(self) -> bytes:
        """Write it."""
        return self.model_dump_json().encode()


def parse_request(data: bytes) -> Request:
    """Read a request. Raises ValueError that says what is wrong with it."""
    if len(data) > MAX_REQUEST:
        raise ValueError(f"the request has {len(data)} bytes, more than {MAX_REQUEST}")
    fields = _fields(data)
    try:
        return Request.model_validate(fields)
    except ValidationError as error:
        raise ValueError(f"the request is malformed: {_first(error)}") from None


def parse_answer(data: bytes) -> tuple[Answer, bytes]:
    """Read an answer, and the bytes of the file. Raises ValueError."""
    line, _, rest = data.partition(b"\n")
    try:
        return Answer.model_validate(_fields(line)), rest
    except ValidationError as error:
        raise ValueError(f"the answer is malformed: {_first(error)}") from None


def task_path(text: str) -> str:
    """Write a path within the task's folder plainly, "" for the folder itself.

    Raises ValueError where it is absolute or leads upwards.
    """
    if text.startswith("/"):
        raise ValueError(f"{text!r} is absolute: name it relative to the task's folder")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in text:
        raise ValueError(f"{text!r} leads out of the task's folder: name what lies in it")
    if len(text) > MAX_PATH:
        raise ValueError(f"the path has {len(text)} characters, more than {MAX_PATH}")
    return "/".join(parts)


def last_lines(data: bytes, lines: int) -> int:
    """Tell where the last lines begin; an unfinished one at the end counts as a line.

    -1 where ``data`` begins in the midst of them.
    """
    if lines == 0:
        return len(data)
    at = len(data) - data.endswith(b"\n")
    for _ in range(lines):
        at = data.rfind(b"\n", 0, at)
        if at < 0:
            return -1
    return at + 1


def _fields(data: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(fields, dict):
        raise ValueError("it is not a JSON object")
    version = fields.get("format", FORMAT)
    if isinstance(version, int) and version > FORMAT:
        raise ValueError(f"it has format {version}, newer than {FORMAT}")
    return fields


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
