"""Whether tasks get an answer from the metadata server of a cloud, which gives credentials away."""

import subprocess
import sys
from collections.abc import Collection
from typing import Literal

SERVERS = ("169.254.169.254", "fd00:ec2::254")
_WITHIN = 10.0

# A packet that a rule drops or rejects on its way out fails at once, and one of UDP needs nobody
# who answers. By what it prints: open, closed, or nowhere.
_PROBE = """
import errno, os, socket, sys
def look(server):
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as it:
            it.connect((server, 80))
            it.send(b"")
    except OSError as error:
        return "closed" if error.errno in (errno.EPERM, errno.EACCES) else "nowhere"
    return "open"
uid, gid, *servers = sys.argv[1:]
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
print(*(look(server) for server in servers))
"""

Way = Literal["open", "closed", "nowhere"]


def ways(user: tuple[int, int], servers: Collection[str] = SERVERS) -> dict[str, Way]:
    """Tell, by server, whether packets of a user are let out to it; ``nowhere``: no route is there.

    Nothing where that cannot be tried. For users other than its own only root can.
    """
    argv = (sys.executable, "-I", "-S", "-c", _PROBE, *map(str, user), *servers)
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_WITHIN,
            check=True, cwd="/",
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {}
    found: dict[str, Way] = {}
    for server, word in zip(servers, done.stdout.split(), strict=False):
        if word in ("open", "closed", "nowhere"):
            found[server] = word  # type: ignore[assignment]
    return found
