"""Whom the tasks of an agent run as: users without rights where it is root, else its own."""

import os
import pwd
import stat
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_TASK_USER = "simtask-"
_NOBODY = 65534


def _own() -> tuple[int, int]:
    return os.geteuid(), os.getegid()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskUsers:
    """Whom tasks run as, by user and group numbers.

    Those of a slot run as the one of ``slots`` that is its, from the first; beyond them as
    ``common``. With ``own_programs`` that is so for containers alone, and programs of this host
    run as the agent's own user.
    """

    common: tuple[int, int] = field(default_factory=_own)
    slots: tuple[tuple[int, int], ...] = ()
    own_programs: bool = True

    def container(self, slot: int) -> tuple[int, int]:
        """Tell whom the containers of a slot run as."""
        return self.slots[slot] if slot < len(self.slots) else self.common

    def program(self, slot: int) -> tuple[int, int] | None:
        """Tell whom programs of this host run as for a slot; None: as the agent does."""
        return None if self.own_programs else self.container(slot)

    @property
    def all(self) -> tuple[tuple[int, int], ...]:
        """All of them, none twice."""
        return tuple(dict.fromkeys((*self.slots, self.common)))


def task_users(
    *, uid: int | None, slots: int, root_programs: bool | None, own_task: bool = False
) -> TaskUsers:
    """Find whom the tasks of so many slots run as.

    Tasks of who is not root run as they themselves. Root's run as ``uid``; without one each slot's
    as a user of its own, ``simtask-0`` and so on, as far as there are such; where there is none as
    nobody, whom nearly every image knows by name.

    ``root_programs`` tells whether programs of this host run as root all the same. None: where
    neither ``uid`` nor ``simtask-0`` is there to run them, or where root's ``own_task`` is all that
    is run.
    """
    if os.geteuid() != 0:
        return TaskUsers()
    if uid is not None:
        common, own = (uid, _group(uid)), _numbered(0)
    else:
        own = _numbered(slots)
        common = own[0] if own else (_NOBODY, _NOBODY)
    if root_programs is None:
        root_programs = own_task or (uid is None and not own)
    return TaskUsers(common=common, slots=own, own_programs=root_programs)


def _numbered(slots: int) -> tuple[tuple[int, int], ...]:
    found = []
    for slot in range(slots):
        try:
            user = pwd.getpwnam(f"{_TASK_USER}{slot}")
        except KeyError:
            break
        found.append((user.pw_uid, user.pw_gid))
    return tuple(found)


def _group(uid: int) -> int:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_gid
    return uid


def name_of(uid: int) -> str:
    """Give the name of a user, else the number."""
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def variables(passed: Collection[str], user: tuple[int, int] | None, home: Path) -> dict[str, str]:
    """Give the variables that a program of this host gets of the agent's: those ``passed``.

    As another ``user`` it has ``home``, and that user's name.
    """
    found = {name: os.environ[name] for name in passed if name in os.environ}
    if user is None or user[0] == os.geteuid():
        return found
    own = {"HOME": str(home)} | dict.fromkeys(("USER", "LOGNAME"), name_of(user[0]))
    return found | {name: text for name, text in own.items() if name in passed}


def closed_to(path: Path, user: tuple[int, int]) -> Path | None:
    """Tell which folder above a path a user may not pass; None where the way is open.

    Folders that are not there yet are no obstacle.
    """
    for folder in reversed(path.absolute().parents):
        try:
            seen = folder.stat()
        except OSError:
            return None
        owner, group, others = stat.S_IXUSR, stat.S_IXGRP, stat.S_IXOTH
        mine = owner if seen.st_uid == user[0] else group if seen.st_gid == user[1] else others
        if not seen.st_mode & mine:
            return folder
    return None


def open_the_way(path: Path, top: Path) -> None:
    """Let tasks' users, as whom Apptainer runs, too, pass to a path from the folder ``top`` on.

    Not look around there. Raises OSError.
    """
    for folder in path.parents:
        folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IXGRP | stat.S_IXOTH)
        if folder == top:
            return
