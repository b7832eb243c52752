"""What a step is: the spec's command, made into a plan that needs no agent."""

import os
from collections.abc import Mapping
from pathlib import Path

from simagent.domain.spec import Command, Mpi, Spec
from simagent.ports.launcher import Launcher, LaunchError, Ranks
from simagent.ports.runtime import StepLimits, StepPlan
from simagent.worker.containers import HOME, WORKDIR, sandbox
from simagent.worker.context import Context
from simagent.worker.cores import Layout, lay_out
from simagent.worker.journal import Journal


def plan_step(ctx: Context, spec: Spec, journal: Journal, number: int) -> StepPlan:
    """Plan a step of the attempt; the same plan each time. Raises `LaunchError`."""
    command = spec.commands[number]
    contained = journal.entry.image is not None
    env = _env(spec, command, journal)
    argv = command.argv()
    limits = _limits(ctx, spec, journal)
    if command.mpi is not None:
        launchers = ctx.launchers
        launcher = launchers.inside() if contained else launchers.find(command.mpi.version)
        layout = lay_out(command.mpi, cpus=limits.cpus, cores=limits.cores, alone=not contained)
        argv, env = _launched(launcher, command.mpi, layout, argv, env)
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
        limits=limits,
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
    launcher: Launcher, mpi: Mpi, layout: Layout, argv: tuple[str, ...], env: Mapping[str, str]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Give the command line of a step's ranks, and its variables. Raises `LaunchError`."""
    if layout.trouble is not None:
        raise LaunchError(layout.trouble)
    # Else each rank of a program with OpenMP would take all cores.
    env = {"OMP_NUM_THREADS": str(layout.threads)} | dict(env)
    ranks = Ranks(
        np=layout.np,
        env=tuple(env),
        bind=layout.bind,
        oversubscribe=mpi.oversubscribe,
        args=mpi.args,
    )
    return launcher.command(ranks, argv), dict(launcher.environment(ranks)) | env
