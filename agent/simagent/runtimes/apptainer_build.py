"""Makes image files with ``apptainer build``, as a process group of its own that can be killed."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import psutil

from simagent.domain.reasons import Reason
from simagent.ports.clock import SystemClock, Waitable
from simagent.ports.images import ImageError, Progress, PullInterruptedError
from simagent.runtimes.apptainer_program import ApptainerProgram
from simagent.runtimes.build_user import build_user, give
from simagent.runtimes.workplace import remove_folder

_LOOK_EVERY = 0.5
_MUCH_CPU = 1.0
_SAID_BYTES = 8192
_ANSWER_LIMIT = 10.0
# Many times as fast as the default, for a few percent more bytes.
_FAST = ("--mksquashfs-args", "-comp zstd -Xcompression-level 1")
# An agent that is killed cannot end what it has begun; prctl(2): PR_SET_PDEATHSIG.
_ENDS_WITH_AGENT = """
import ctypes, os, sys, warnings  # execvp imports it, perhaps from where the user cannot go
agent, user, group, *argv = sys.argv[1:]
try:  # it may need much memory, for which the agent is not to be killed
    with open("/proc/self/oom_score_adj", "r+") as file:
        if int(file.read()) < 0:
            file.write("0")
except OSError:
    pass
if user:
    os.setgroups([])
    os.setgid(int(group))
    os.setuid(int(user))
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() == int(agent):
    os.execvp(argv[0], argv)
"""
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
# What it says, in lower case; the first that is found counts.
_SAYINGS: tuple[tuple[str, Reason], ...] = (
    ("no space left on device", Reason.DISK_FULL),
    ("disk quota exceeded", Reason.DISK_FULL),
    ("no image found in", Reason.IMAGE_PLATFORM),
    ("does not match", Reason.IMAGE_CORRUPT),
    ("did not match", Reason.IMAGE_CORRUPT),
    ("error verifying", Reason.IMAGE_CORRUPT),
    ("invalid tar header", Reason.IMAGE_CORRUPT),
    ("invalid header", Reason.IMAGE_CORRUPT),
    ("invalid checksum", Reason.IMAGE_CORRUPT),
    ("corrupt", Reason.IMAGE_CORRUPT),
    ("manifest unknown", Reason.IMAGE_NOT_FOUND),
    ("name unknown", Reason.IMAGE_NOT_FOUND),
    ("unauthorized", Reason.IMAGE_DENIED),
    ("authentication required", Reason.IMAGE_DENIED),
    ("denied", Reason.IMAGE_DENIED),
)
_RETRYABLE = frozenset({Reason.DISK_FULL, Reason.IMAGE_PULL})


@dataclass(frozen=True, slots=True)
class Source:
    """What an image file is made of, as Apptainer names it, and what a registry needs besides.

    ``otherwise`` is what a failure means that says nothing of itself.
    """

    name: str
    total_bytes: int | None = None
    plain: bool = False
    logins: tuple[tuple[str, dict[str, str]], ...] = ()
    otherwise: Reason = Reason.IMAGE_PULL


class Builder:
    """Makes image files, each in a folder of its own that is gone afterwards."""

    def __init__(self, program: ApptainerProgram, *, patience: float = 180.0) -> None:
        """It may neither download nor compute anything for ``patience`` seconds."""
        self._program = program
        self._patience = patience

    def build(
        self, source: Source, folder: Path, *wakes: Waitable, progress: Progress | None = None
    ) -> Path:
        """Make an image file in ``folder``, which is emptied before and holds nothing else after.

        Raises `ImageError`, `PullInterruptedError`.
        """
        remove_folder(folder)
        try:
            home = folder / "home"
            home.mkdir(mode=0o700, parents=True)
            image = folder / "image.sif"
            user = build_user(folder.parent, source.name)
            argv = self._argv(source, image, home)
            with open(home / "said", "w+b") as said:
                give((folder, home, *home.iterdir()), user)
                code = self._run(argv, home, said.fileno(), *wakes, user=user,
                                 progress=progress, total=source.total_bytes)  # fmt: skip
                said.seek(max(0, said.seek(0, os.SEEK_END) - _SAID_BYTES))
                text = said.read().decode(errors="replace")
            remove_folder(home)
            if code == 0:
                give((image,), user and (0, 0))
        except OSError as error:
            raise disk_error(error, folder) from error
        if code != 0:
            raise _failure(source, text, code)
        return image

    def _argv(self, source: Source, image: Path, home: Path) -> list[str]:
        options = ["--force", "--disable-cache"]
        if _has_zstd():
            options += _FAST
        if source.plain:
            options.append("--no-https")
        if source.logins:
            logins = home / "logins.json"
            logins.touch(mode=0o600)
            logins.write_text(json.dumps({"auths": dict(source.logins)}))
            options += ["--authfile", str(logins)]
        return [*self._program.command("build", *options), str(image), source.name]

    def _run(
        self, argv: Sequence[str], home: Path, said: int, *wakes: Waitable,
        user: tuple[int, int] | None, progress: Progress | None, total: int | None,
    ) -> int:  # fmt: skip
        passed = (*_PROXIES, *(name.upper() for name in _PROXIES), *_CERTIFICATES)
        env = {name: os.environ[name] for name in passed if name in os.environ}
        python = (sys.executable, "-I", "-S", "-c", _ENDS_WITH_AGENT, str(os.getpid()))
        uid, gid = user or ("", "")
        process = subprocess.Popen(
            [*python, str(uid), str(gid), *argv],
            env=env | self._program.env(home),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            self._watch(process, home.parent, *wakes, progress=progress, total=total)
        finally:
            # Also what it started, where it ended by itself.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return process.returncode

    def _watch(
        self, process: "subprocess.Popen[bytes]", folder: Path, *wakes: Waitable,
        progress: Progress | None, total: int | None,
    ) -> None:  # fmt: skip
        """Return when it has ended. Raises `ImageError` where it stalls, `PullInterruptedError`."""
        clock = SystemClock()
        ended = _Handle(os.pidfd_open(process.pid))
        most = written = 0
        computed, moved = 0.0, time.monotonic()
        try:
            while not clock.wait(0, ended):
                if clock.wait(_LOOK_EVERY, ended, *wakes) and not clock.wait(0, ended):
                    raise PullInterruptedError
                size, cpu = _written(folder), _cpu(process.pid)
                if size != written or cpu > computed + _MUCH_CPU:
                    written, computed, moved = size, cpu, time.monotonic()
                elif time.monotonic() - moved > self._patience:
                    raise ImageError(
                        Reason.IMAGE_PULL,
                        f"the pull has stalled: nothing came for {self._patience:g} seconds",
                        retryable=True,
                    )
                most = max(most, size if total is None else min(size, total))
                if progress is not None:
                    progress(most, total)
        finally:
            ended.close()


class _Handle:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


def disk_error(error: OSError, path: Path) -> ImageError:
    """Name the failure of something on the agent's own disk."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return ImageError(
        Reason.DISK_FULL if full else Reason.IMAGE_PULL,
        f"cannot keep images in {path}: {error.strerror or error}",
        retryable=True,
    )


