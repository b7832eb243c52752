"""Which errors are of the moment, and not of what was asked for."""

import errno


def passes(error: Exception) -> bool:
    """Tell whether an error is of what a machine lacks for a while: file descriptors, memory.

    Nothing can be concluded from what could not be read meanwhile.
    """
    lacks = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return isinstance(error, OSError) and error.errno in lacks
