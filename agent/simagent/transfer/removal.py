"""Removes folders that tasks have written to, and walks through them: however deep they are.

What the standard library has for that calls itself for each level, and ends by RecursionError.

``python -I -S removal.py FOLDER...`` removes some in a process of its own.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ALL = 0o700


def walk(folder: Path) -> "Iterator[os.DirEntry[str]]":
    """Yield all that lies in a folder, a folder before its contents, but for what cannot be read.

    No links are followed, but one that takes a folder's place meanwhile.
    """
    todo = [str(folder)]
    while todo:
        try:
            with os.scandir(todo.pop()) as found:
                entries = list(found)
        except OSError:
            continue
        yield from entries
        todo += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def remove_tree(folder: Path) -> None:
    """Remove a folder and all in it, also what a task has closed to its own user.

    No links are followed. What cannot be removed stays.
    """
    with suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        root = os.open(folder, _FOLDER)
    except OSError:  # it is gone, as nearly always
        return
    try:
        _open_up(root)
        _flatten(root)
    finally:
        os.close(root)
    with suppress(OSError):
        folder.rmdir()


def _flatten(root: int) -> None:
    """Remove what lies in a folder: folders in there are brought up, so that none is ever deep."""
    names = (f".removed-{number}" for number in count())
    stuck: set[str] = set()
    while todo := [name for name in os.listdir(root) if name not in stuck]:
        for name in todo:
            try:
                _remove(root, name, names)
            except OSError:
                stuck.add(name)


def _remove(root: int, name: str, names: Iterator[str]) -> None:
    """Remove what has a name in the folder, where its own folders go. Raises OSError."""
    with suppress(IsADirectoryError):
        os.unlink(name, dir_fd=root)
        return
    if os.geteuid() != 0:
        os.chmod(name, _ALL, dir_fd=root)
    folder = os.open(name, _FOLDER, dir_fd=root)
    try:
        for inner in os.listdir(folder):
            try:
                os.unlink(inner, dir_fd=folder)
            except IsADirectoryError:
                if os.geteuid() != 0:  # to be moved it has to be writable
                    os.chmod(inner, _ALL, dir_fd=folder)
                os.rename(inner, next(names), src_dir_fd=folder, dst_dir_fd=root)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=root)


def _open_up(folder: int) -> None:
    if os.geteuid() != 0:
        with suppress(OSError):
            os.fchmod(folder, _ALL)


if __name__ == "__main__":
    for _name in sys.argv[1:]:
        remove_tree(Path(_name))
