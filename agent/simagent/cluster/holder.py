"""Makes the folder of an attempt in the one that hosts share, with a token in it that stays locked.

``python -I -S holder.py BASE FILE``, with the token as the first line of its standard input and the
standard library only. It prints 0 and holds the lock until its input ends, or else the number of
the error, which is `FOREIGN` where the folder above belongs to another user. A program of its own
can be given up where a file server does not answer.
"""

import errno
import fcntl
import os
import sys
from contextlib import suppress

FOREIGN = -1
_OPEN = 0o711
"""Others pass through, as the ranks' user has to, and look at nothing."""


class ForeignError(Exception):
    """The folder of the cluster belongs to somebody else, who could put another in its place."""


def held(base: str, name: str, token: str) -> int:
    """Make the folder ``base``, and in it a file with the token; give it, locked. Raises OSError.

    The lock is the whole process's (fcntl_locking(2)): it opens the file this once.
    """
    above = os.path.dirname(base)
    for folder in (above, base):
        with suppress(FileExistsError):
            os.mkdir(folder)
        # Others may write to a folder that is shared: no link of theirs is followed.
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(opened).st_uid != os.geteuid():
                raise ForeignError(folder)
            os.fchmod(opened, _OPEN)
        finally:
            os.close(opened)
    path = os.path.join(base, name)
    with suppress(FileNotFoundError):
        os.unlink(path)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    os.fchmod(file, 0o644)
    os.write(file, token.encode())
    os.fsync(file)
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


if __name__ == "__main__":
    try:
        held(sys.argv[1], sys.argv[2], sys.stdin.readline().strip())
        said = 0
    except ForeignError:
        said = FOREIGN
    except OSError as error:
        said = error.errno or errno.EIO
    print(said, flush=True)  # noqa: T201 - that is how it answers
    if said == 0:
        sys.stdin.read()
    sys.exit(1 if said else 0)
