"""Apptainer as a program of this machine: its command line, its variables, what it can do here."""

import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simagent.runtimes.static_shell import static_shell

_OLDEST = (1, 2)
"""--mount, and namespaces without any privilege, work from this version on."""

_ANSWER_LIMIT = 20.0
_GOOD_FOR, _BAD_FOR = 300.0, 10.0
_NO_FOLDER = Path("/proc/none")
"""For who writes nothing: none that Apptainer could make, as root, nor one that it could close."""
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_USERNS = {
    "/proc/sys/user/max_user_namespaces": "0",
    "/proc/sys/kernel/unprivileged_userns_clone": "0",
}


@dataclass(frozen=True, slots=True)
class Setup:
    """What was found of Apptainer here; ``trouble`` tells why it cannot be used, if it cannot.

    ``notes`` are for whoever sets the machine up: what works, but could work better.
    """

    version: str = ""
    trouble: str | None = None
    notes: tuple[str, ...] = ()


class ApptainerProgram:
    """The program ``name``, an absolute path or looked for in PATH."""

    def __init__(self, name: str = "apptainer") -> None:
        self.name = name
        self._setup = Setup()
        self._looked: float | None = None

    def command(self, action: str, *options: str) -> list[str]:
        """Begin a command line; of its messages it prints errors only."""
        # Imported here, as it takes 80 ms; it knows the program by its earlier name.
        from spython.main.base import Client  # noqa: PLC0415

        client = Client()
        client.quiet = client.debug = False
        line: list[str] = client._init_command(action, ["--silent"])
        return [self.name, *line[1:], *options]

    def env(self, folder: Path) -> dict[str, str]:
        """Give the variables it is run with: all that it writes goes to ``folder``."""
        folders = [*os.environ.get("PATH", os.defpath).split(":"), *_SBIN]
        return {
            "PATH": ":".join(dict.fromkeys(folders)),
            "HOME": str(folder),
            "APPTAINER_CONFIGDIR": str(folder),
            "APPTAINER_CACHEDIR": str(folder),
            "APPTAINER_TMPDIR": str(folder),
        }

    def setup(self) -> Setup:
        """Look at what is installed; an answer is kept for a while. Never raises."""
        now = time.monotonic()
        good_for = _BAD_FOR if self._setup.trouble else _GOOD_FOR
        if self._looked is None or now - self._looked > good_for:
            self._setup, self._looked = self._look(), now
        return self._setup

    def _look(self) -> Setup:
        path = shutil.which(self.name)
        if path is None:
            return Setup(trouble=f"{self.name} is not installed: install apptainer")
        try:
            version = self._ask(path, "--version")
            built = self._ask(path, "buildcfg").splitlines()
        except (OSError, subprocess.SubprocessError) as error:
            return Setup(trouble=f"{path} does not answer: {error}")
        number = re.search(r"(\d+)\.(\d+)\.\d+\S*", version)
        if number is None or "apptainer" not in version:
            return Setup(trouble=f"{path} is not Apptainer but says {version.strip()[:80]!r}")
        if (int(number[1]), int(number[2])) < _OLDEST:
            return Setup(number[0], f"Apptainer {number[0]} is too old: install 1.2 or newer")
        if not _privileged(built) and (off := _no_userns()):
            return Setup(
                number[0], f"Apptainer needs user namespaces, and {off}: allow them, or install "
                "apptainer-suid"
            )  # fmt: skip
        return Setup(number[0], None, tuple(_notes()))

    def _ask(self, path: str, *args: str) -> str:
        return subprocess.run(
            [path, *args],
            env=self.env(_NO_FOLDER),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ANSWER_LIMIT,
            check=True,
        ).stdout


def _privileged(built: Sequence[str]) -> bool:
    """Tell whether it was installed with the setuid program that needs no user namespaces."""
    folders = [line.partition("=")[2] for line in built if line.startswith("LIBEXECDIR=")]
    try:
        mode = Path(*folders, "apptainer/bin/starter-suid").stat().st_mode
    except OSError:
        return False
    return bool(mode & stat.S_ISUID)


def _no_userns() -> str:
    for path, off in _USERNS.items():
        try:
            if Path(path).read_text().strip() == off:
                return f"{path} is {off}"
        except OSError:
            continue
    return ""


def _is_for_all(device: Path) -> bool:
    """Tell whether it can be used by whoever runs Apptainer, whom root's agent is not."""
    try:
        if os.geteuid() == 0:
            return device.stat().st_mode & 0o006 == 0o006
        return os.access(device, os.R_OK | os.W_OK)
    except OSError:
        return False


def _notes() -> list[str]:
    notes = []
    mounter = shutil.which("squashfuse_ll") or shutil.which("squashfuse")
    if mounter is None or not _is_for_all(Path("/dev/fuse")):
        notes.append(
            "Apptainer unpacks the image for each step, which takes seconds, and disk: install "
            "squashfuse and fuse3, and let all users use /dev/fuse"
        )
    if static_shell() is None:
        notes.append("images without a shell cannot be run: install busybox-static")
    return notes