def _failure(source: Source, text: str, code: int) -> ImageError:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fatal = [line.partition(":")[2].strip() for line in lines if "FATAL" in line]
    said = (fatal or lines or [f"apptainer build ended with {code}"])[-1]
    said = said.removeprefix("While performing build: ").removeprefix("conveyor failed to get: ")
    reason = next((r for part, r in _SAYINGS if part in said.lower()), source.otherwise)
    return ImageError(reason, f"{source.name}: {said}", retryable=reason in _RETRYABLE)


def _has_zstd() -> bool:
    """Tell whether mksquashfs is one that can compress fast."""
    program = shutil.which("mksquashfs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        return False
    try:
        done = subprocess.run(
            [program, "-help"], capture_output=True, timeout=_ANSWER_LIMIT, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return b"zstd" in done.stdout + done.stderr


def _written(folder: Path) -> int:
    """Count the bytes that were downloaded, and those of the image file."""
    found = 0
    layers = (file for bundle in folder.glob("home/bundle-temp-*") for file in bundle.rglob("*"))
    with suppress(OSError, RecursionError):  # it is moved meanwhile, or a thousand folders deep
        for path in chain([folder / "image.sif"], layers):
            with suppress(OSError):
                found += path.lstat().st_size
    return found


def _cpu(pid: int) -> float:
    """Give the seconds that a process and those it started have computed."""
    found = 0.0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                used = each.cpu_times()
                found += used.user + used.system + used.children_user + used.children_system
    return found
