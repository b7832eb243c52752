"""What runs on a member for a step of the head's: mpirun's own daemon, made into a plan."""

import os
import re
from pathlib import Path, PurePosixPath

from simagent.cluster.duties import RefusedError
from simagent.cluster.messages import Enter, Fetch
from simagent.domain.images import parse_image
from simagent.domain.reasons import Reason
from simagent.ports.clock import Waitable
from simagent.ports.images import Image, ImageError, PullInterruptedError
from simagent.ports.runtime import Launch, Mount, Sandbox, StepLimits, StepPlan
from simagent.worker.containers import HOME, TEMPORARY, WORKDIR
from simagent.worker.membership import Membership
from simagent.worker.sharing import beneath, check_user, relative
from simagent.worker.users import open_the_way, variables

_MOST_GRACE = 3600.0
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MARK = "SIMAGENT_ENTRY"
"""Tells the ranks of an entry from others of the same task, where one machine has several hosts."""


def check_request(member: Membership, request: Enter) -> None:
    """See that a run is one that this member may start. Raises `RefusedError`."""
    relative(request.workdir, "workdir")
    for name, text in request.env.items():
        if not _ENV_NAME.fullmatch(name) or "\0" in text:
            raise RefusedError(
                Reason.AGENT_ERROR, f"env: {name[:100]!r} is no variable that can be"
            )
    if not request.command or "\0" in request.command:
        raise RefusedError(Reason.AGENT_ERROR, "command: there is none that can be run")
    if not 0 <= request.grace <= _MOST_GRACE:
        why = f"grace: use 0 to {_MOST_GRACE:g} seconds, not {request.grace:g}"
        raise RefusedError(Reason.AGENT_ERROR, why)
    if request.image is not None:
        check_container(member, request.runtime)
        _check_hybrid(member, request)
    elif request.runtime != "process":
        raise RefusedError(Reason.AGENT_ERROR, f"runtime: {request.runtime} needs an image")
    elif not member.settings.allow_process:
        raise RefusedError(
            Reason.UNSUPPORTED,
            "ranks would be programs of this host, which is not allowed: set allow_process",
        )
    check_user(member.settings, request.uid)
    _check_work(member, beneath(member, request.folder))


def _check_hybrid(member: Membership, request: Enter) -> None:
    """See that ranks may be started by a daemon of this host, where they are. Raises."""
    if not request.program:
        return
    if request.runtime != "apptainer" or request.ranks < 1:
        why = f"program: {request.ranks} ranks cannot be started in containers of {request.runtime}"
        raise RefusedError(Reason.AGENT_ERROR, why)
    if not member.hybrid:
        why = "this host starts no ranks in images by its own MPI: mpi.mode is contained"
        raise RefusedError(Reason.UNSUPPORTED, why)


def _check_work(member: Membership, work: Path) -> None:
    """See that the step's folder is here, beneath the shared one. Raises `RefusedError`."""
    assert member.shared_dir is not None
    try:
        there = work.is_dir() and work.resolve().is_relative_to(member.shared_dir.resolve())
    except OSError as error:
        raise RefusedError(Reason.MPI_HOST_LOST, f"{work}: {error.strerror}") from None
    if not there:
        why = f"{work} is not there: mpi.shared_dir is not the folder that the head shares"
        raise RefusedError(Reason.MPI_HOST_LOST, why)


def fetch_image(member: Membership, request: Fetch, gone: Waitable) -> None:
    """Have an image here that holds what the head's does. Raises `RefusedError`."""
    found = _ensure(member, request.runtime, request.image, gone)
    if request.digest not in ("", found.digest):
        raise RefusedError(
            Reason.IMAGE_UNUSABLE,
            f"image {request.image} is another one here ({found.digest}) than on the head "
            f"({request.digest}): have the same file on all hosts",
        )


def have_image(member: Membership, runtime: str, image: str | None, gone: Waitable) -> str | None:
    """Have an image here; give its handle, None where there is none. Raises `RefusedError`."""
    return None if image is None else _ensure(member, runtime, image, gone).handle


