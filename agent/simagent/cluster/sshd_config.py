"""The settings of a member's own ssh server, in the form of sshd_config(5)."""

import re
import shlex
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_ANSWER_LIMIT = 10.0

_CONFIG = """\
# Written by the agent: changes are lost. No file of the system's own ssh server is used.
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
AllowUsers {user}
ForceCommand exec {relay}
PermitRootLogin no
AuthenticationMethods publickey
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
HostbasedAuthentication no
UsePAM no
DisableForwarding yes
PermitTunnel no
PermitTTY no
PermitUserRC no
PermitUserEnvironment no
# The folder of these files is this agent's alone, which is looked at before each start.
StrictModes no
PidFile none
UseDNS no
PrintMotd no
Compression no
LoginGraceTime 20
MaxStartups 100:30:1000
ClientAliveInterval 15
ClientAliveCountMax 4
LogLevel INFO
"""
_SINCE_9_8 = """\
# A head that was refused while its key was not known yet is not to be locked out for it.
PerSourcePenalties no
"""


def config(
    folder: Path, *, port: int, user: str, relay: Sequence[str], version: tuple[int, int]
) -> str:
    """Write the settings of a server whose files are in ``folder``. Raises ValueError."""
    text = _CONFIG.format(port=port, folder=_plain(folder), user=user, relay=shlex.join(relay))
    return text + (_SINCE_9_8 if version >= (9, 8) else "")


def version(program: str) -> tuple[int, int]:
    """Ask an sshd for its version; (0, 0) where it does not tell."""
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(
            [program, "-V"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ANSWER_LIMIT,
            check=False,
        )
        found = re.search(r"OpenSSH_(\d+)\.(\d+)", said.stdout + said.stderr)
        if found is not None:
            return int(found[1]), int(found[2])
    return 0, 0


def _plain(path: Path) -> str:
    """Give a path as sshd_config(5) can have it. Raises ValueError."""
    text = str(path)
    if any(c.isspace() or c in "\"'%#$\\" for c in text):
        raise ValueError(f"sshd cannot use files in {text!r}: choose another state_dir")
    return text
