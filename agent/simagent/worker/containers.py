"""What a task's containers are given: an image, folders, a user; the same by every runtime."""

import os
import pwd
import stat
from contextlib import suppress
from pathlib import Path, PurePosixPath

from simagent.domain.spec import Spec
from simagent.ports.runtime import Mount, Sandbox
from simagent.transfer.removal import walk
from simagent.worker.cores import lay_out
from simagent.worker.journal import Entry, Journal

WORKDIR = PurePosixPath("/workdir/output/artifacts")
"""Where commands start: what images made for Inductiva's platform expect."""
LAUNCH = PurePosixPath("/workdir/launch")
"""Where a step whose ranks lie on several hosts has what `mpirun` calls in place of ssh."""
HOME = "/tmp"  # noqa: S108 - in the container, where it is the attempt's own folder

_SHM_BASE = 64 << 20
_SHM_PER_RANK = 32 << 20
_TASK_USER = "simtask-"
_NOBODY = 65534
TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108 - likewise


def task_user(uid: int | None = None) -> tuple[int, int]:
    """Tell whom containers run as: a user and a group number.

    Root's tasks run as ``uid``; without one as the user ``simtask-0`` where there is one, else as
    nobody, whom nearly every image knows by name. Others' tasks run as they themselves.
    """
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    if uid is not None:
        with suppress(KeyError):
            return uid, pwd.getpwuid(uid).pw_gid
        return uid, uid
    with suppress(KeyError):
        user = pwd.getpwnam(f"{_TASK_USER}0")
        return user.pw_uid, user.pw_gid
    return _NOBODY, _NOBODY


def slot_users(uid: int | None, slots: int) -> tuple[tuple[int, int], ...]:
    """Tell whom the containers of each slot run as; of one beyond them as `task_user` tells.

    Each as a user of its own, ``simtask-0`` and so on, as far as there are such.
    """
    if os.geteuid() != 0 or uid is not None:
        return ()
    found = []
    for slot in range(slots):
        try:
            user = pwd.getpwnam(f"{_TASK_USER}{slot}")
        except KeyError:
            break
        found.append((user.pw_uid, user.pw_gid))
    return tuple(found)


def sandbox(spec: Spec, journal: Journal, *, launch: Path | None = None) -> Sandbox:
    """Describe the container of a step. The folders of `hand_over` are all it sees of the host.

    ``launch`` is another, by which its ranks get to other hosts: they have the host's network then.
    """
    entry = journal.entry
    assert entry.image is not None
    assert entry.user is not None
    mounts = [Mount(source=journal.artifacts, target=WORKDIR)]
    mounts += [Mount(source=journal.tmp, target=PurePosixPath(path)) for path in TEMPORARY]
    if launch is not None:
        mounts.append(Mount(source=launch, target=LAUNCH))
    return Sandbox(
        image=entry.image,
        uid=entry.user[0],
        gid=entry.user[1],
        mounts=tuple(mounts),
        network="host" if launch is not None else spec.network or "none",
        shm_bytes=spec.resources.shm or _shared_memory(spec, entry),
        gpus=spec.resources.gpus or 0,
        gpu_ids=entry.share.gpu_ids,
        labels={
            "simagent.project": entry.project,
            "simagent.task": entry.task,
            "simagent.epoch": str(entry.epoch),
            "simagent.agent": entry.agent,
        },
    )


def _shared_memory(spec: Spec, entry: Entry) -> int | None:
    """Tell what the ranks of a task need of /dev/shm: the 64 MiB of Docker are a few ranks' own."""
    hosts = [place.host for place in entry.hosts]
    layouts = [
        lay_out(command.mpi, cpus=entry.share.cpus, hosts=hosts)
        for command in spec.commands
        if command.mpi
    ]
    ranks = [max((host.slots for host in it.hosts), default=it.np) for it in layouts]
    return _SHM_BASE + max(ranks) * _SHM_PER_RANK if ranks else None


def hand_over(journal: Journal, user: tuple[int, int]) -> None:
    """Make the folders and the log files that a container may write to, and give them its user.

    No step may have run yet: what a task left could lead elsewhere. Raises OSError.
    """
    journal.tmp.mkdir(mode=0o700, exist_ok=True)
    journal.logs.mkdir(exist_ok=True)
    for stream in ("stdout", "stderr"):
        (journal.logs / stream).touch(mode=0o644)
    if user[0] == os.geteuid():
        return
    # From the state folder on, and from the one that is shared where there is one.
    open_the_way(journal.tmp, journal.folder.parent.parent)
    open_the_way(journal.artifacts, journal.base.parent.parent)
    for entry in walk(journal.artifacts):
        os.chown(entry.path, *user, follow_symlinks=False)
    for path in (journal.artifacts, journal.tmp, journal.logs / "stdout", journal.logs / "stderr"):
        os.chown(path, *user, follow_symlinks=False)


def open_the_way(path: Path, top: Path) -> None:
    """Let the task's user, as whom Apptainer runs, pass to a path from the folder ``top`` on.

    Not look around there. Raises OSError.
    """
    for folder in path.parents:
        folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IXGRP | stat.S_IXOTH)
        if folder == top:
            return
