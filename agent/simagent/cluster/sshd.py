"""A member's own ssh server: it lets in one key of one user, for the relay and nothing else."""

import json
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from simagent.cluster import relay
from simagent.cluster.keyfiles import KeyFileError, make_key, write
from simagent.cluster.messages import BEAT_EVERY, SILENT_AFTER
from simagent.cluster.processes import Process, end, found, running_with
from simagent.cluster.sshd_config import config, version

AGENT_BACK_WITHIN: Final = 60.0
"""Seconds that a relay waits for its agent, which is being started anew, say."""

_MPI_USER = "simagent-mpi"
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_NO_SHELL = re.compile(r".*/(nologin|false|true|sync|halt|shutdown)")
_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]+={0,2}( [^\n]*)?")
_START_LIMIT, _START_PAUSE, _STOP_LIMIT = 10.0, 0.02, 5.0
_LOG_BYTES = 1 << 20
_IN_USE = "Address already in use"


class SshdError(Exception):
    """The server does not run; the message says why, and what to do."""


def default_user() -> str:
    """Tell whom a member lets in: the agent's own user, for root's the one that is made for it."""
    if os.geteuid() == 0:
        with suppress(KeyError):
            return pwd.getpwnam(_MPI_USER).pw_name
    return pwd.getpwuid(os.geteuid()).pw_name


def relay_command(socket: Path) -> tuple[str, ...]:
    """Give the command line of a relay that leads to the member agent at ``socket``."""
    times = (BEAT_EVERY, SILENT_AFTER, AGENT_BACK_WITHIN)
    script = os.path.abspath(relay.__file__)
    return (sys.executable, "-I", "-S", script, str(socket), *(f"{time:g}" for time in times))


