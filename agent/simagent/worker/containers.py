"""What a task's containers are given: an image, folders, a user; the same by every runtime.

The folders and the user are those, too, of programs of this host that do not run as the agent.
"""

import os
from pathlib import Path, PurePosixPath

from simagent.domain.spec import Spec
from simagent.ports.runtime import Mount, Sandbox
from simagent.transfer.removal import walk
from simagent.worker.cores import lay_out
from simagent.worker.journal import Entry, Journal
from simagent.worker.users import open_the_way

WORKDIR = PurePosixPath("/workdir/output/artifacts")
"""Where commands start: what images made for Inductiva's platform expect."""
LAUNCH = PurePosixPath("/workdir/launch")
"""Where a step whose ranks lie on several hosts has what `mpirun` calls in place of ssh."""
HOME = "/tmp"  # noqa: S108 - in the container, where it is the attempt's own folder

_SHM_BASE = 64 << 20
_SHM_PER_RANK = 32 << 20
TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108 - likewise


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
    """Make the folders and the log files that a task may write to, and give them its user.

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
    # Its way alone: the next task may be of another user, and know the names of this one's files.
    journal.folder.parent.chmod(0o711)
    os.chown(journal.folder, -1, user[1])
    journal.folder.chmod(0o710)
    for entry in walk(journal.artifacts):
        os.chown(entry.path, *user, follow_symlinks=False)
    for path in (journal.artifacts, journal.tmp, journal.logs / "stdout", journal.logs / "stderr"):
        os.chown(path, *user, follow_symlinks=False)
    journal.artifacts.chmod(0o700)


def shut(journal: Journal) -> None:
    """Let nobody but the agent get to the files of an attempt whose steps are over.

    Its user may be the next one's by now, while they are published. Raises OSError.
    """
    if journal.entry.user is not None:
        journal.folder.chmod(0o700)
