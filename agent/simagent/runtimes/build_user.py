"""As whom images are converted: what is in them was written by whoever made them.

Root's agent has it done by the user ``simagent``, where there is one. As root it would take more
capabilities, too, than the agent's unit leaves it: images have device files and setuid programs.
"""

import os
import pwd
from collections.abc import Iterable
from pathlib import Path

_USER = "simagent"
_READ, _PASS = 0o004, 0o001


def build_user(folder: Path, source: str) -> tuple[int, int] | None:
    """Tell the user and group to convert ``source`` in ``folder``; None: the agent's own.

    Its own, too, where another user cannot get to what is needed.
    """
    if os.geteuid() != 0:
        return None
    try:
        user = pwd.getpwnam(_USER)
        if not _passable(folder) or not _readable(source):
            return None
    except (KeyError, OSError):
        return None
    return user.pw_uid, user.pw_gid


def give(paths: Iterable[Path], owner: tuple[int, int] | None) -> None:
    """Make files and folders that user's, where it is another. Raises OSError."""
    if owner is not None:
        for path in paths:
            os.chown(path, *owner, follow_symlinks=False)


def _readable(source: str) -> bool:
    kind, _, name = source.partition(":")
    if name.startswith("//"):
        return kind != "docker-daemon"  # whose socket is root's
    path = Path(name.partition(":")[0])
    mode = path.stat().st_mode
    return bool(mode & _READ) and _passable(path.resolve().parent)


def _passable(folder: Path) -> bool:
    return all(each.stat().st_mode & _PASS for each in (folder, *folder.parents))