class Sshd:
    """The ssh server of a member, with its files in ``folder``; it outlives the agent.

    It is openssh-server's, but knows no file of the system's own one. It runs as ``user``, never
    as root: whom it lets in is that user, for ``relay``. The relay must be able to connect to the
    member agent's socket as that user. ``user`` is the agent's own, but for an agent of root's;
    then that user must be able to pass to ``folder``.
    """

    def __init__(self, folder: Path, *, port: int, user: str, relay: Sequence[str]) -> None:
        self._folder = folder.absolute()
        self._port = port
        self._user = user
        self._relay = tuple(relay)
        self._started: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._lock = threading.Lock()
        self._looked_at: list[str | int] = []
        self._version = (0, 0)

    @property
    def host_key(self) -> str:
        """Give the public key that it proves itself by, as known_hosts(5) has it, without names.

        Made when first asked for, and kept. Raises `SshdError`.
        """
        path = self._folder / "host_key"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            key = make_key(path)
            if os.geteuid() == 0:
                self._folder.chmod(0o711)
                os.chown(path, self._account().pw_uid, -1)
        except (KeyFileError, OSError) as error:
            raise SshdError(str(error)) from None
        return key

    def trouble(self) -> str | None:
        """Tell what this machine lacks to run it, None where it lacks nothing; never raises."""
        try:
            self._program()
            self._account()
        except SshdError as error:
            return str(error)
        return None

    def authorize(self, public_key: str | None) -> None:
        """Let in this key, in the form of authorized_keys(5), and no other; None: nobody.

        Connections that are open stay so. Raises `SshdError`.
        """
        if public_key is not None and not _KEY.fullmatch(public_key):
            raise SshdError(f"{public_key[:100]!r} is no key of a head: is it of this version?")
        text = "" if public_key is None else f"restrict {public_key}\n"
        path = self._folder / "authorized_keys"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists() or path.read_text() != text:
                write(path, text, 0o644)
        except (OSError, ValueError) as error:
            raise SshdError(f"{path}: {error}") from None

    def ensure(self) -> None:
        """See to it that it runs: start it, or adopt the one of an earlier incarnation.

        One that was started for another port, user or relay, or from a program that was replaced
        since, is stopped first; its connections go on. To be called from time to time, by any
        thread; once it was told to `stop`, nothing is done. Raises `SshdError`.
        """
        with self._lock:
            if not self._stopped:
                self._ensure()

    def _ensure(self) -> None:
        program, account = self._program(), self._account()
        _ = self.host_key
        self._check_folder()
        if not (self._folder / "authorized_keys").exists():
            self.authorize(None)
        try:
            program_stat = os.stat(program)
        except OSError as error:  # it is being replaced
            raise SshdError(str(error)) from None
        identity: list[str | int] = [program, program_stat.st_mtime_ns, program_stat.st_size]
        text = self._config(identity)
        wanted = {"config": text, "program": identity}
        if self._started is not None:
            self._started.poll()  # else it stays a zombie
        log = self._folder / "sshd.log"
        with suppress(OSError):
            if log.stat().st_size > _LOG_BYTES:
                os.truncate(log, 0)
        record = self._record()
        running = self._running(record)
        if running is not None and all(record.get(key) == wanted[key] for key in wanted):
            return
        try:
            self._end(running)
            write(self._folder / "sshd_config", text, 0o644)
            self._start(program, account, wanted, log)
        except (OSError, subprocess.SubprocessError) as error:
            raise SshdError(f"{program} cannot be started: {error}") from None

    def stop(self) -> None:
        """Stop it for good, where it runs; open connections go on. Raises OSError."""
        with self._lock:
            self._stopped = True
            self._end(self._running(self._record()))
            if self._started is not None:
                with suppress(subprocess.TimeoutExpired):
                    self._started.wait(_STOP_LIMIT)

    def _end(self, running: Process | None) -> None:
        """End it, as written down, or as it is found: an agent may not live to write that."""
        arguments = ("-f", str(self._folder / "sshd_config"))
        for process in (running,) if running is not None else running_with("sshd", arguments):
            end(process, _STOP_LIMIT)

    def _program(self) -> str:
        folders = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN])
        program = shutil.which("sshd", path=folders)
        if program is None:
            raise SshdError("sshd not found: install openssh-server")
        return os.path.abspath(program)  # it executes itself again, and refuses a bare name

    def _account(self) -> pwd.struct_passwd:
        try:
            account = pwd.getpwnam(self._user)
        except KeyError:
            raise SshdError(f"this machine has no user {self._user!r}: set mpi.ssh_user") from None
        if account.pw_uid == 0:
            raise SshdError(
                "root is not let in by ssh: set mpi.ssh_user to a user with a shell, such as one "
                "made by `useradd --system --shell /bin/sh simagent-mpi`"
            )
        if os.geteuid() not in (0, account.pw_uid):
            raise SshdError(
                f"an agent that is not root's lets in its own user alone, not {self._user!r}: "
                "leave mpi.ssh_user away"
            )
        if _NO_SHELL.fullmatch(account.pw_shell):
            raise SshdError(
                f"the user {self._user} has no shell but {account.pw_shell}: give it one, by "
                f"`usermod --shell /bin/sh {self._user}`, or set mpi.ssh_user to another"
            )
        return account

    def _check_folder(self) -> None:
        """See whether nobody else can put files in the place of those in there."""
        try:
            its = self._folder.stat(follow_symlinks=False)
        except OSError as error:
            raise SshdError(str(error)) from None
        if not stat.S_ISDIR(its.st_mode) or its.st_uid != os.geteuid() or its.st_mode & 0o022:
            raise SshdError(
                f"{self._folder} can be written to by others: remove it, another is made then"
            )

    def _config(self, identity: list[str | int]) -> str:
        if self._looked_at != identity:
            self._looked_at, self._version = identity, version(str(identity[0]))
        try:
            return config(
                self._folder,
                port=self._port,
                user=self._user,
                relay=self._relay,
                version=self._version,
            )
        except ValueError as error:
            raise SshdError(str(error)) from None

    def _record(self) -> dict[str, Any]:
        try:
            record = json.loads((self._folder / "sshd.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def _running(self, record: dict[str, Any]) -> Process | None:
        try:
            process = Process(int(record["pid"]), int(record["start"]), str(record["boot_id"]))
        except (LookupError, TypeError, ValueError):
            return None
        return process if process.alive() else None

    def _start(
        self, program: str, account: pwd.struct_passwd, wanted: dict[str, Any], log: Path
    ) -> None:
        """Start it, and wait until it listens. Raises OSError and `SshdError`."""
        other = os.geteuid() == 0
        if other:
            self._check_relay(account)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(log, flags, 0o600)
        try:
            before = os.fstat(fd).st_size
            # In the foreground, as its child: that it cannot start shows at once.
            started = subprocess.Popen(
                [program, "-D", "-e", "-f", str(self._folder / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stdout=fd,
                stderr=fd,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath)},
                start_new_session=True,
                user=account.pw_uid if other else None,
                group=account.pw_gid if other else None,
                extra_groups=[] if other else None,
            )
        finally:
            os.close(fd)
        self._started = started
        process = found(started.pid)
        if process is not None:
            record = wanted | {"pid": process.pid, "start": process.start, "boot_id": process.boot}
            try:
                write(self._folder / "sshd.json", json.dumps(record), 0o600)
            except OSError:
                started.kill()
                started.wait(_STOP_LIMIT)
                raise
        deadline = time.monotonic() + _START_LIMIT
        while not _listens(said := _said(log, before)):
            if started.poll() is not None or time.monotonic() > deadline or _IN_USE in said:
                started.kill()
                started.wait(_STOP_LIMIT)
                raise SshdError(f"sshd does not run on port {self._port}: {_why(said)}")
            time.sleep(_START_PAUSE)

    def _check_relay(self, account: pwd.struct_passwd) -> None:
        """See whether the user can run the relay, which the agent, as root, always can."""
        files = [word for word in self._relay if word.startswith("/") and Path(word).is_file()]
        look = subprocess.run(
            [
                "/bin/sh",
                "-c",
                'for f; do test -r "$f" || { echo "$f"; exit 1; }; done',
                "-",
                *files,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            timeout=_START_LIMIT,
            check=False,
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
        )
        if look.returncode:
            raise SshdError(
                f"the user {self._user} may not read {look.stdout.strip()}: install simagent where "
                "every user can run it"
            )


def _said(log: Path, offset: int) -> str:
    with open(log, "rb") as file:
        file.seek(offset)
        return file.read(1 << 16).decode(errors="replace")


def _listens(said: str) -> bool:
    return "Server listening on " in said and _IN_USE not in said


def _why(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return next((line for line in lines if _IN_USE in line), (lines or ["it does not say why"])[-1])
