"""Local inputs of a spec: found, checked and packed where the task is submitted."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from simagent.domain.spec import Input, Spec
from simagent.ports.store import Body
from simagent.transfer.archive import Archive
from simagent.transfer.batch import Member
from simagent.transfer.tree import scan
from simagent.transfer.unpack import Limits, check, check_portable, plain_target
from simagent.transfer.zipread import ZipError, read_directory

_READ = 1 << 20


class InputChangedError(Exception):
    """A local input was changed or removed while it was uploaded."""


class InputPlan(NamedTuple):
    """The spec as it is stored, and what to upload, by the number of the input."""

    spec: Spec
    bodies: dict[int, Body]


def place(destination: str, name: str) -> tuple[str, str]:
    """Tell the folder and the name of a single file.

    As with `cp`, the destination ``.`` and one that ends in ``/`` is a folder that keeps the
    file's name; any other one is the new name.
    """
    if destination.endswith("/") or destination in ("", "."):
        return destination, name
    folder, _, last = destination.rpartition("/")
    return folder or ".", last


def wants_unpacking(item: Input, name: str) -> bool:
    """Tell whether an input is an archive to unpack."""
    return name.lower().endswith(".zip") if item.unpack is None else item.unpack


def plan_inputs(spec: Spec, base: Path, *, threads: int = 1) -> InputPlan:
    """Replace local inputs by ``upload://N``; relative ones are looked for in ``base``.

    Nothing is read but names and sizes until a body is iterated over; that raises
    `InputChangedError` where the files are not what they were here. Raises ValueError, naming the
    field and the fix.
    """
    planned: list[Input] = []
    bodies: dict[int, Body] = {}
    for number, item in enumerate(spec.inputs):
        if item.scheme:
            planned.append(item)
            continue
        try:
            folder, bodies[number] = _plan(item, base, threads)
        except ValueError as error:
            raise ValueError(f"inputs[{number}].source: {error}") from error
        except OSError as error:
            raise ValueError(
                f"inputs[{number}].source: {item.source} cannot be read "
                f"({error.strerror}): correct its permissions or the path"
            ) from error
        planned.append(Input(source=f"upload://{number}", destination=folder, unpack=True))
    return InputPlan(spec.model_copy(update={"inputs": tuple(planned)}), bodies)


def _plan(item: Input, base: Path, threads: int) -> tuple[str, Body]:
    path = (base / item.source).resolve()
    if path.is_dir():
        return item.destination, packed(folder_members(path), threads)
    if path.is_file():
        if wants_unpacking(item, path.name):
            _check_archive(path)
            return item.destination, _as_it_is(path)
        folder, name = place(item.destination, path.name)
        member = Member(name, str(path.parent), path.name, "file", path.stat().st_size)
        return folder, packed([member], threads)
    if os.path.lexists(path):
        raise ValueError(f"{path} is no file or folder: name one")
    raise ValueError(f"{path} does not exist: correct the path")


def folder_members(path: Path) -> list[Member]:
    """List a folder's contents for packing. Raises ValueError where some of it cannot be."""
    members = []
    for found in scan(path):
        check_portable(found.path)
        if found.kind == "link":
            try:
                plain_target(found.path, os.readlink(path / found.path))
            except ValueError as error:
                raise ValueError(f"{error}: copy what it points at into the folder") from error
        elif found.kind == "folder":
            if not found.empty:
                continue
        elif found.kind != "file":
            raise ValueError(f"{path / found.path} is a {found.kind}: remove it from the folder")
        size = found.status.st_size if found.kind == "file" else 0
        members.append(Member(found.path, str(path), found.path, found.kind, size))
    return members


def packed(members: list[Member], threads: int) -> Body:
    """Make the body of an archive that holds exactly these members, unchanged."""

    def body() -> Iterator[bytes]:
        archive = Archive(members, threads=threads)
        yield from archive
        if archive.notes:
            path, why = archive.notes[0]
            raise InputChangedError(f"{path} {why}: submit again when nothing writes to it")

    return body


def _check_archive(path: Path) -> None:
    try:
        with path.open("rb") as file:
            check(read_directory(file, max_files=Limits().max_files), Limits())
    except ZipError as error:
        raise ValueError(f"{path}: {error}; or set unpack: false to take it as it is") from error


def _as_it_is(path: Path) -> Callable[[], Iterator[bytes]]:
    def body() -> Iterator[bytes]:
        with path.open("rb") as file:
            while chunk := file.read(_READ):
                yield chunk

    return body
