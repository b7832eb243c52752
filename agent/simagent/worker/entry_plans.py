"""What runs on a member for a step of the head's: mpirun's own daemon, made into a plan."""

import os
from pathlib import Path, PurePosixPath

from simagent.cluster.duties import RefusedError
from simagent.cluster.messages import Enter
from simagent.domain.reasons import Reason
from simagent.ports.runtime import Mount, Sandbox, StepLimits, StepPlan
from simagent.worker.containers import HOME, TEMPORARY, WORKDIR, open_the_way
from simagent.worker.membership import Membership
from simagent.worker.sharing import beneath, check_user, relative

_MARK = "SIMAGENT_ENTRY"
"""Tells the ranks of an entry from others of the same task, where one machine has several hosts."""


def check_runtime(member: Membership, request: Enter) -> None:
    """See that a run is one that this member may start. Raises `RefusedError`."""
    check_user(member.settings, request.uid)
    relative(request.workdir, "workdir")
    if request.image is None:
        if request.runtime != "process":
            why = f"runtime: {request.runtime} needs an image"
            raise RefusedError(Reason.AGENT_ERROR, why)
        if not member.settings.allow_process:
            raise RefusedError(
                Reason.UNSUPPORTED,
                "ranks would be programs of this host, which is not allowed: set allow_process",
            )
        return
    check_container(member, request.runtime)


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
    if image is None:
        inherited = {n: os.environ[n] for n in settings.pass_env if n in os.environ}
    else:
        inherited = {"HOME": HOME}
    return StepPlan(
        folder=folder / "steps",
        number=0,
        argv=("/bin/sh", "-c", request.command),
        env=inherited | request.env | {_MARK: request.entry},
        cwd=Path(work if image is None else WORKDIR, request.workdir),
        stdout=folder / "stdout",
        stderr=folder / "stderr",
        grace=request.grace,
        orphan_limit=settings.orphan_limit,
        limits=StepLimits(
            memory_bytes=request.memory_bytes,
            processes=settings.max_processes,
            file_bytes=settings.max_file_bytes,
        ),
        sandbox=None if image is None else _sandbox(request, image, folder, work),
    )


def _sandbox(request: Enter, image: str, folder: Path, work: Path) -> Sandbox:
    mounts = [Mount(source=work, target=WORKDIR)]
    mounts += [Mount(source=folder / "tmp", target=PurePosixPath(path)) for path in TEMPORARY]
    attempt = request.attempt
    return Sandbox(
        image=image,
        uid=request.uid,
        gid=request.gid,
        mounts=tuple(mounts),
        network="host",
        shm_bytes=request.shm_bytes,
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
    if request.image is None or request.uid == os.geteuid():
        return
    open_the_way(tmp, top)
    for path in (tmp, *logs):
        os.chown(path, request.uid, request.gid)
