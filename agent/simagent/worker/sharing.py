"""The folder that the hosts of a cluster share, as a member sees it."""

import os
import pwd
import subprocess
import sys
from contextlib import suppress
from pathlib import Path, PurePosixPath

from simagent.cluster import token as program
from simagent.cluster.duties import RefusedError
from simagent.cluster.messages import TOKEN, Check
from simagent.domain.reasons import Reason
from simagent.worker.context import Settings
from simagent.worker.membership import Membership

_WITHIN = 20.0
NOT_SHARED = "mpi.shared_dir is not set: name the folder that the hosts of the cluster share"


def verify(member: Membership, request: Check) -> None:
    """See that a folder is the head's, for the ranks' user, and its locks. Raises `RefusedError`.

    In a process of its own, which is given up where the file server does not answer.
    """
    beneath(member, request.folder)
    shared, uid = member.shared_dir, request.uid
    check_user(member.settings, uid)
    where = (str(shared), request.folder, TOKEN, str(uid), str(_group(uid)))
    try:
        tried = subprocess.Popen(
            (sys.executable, "-I", "-S", program.__file__, *where),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            env={},
        )
        told, _ = tried.communicate(request.token, timeout=_WITHIN)
    except subprocess.TimeoutExpired:
        tried.kill()  # and not waited for: in the midst of a call to a file server it stays
        why = f"{shared} does not answer within {_WITHIN:g} s: look after its file server"
        raise RefusedError(Reason.MPI_HOST_LOST, why) from None
    except OSError as error:
        raise RefusedError(Reason.AGENT_ERROR, f"{shared} cannot be tried: {error}") from None
    if tried.returncode != 0:
        lines = told.strip().splitlines()
        why = lines[-1] if lines else f"the test of {shared} ended with {tried.returncode}"
        raise RefusedError(Reason.MPI_HOST_LOST, why)


def beneath(member: Membership, folder: str) -> Path:
    """Give the path of a folder of the head's here; looks at no file. Raises `RefusedError`."""
    if member.shared_dir is None:
        raise RefusedError(Reason.MPI_HOST_LOST, NOT_SHARED)
    return member.shared_dir / relative(folder, "folder")


def relative(text: str, name: str) -> PurePosixPath:
    """Take a path of another machine that may lead nowhere but down. Raises `RefusedError`."""
    path = PurePosixPath(text)
    if (
        path.is_absolute()
        or ".." in path.parts
        or "\0" in text
        or (not path.parts and name == "folder")
    ):
        raise RefusedError(
            Reason.AGENT_ERROR, f"{name}: {text!r} does not lie beneath the shared folder"
        )
    return path


def check_user(settings: Settings, uid: int) -> None:
    """See that ranks may run as a user here. Raises `RefusedError`."""
    own = os.geteuid()
    allowed = {own}
    if own == 0:
        allowed = {user for user, _ in settings.users.all}
        programs = settings.allow_process and settings.users.own_programs
        if settings.allow_root_images or programs:
            allowed.add(0)
    if uid in allowed:
        return
    there = ", ".join(str(user) for user in sorted(allowed))
    raise RefusedError(
        Reason.MPI_HOST_LOST,
        f"ranks run as user {uid} on the head, here as {there}: have the same user on all hosts",
    )


def _group(uid: int) -> int:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_gid
    return uid
