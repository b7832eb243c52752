"""Packing many small members at once, here or in a helper process.

A small file costs Python more than it costs the compressor, and threads would only wait for
each other: processes share that work. `simagent.transfer.helpers` starts them.
"""

import hashlib
import marshal
import os
import stat
import struct
from typing import Any, BinaryIO, NamedTuple

from isal import isal_zlib

from simagent.transfer.tree import READ, Tree
from simagent.transfer.zipformat import (
    DEFLATED,
    STORED,
    Entry,
    central_header,
    encode,
    local_header,
    name_flag,
)

LEVEL = 1
CHANGED = "changed while it was packed"
VANISHED = "vanished before it was packed"
UNREADABLE = "could not be read"


class Member(NamedTuple):
    """Something to pack: ``source`` beneath the folder ``root`` becomes ``path``.

    ``kind`` is file, link or folder. At most ``size`` bytes of a file are packed, what it had
    when it was selected, so that one which grows does not do so for ever. Where it was longer
    already, ``tail`` says so: these bytes are packed after the others.
    """

    path: str
    root: str
    source: str
    kind: str
    size: int = 0
    tail: bytes = b""


class Batch(NamedTuple):
    """Packed members: offsets count from the start of ``data``; ``notes`` are (path, why).

    ``headers`` are the lines of the directory, as long as ``data`` begins the archive.
    """

    data: bytes
    entries: list[Entry]
    headers: list[bytes]
    notes: list[tuple[str, str]]


def pack_batch(members: list[Member]) -> Batch:
    """Pack members whose files are small enough to be held in memory all together."""
    parts: list[bytes] = []
    entries: list[Entry] = []
    headers: list[bytes] = []
    notes: list[tuple[str, str]] = []
    trees: dict[str, Tree] = {}
    offset = 0
    try:
        for member in members:
            try:
                tree = trees.get(member.root)
                if tree is None:
                    tree = trees[member.root] = Tree(member.root)
                data, status = _read(tree, member)
            except OSError as error:
                notes.append((member.path, why_unread(error)))
                continue
            if member.kind == "file" and is_changed(status, len(data), member):
                notes.append((member.path, CHANGED))
            header, line, body, entry = _pack_one(member, data, status, offset)
            parts += (header, body)
            entries.append(entry)
            headers.append(line)
            offset += len(header) + len(body)
    finally:
        for tree in trees.values():
            tree.close()
    return Batch(b"".join(parts), entries, headers, notes)


def open_file(tree: Tree, source: str) -> tuple[int, os.stat_result]:
    """Open a regular file for reading and give its status.

    Raises OSError, also where it is anything else than a regular file.
    """
    folder, name = tree.at(source)
    file = os.open(name, READ, dir_fd=folder)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise NotADirectoryError(f"{source!r} is no regular file any more")
    except BaseException:
        os.close(file)
        raise
    return file, status


def is_changed(status: os.stat_result, read: int, member: Member) -> bool:
    """Tell whether a file is not what was selected."""
    if member.tail:
        return read != member.size + len(member.tail)
    return not read == status.st_size == member.size


def why_unread(error: OSError) -> str:
    """Give the note for a member that could not be opened or read."""
    if isinstance(error, FileNotFoundError):
        return VANISHED
    if isinstance(error, PermissionError):
        return UNREADABLE
    if isinstance(error, NotADirectoryError) or error.errno in _REPLACED:
        return CHANGED
    return f"{UNREADABLE}: {error.strerror}"


_REPLACED = frozenset({40, 22, 6})  # ELOOP, EINVAL, ENXIO: a link, no link, or a socket by now


def _read(tree: Tree, member: Member) -> tuple[bytes, os.stat_result]:
    if member.kind == "file":
        file, status = open_file(tree, member.source)
        try:
            return os.read(file, member.size) + member.tail, status
        finally:
            os.close(file)
    if member.kind == "folder":
        return b"", os.fstat(tree.folder(member.source))
    folder, name = tree.at(member.source)
    target = os.fsencode(os.readlink(name, dir_fd=folder))
    return target, os.stat(name, dir_fd=folder, follow_symlinks=False)


def _pack_one(
    member: Member, data: bytes, status: os.stat_result, offset: int
) -> tuple[bytes, bytes, bytes, Entry]:
    path = member.path + "/" if member.kind == "folder" else member.path
    name = encode(path)
    method, body = STORED, data
    if len(data) > 64:
        deflated = isal_zlib.compress(data, LEVEL, -15)
        if len(deflated) < len(data):
            method, body = DEFLATED, deflated
    entry = Entry(
        path,
        status.st_mode,
        status.st_mtime_ns,
        method,
        name_flag(name),
        isal_zlib.crc32(data),
        len(body),
        len(data),
        offset,
        hashlib.sha256(data).hexdigest() if member.kind == "file" else "",
    )
    return local_header(name, entry), central_header(name, entry), body, entry


def send(stream: BinaryIO, message: Any) -> None:
    """Send a message, of plain types, to the process at the other end. Raises OSError."""
    data = marshal.dumps(message)
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Give the message the process at the other end sent. Raises EOFError, OSError."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    data = stream.read(_LENGTH.unpack(head)[0])
    # Both ends run the same Python, and only a child of this process holds the other one.
    return marshal.loads(data)  # noqa: S302


_LENGTH = struct.Struct("<Q")


def serve(descriptor: int) -> None:
    """Pack the batches that come over a socket until it is closed."""
    with open(descriptor, "rb") as requests, open(descriptor, "wb", closefd=False) as answers:
        while True:
            try:
                members = receive(requests)
            except EOFError:
                return
            batch = pack_batch([Member(*member) for member in members])
            send(answers, (batch.data, list(map(tuple, batch.entries)), *batch[2:]))
