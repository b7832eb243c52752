"""What a step is: the spec's command, made into a plan that needs no agent."""

import math
import os
from pathlib import Path

from simagent.domain.spec import Command, Mpi, Spec
from simagent.ports.launcher import LaunchError, Ranks
from simagent.ports.runtime import StepLimits, StepPlan
from simagent.worker.containers import HOME, WORKDIR, sandbox
from simagent.worker.context import Context
from simagent.worker.journal import Journal


def plan_step(ctx: Context, spec: Spec, journal: Journal, number: int) -> StepPlan:
    """Plan a step of the attempt; the same plan each time. Raises `LaunchError`."""
    command = spec.commands[number]
    contained = journal.entry.image is not None
    env = _env(spec, command, journal)
    argv = command.argv()
    if command.mpi is not None:
        cpus = _limits(ctx, spec, journal).cpus
        argv = _launched(ctx, cpus, command.mpi, argv, tuple(env))
    if contained:
        inherited = {"HOME": HOME}
    else:
        passed = ctx.settings.pass_env
        inherited = {name: os.environ[name] for name in passed if name in os.environ}
    return StepPlan(
        folder=journal.steps,
        number=number,
        argv=argv,
        env=inherited | env,
        cwd=Path(WORKDIR if contained else journal.artifacts, command.workdir),
        stdin=command.stdin_bytes(),
        stdout=journal.logs / "stdout",
        stderr=journal.logs / "stderr",
        grace=spec.grace,
        orphan_limit=ctx.settings.orphan_limit,
        limits=_limits(ctx, spec, journal),
        sandbox=sandbox(spec, journal) if contained else None,
    )


def _env(spec: Spec, command: Command, journal: Journal) -> dict[str, str]:
    entry = journal.entry
    own = {
        "SIMAGENT_TASK_ID": entry.task,
        "SIMAGENT_EPOCH": str(entry.epoch),
        "SIMAGENT_RESTART": "0" if entry.attempt.restart is None else "1",
    }
    if spec.array is not None and spec.array.index is not None:
        own["SIMAGENT_ARRAY_INDEX"] = str(spec.array.index)
        own["SIMAGENT_ARRAY_SIZE"] = str(spec.array.size)
    return {**spec.env, **command.env, **own}


def _limits(ctx: Context, spec: Spec, journal: Journal) -> StepLimits:
    share, asked = journal.entry.share, spec.resources
    return StepLimits(
        memory_bytes=asked.memory if share.memory is None else share.memory,
        cpus=asked.cpus if share.cpus is None else share.cpus,
        cores=share.cores,
        processes=ctx.settings.max_processes,
        file_bytes=ctx.settings.max_file_bytes,
    )


def _launched(
    ctx: Context, cpus: float | None, mpi: Mpi, argv: tuple[str, ...], env: tuple[str, ...]
) -> tuple[str, ...]:
    if ctx.launcher is None:
        raise LaunchError("no mpirun was found on this machine: install MPICH")
    cores = len(os.sched_getaffinity(0))
    most = min(cores, math.ceil(cpus or cores))
    np = most if mpi.np == "max" else mpi.np
    ranks = Ranks(np=np, env=env, bind=mpi.bind, args=mpi.args)
    return ctx.launcher.command(ranks, argv)
