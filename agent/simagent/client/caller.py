"""Who submits and kills tasks, for others to read."""

import getpass
import os
import socket


def whoami() -> str:
    """Give the user, by number where the system knows no name, and the machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container, anybody may be the user
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
