"""Whether a folder is the one that another host means, for the user whose ranks will use it.

``python -I -S token.py SHARED FOLDER FILE UID GID``, with the token on its standard input and the
standard library only; it becomes that user once it is loaded, who need not see this program. What
is wrong is printed, one line, and the exit code is 1. A program of its own can be given up where a
file server does not answer.
"""

import errno
import fcntl
import os
import sys
import time

_MOST_BYTES = 4096
_PATIENCE = 5.0
_LOOK_EVERY = 0.2
_HELD = (errno.EACCES, errno.EAGAIN)


def trouble(shared: str, folder: str, name: str, token: str) -> str:
    """Say in a line what is wrong with ``folder`` beneath ``shared``; empty: nothing is.

    Its file ``name`` has to hold the token, and to be locked by the other host. Another host's
    files may take a moment to show.
    """
    if not os.path.isdir(shared):
        return f"there is no folder {shared}: mount it, or set mpi.shared_dir"
    path = os.path.join(shared, folder)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            file = os.open(os.path.join(path, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            if time.monotonic() > deadline:
                return (
                    f"{path} of the head is not there: mpi.shared_dir is not the folder it shares"
                )
            time.sleep(_LOOK_EVERY)
        except OSError as error:
            return f"user {os.geteuid()} cannot read {path}: {error.strerror}"
        else:
            break
    try:
        return _told(file, shared, path, token)
    finally:
        os.close(file)


def _told(file: int, shared: str, path: str, token: str) -> str:
    if not os.path.realpath(path).startswith(os.path.realpath(shared) + os.sep):
        return f"{path} leads out of {shared}"
    if os.read(file, _MOST_BYTES).decode(errors="replace").strip() != token:
        return f"{path} is not the head's: mpi.shared_dir is not the folder that it shares"
    if os.fstatvfs(file).f_flag & os.ST_RDONLY:
        return f"{shared} is mounted read-only: ranks write there"
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return ""
        return f"files in {shared} cannot be locked: {error.strerror}"
    return f"{shared} does not show this host the locks of others: mount it so that it does"


def _become(uid: int, gid: int) -> None:
    if uid != os.geteuid():
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)


if __name__ == "__main__":
    _become(int(sys.argv[4]), int(sys.argv[5]))
    said = trouble(sys.argv[1], sys.argv[2], sys.argv[3], sys.stdin.read().strip())
    print(said, end="")  # noqa: T201 - that is how it answers
    sys.exit(1 if said else 0)
