"""Runs steps in containers of a Docker Engine, one each.

The records of a step, beside those that `simagent.runtimes.records` knows:

``step-N.json``    that it is of this runtime, and its container; before the container is made
``step-N.begun``   written before the container is started: from then on it is never made again
``step-N.report``  how far it came, written inside the container
``step-N.stop``    that it was told to end, and by when
``step-N.room``    room on the disk for the last one, which a step that filled it leaves none for
``step-N.exit``    how it ended; then the container is removed
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from simagent import shim
from simagent.domain.reasons import Reason
from simagent.ports.runtime import RuntimeFailedError, Sandbox, StepPlan
from simagent.runtimes import records
from simagent.runtimes.docker_container import (
    LABEL_AGENT,
    LABEL_FOLDER,
    LABEL_STEP,
    NEW,
    REPORT_BYTES,
    container_name,
    report_path,
    settings,
    stdin_path,
)
from simagent.runtimes.docker_engine import DockerEngine, EngineAwayError, EngineRefusedError
from simagent.runtimes.docker_exit import ran
from simagent.runtimes.docker_step import DockerStep, exit_read, remove_container
from simagent.runtimes.static_shell import static_shell

_BUSYBOX = Path("/bin/busybox")
_AWAY_LIMIT = 30.0  # seconds
_LOOK_EVERY = 0.2
_BAD_FOR = 4.0
"""A trouble counts on for so many times as long as it took to find: callers have other work."""

# What an engine's error tells by its words alone.
_MEANINGS = (
    ("no space left on device", Reason.DISK_FULL, "make room where the engine keeps its data"),
    ("disk quota exceeded", Reason.DISK_FULL, "make room where the engine keeps its data"),
    ("docker-init", Reason.RUNTIME_FAILED, "install it on the engine's machine (Debian: tini)"),
    ("capabilities: [[gpu]]", Reason.UNSUPPORTED, "install the NVIDIA Container Toolkit"),
)


class DockerRuntime:
    """Runs steps in containers. `simagent.ports.runtime.Runtime` tells what each method does."""

    name = "docker"

    def __init__(
        self,
        engine: DockerEngine,
        allow_root_images: bool,
        agent: str,
        *,
        busybox: Path = _BUSYBOX,
    ) -> None:
        """Containers carry the name of the ``agent``, which reaps no others.

        Their first process is a static ``busybox`` of the host where there is one, else the
        image's /bin/sh.
        """
        self._engine = engine
        self._allow_root = allow_root_images
        self._agent = agent
        self._shell = static_shell((busybox,))
        self._trouble: str | None = None
        self._bad_until = 0.0

    def trouble(self) -> str | None:
        """Tell why no step can be started now, None where one can; never raises."""
        began = time.monotonic()
        if self._trouble is None or began >= self._bad_until:
            self._trouble = self._engine.trouble()
            found = time.monotonic()
            self._bad_until = found + _BAD_FOR * (found - began)
        return self._trouble

    def about(self) -> list[str]:
        """Tell which engine it is, and what of it could work better."""
        try:
            version = self._engine.version().get("Version", "of an unknown version")
            restored = self._engine.live_restore()
        except (EngineAwayError, EngineRefusedError) as error:
            return [str(error)]
        notes = [f"Docker Engine {version} at {self._engine.host}"]
        if not restored:
            notes.append("live-restore is off: an engine that is restarted ends what it runs")
        return notes

    def start(self, plan: StepPlan) -> DockerStep:
        """Start the step, or attach where it was started before: never runs a step twice.

        Raises `RuntimeFailedError`.
        """
        sandbox = plan.sandbox
        if sandbox is None:
            raise RuntimeFailedError(
                Reason.AGENT_ERROR, "a step without a sandbox is none of Docker"
            )
        if sandbox.uid == 0 and not self._allow_root:
            message = "commands in containers run as root only where allow_root_images is set"
            raise RuntimeFailedError(Reason.IMAGE_UNUSABLE, message)
        try:
            plan.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _turn(plan.folder):
                step = self.attach(plan)
                return step if step is not None else self._start(plan, sandbox)
        except OSError as error:
            raise RuntimeFailedError(
                Reason.DISK_FULL
                if error.errno in (errno.ENOSPC, errno.EDQUOT)
                else Reason.AGENT_ERROR,
                f"cannot start the step: {error}",
            ) from error

    def attach(self, plan: StepPlan) -> DockerStep | None:
        """Find a step that was started before; None if it never was.

        Raises `RuntimeFailedError` while that cannot be known.
        """
        try:
            record = records.read(plan, "json")
            if record is None or record.get("runtime") != self.name:
                return None
            over = exit_read(plan)
            if over is not None:
                return DockerStep(self._engine, plan, record["container"], exit_=over)
            begun = records.read(plan, "begun")
            if begun is None:
                return None
            if (trouble := self._engine.trouble()) is not None:  # told sooner than by `find`
                raise RuntimeFailedError(Reason.RUNTIME_FAILED, trouble)
            with _failures():
                found = self._engine.find(record["container"])
            if found is not None and not ran(found["State"]):
                return None  # its start failed, or never came to pass
            return DockerStep(
                self._engine, plan, record["container"], found=found, boot=begun["boot_id"]
            )
        except (ValueError, LookupError, TypeError) as error:
            raise RuntimeFailedError(Reason.AGENT_ERROR, f"corrupt record: {error}") from None

    def keep_alive(self, folder: Path) -> None:
        """Tell the steps whose records are in ``folder`` that an agent looks after them."""
        # A disk that is full or read-only just now is no reason to end the agent.
        with suppress(OSError):
            if folder.is_dir():
                (folder / shim.ATTENTION).touch(mode=0o600)

    def reap(self, known: Callable[[Path], bool]) -> int:
        """End and remove what no attempt knows; tell how much that was."""
        count = 0
        with _failures():
            mine = {"label": f"{LABEL_AGENT}={self._agent}"}
            for found in self._engine.ask(lambda client: client.containers(all=True, filters=mine)):
                labels = found["Labels"]
                folder = Path(labels.get(LABEL_FOLDER, "/"))
                if not known(folder):
                    remove_container(self._engine, found["Id"])
                    count += 1
                elif (folder / f"step-{labels.get(LABEL_STEP)}.exit").exists():
                    remove_container(self._engine, found["Id"])
        return count

    def _start(self, plan: StepPlan, sandbox: Sandbox) -> DockerStep:
        name = container_name(plan.folder, plan.number)
        begun = plan.folder / f"step-{plan.number}.begun"
        with _failures():
            # An order to start it may still be on its way: then the container has to stay as it is.
            if not begun.exists():
                shell = self._write(plan, sandbox, name)
                self._create(name, settings(plan, sandbox, agent=self._agent, shell=shell))
                records.keep_room(plan)
                records.replace(begun, {"boot_id": shim.boot_id()})
            try:
                self._engine.ask(lambda client: client.start(name))
                found = self._engine.find(name)
            except EngineRefusedError:
                remove_container(self._engine, name)
                begun.unlink(missing_ok=True)
                raise
            except EngineAwayError:
                return self._started_after_all(plan)
        boot = shim.boot_id()
        return DockerStep(self._engine, plan, name, found=found, boot=boot, watched=True)

    def _started_after_all(self, plan: StepPlan) -> DockerStep:
        """Find out whether it was started: only the engine knows, and only once it answers."""
        deadline = time.monotonic() + _AWAY_LIMIT
        while self._engine.trouble() is not None and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY)
        step = self.attach(plan)
        if step is None:
            message = "the Docker Engine went away instead of starting the container"
            raise RuntimeFailedError(Reason.RUNTIME_FAILED, message)
        return step

    def _create(self, name: str, body: dict[str, Any]) -> None:
        def create(client: Any) -> None:
            client.create_container_from_config(body, name=name)

        try:
            self._engine.ask(create)
        except EngineRefusedError as error:
            if error.status != 409:
                raise
            # From an earlier try that did not come to start it.
            remove_container(self._engine, name)
            self._engine.ask(create)

    def _write(self, plan: StepPlan, sandbox: Sandbox, name: str) -> Path | None:
        """Write what the container needs, and its record; give the shell, if it is not its own."""
        self.keep_alive(plan.folder)
        shell = self._shell and plan.folder / "sh"
        # A copy: an agent that is in a container itself has another /bin than the engine's machine.
        if self._shell is not None and shell is not None and not shell.exists():
            records.replace(shell, self._shell.read_bytes())
            shell.chmod(0o755)
        if plan.stdin is not None:
            _give(stdin_path(plan), plan.stdin, sandbox)
        report = f"{NEW}\n".encode().ljust(REPORT_BYTES)
        _give(report_path(plan.folder, plan.number), report, sandbox)
        record = {"format": 1, "runtime": self.name, "container": name, "argv": plan.argv}
        records.replace(plan.folder / f"step-{plan.number}.json", record)
        return shell


def _give(path: Path, content: bytes, sandbox: Sandbox) -> None:
    """Write a file that the step's user may use, where it is mounted."""
    records.replace(path, content)
    if sandbox.uid != os.geteuid():
        os.chown(path, sandbox.uid, sandbox.gid)


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Be the only one who starts a step of this attempt."""
    lock = os.open(folder / "docker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextmanager
def _failures() -> Iterator[None]:
    """Turn the engine's errors into `RuntimeFailedError`."""
    try:
        yield
    except EngineAwayError as error:
        raise RuntimeFailedError(Reason.RUNTIME_FAILED, str(error)) from error
    except EngineRefusedError as error:
        text = str(error)
        for sign, reason, hint in _MEANINGS:
            if sign in text.lower():
                raise RuntimeFailedError(reason, f"{text}: {hint}") from error
        message = f"the Docker Engine refuses: {text}"
        raise RuntimeFailedError(Reason.RUNTIME_FAILED, message) from error