def _ensure(member: Membership, runtime: str, image: str, gone: Waitable) -> Image:
    check_container(member, runtime)
    try:
        return member.images[runtime].ensure(parse_image(image), gone)
    except ImageError as error:
        raise RefusedError(error.reason, str(error)) from None
    except ValueError as error:
        raise RefusedError(Reason.AGENT_ERROR, f"image: {error}") from None
    except PullInterruptedError:
        raise RefusedError(Reason.MPI_HOST_LOST, "the head waits for it no more") from None
    except OSError as error:
        raise RefusedError(Reason.RUNTIME_FAILED, f"{image}: {error}") from None


def check_gpus(member: Membership, wanted: int) -> None:
    """See that there are so many GPUs here, where they are known. Raises `RefusedError`."""
    there = len(member.gpus)
    if there and wanted > there:
        why = f"resources.gpus: {wanted} are asked for, {there} are here"
        raise RefusedError(Reason.UNSUPPORTED, why)


def check_container(member: Membership, runtime: str) -> None:
    """See that a runtime is one of containers, and works. Raises `RefusedError`."""
    if runtime not in member.settings.containers or runtime not in member.images:
        there = ", ".join(member.settings.containers) or "nothing that runs images"
        why = f"{runtime} is not set up here: there is {there}"
        raise RefusedError(Reason.RUNTIME_FAILED, why)
    trouble = member.runtimes[runtime].trouble()
    if trouble is not None:
        raise RefusedError(Reason.RUNTIME_FAILED, trouble)


def plan_entry(member: Membership, request: Enter, folder: Path, image: str | None) -> StepPlan:
    """Plan a run, in ``folder``; the same plan each time. Raises `RefusedError`.

    ``image`` is the handle of the request's.
    """
    work = beneath(member, request.folder)
    settings = member.settings
    command = ("/bin/sh", "-c", request.command)
    user = (request.uid, request.gid)
    host = variables(settings.pass_env, user, folder / "tmp")
    inherited = host if image is None else {"HOME": HOME}
    env = request.env | {_MARK: request.entry}
    # MPI's daemon is outside of the containers: the task's variables could have it do anything.
    launch = Launch(argv=command, np=request.ranks, env=host) if request.program else None
    return StepPlan(
        folder=folder / "steps",
        number=0,
        argv=request.program or command,
        launch=launch,
        env=inherited | env,
        cwd=Path(work if image is None else WORKDIR, request.workdir),
        stdout=folder / "stdout",
        stderr=folder / "stderr",
        grace=request.grace,
        orphan_limit=settings.orphan_limit,
        limits=StepLimits(
            memory_bytes=request.memory_bytes,
            cpus=request.cpus,
            processes=settings.max_processes,
            file_bytes=settings.max_file_bytes,
        ),
        sandbox=None if image is None else _sandbox(member, request, image, folder),
        user=user if image is None else None,
    )


def _sandbox(member: Membership, request: Enter, image: str, folder: Path) -> Sandbox:
    mounts = [Mount(source=beneath(member, request.folder), target=WORKDIR)]
    mounts += [Mount(source=folder / "tmp", target=PurePosixPath(path)) for path in TEMPORARY]
    attempt = request.attempt
    return Sandbox(
        image=image,
        uid=request.uid,
        gid=request.gid,
        mounts=tuple(mounts),
        network="host",
        shm_bytes=request.shm_bytes,
        gpus=request.gpus,
        gpu_ids=member.gpus[: request.gpus],
        labels={
            "simagent.project": attempt.project,
            "simagent.task": attempt.task,
            "simagent.epoch": str(attempt.epoch),
            "simagent.agent": request.agent,
            "simagent.entry": request.entry,
        },
    )


def lay_entry(request: Enter, folder: Path, top: Path) -> None:
    """Make what a run writes to on this host alone, for its user. Raises OSError.

    ``top`` is the folder from which on the user has to pass.
    """
    tmp = folder / "tmp"
    tmp.mkdir(mode=0o700, exist_ok=True)
    logs = (folder / "stdout", folder / "stderr")
    for path in logs:
        path.touch(mode=0o644)
    if request.uid == os.geteuid():
        return
    open_the_way(tmp, top)
    for path in (tmp, *logs):
        os.chown(path, request.uid, request.gid)
