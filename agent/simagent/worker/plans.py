"""What a step is: the spec's command, made into a plan that needs no agent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from simagent.cluster import launch
from simagent.domain.spec import Command, Spec
from simagent.ports.launcher import Launcher, LaunchError, Ranks, Span
from simagent.ports.runtime import RANK, Launch, Sandbox, StepLimits, StepPlan
from simagent.worker.containers import HOME, LAUNCH, WORKDIR, sandbox
from simagent.worker.context import Context
from simagent.worker.cores import Layout, has_all_cpus, lay_out
from simagent.worker.hybrid import is_hybrid
from simagent.worker.journal import Journal, Place
from simagent.worker.users import variables


@dataclass(frozen=True, slots=True, kw_only=True)
class Over:
    """What the ranks of a step on other hosts need.

    ``hosts`` are the others, ``env`` is what MPI's daemons see there. ``folder`` is where `mpirun`
    finds what it calls in place of ssh, and ``files`` beside that. With ``contained`` the daemons
    run in the step's image; with ``each`` they run on the host, and each of so many ranks in a
    container of it.
    """

    hosts: tuple[Place, ...]
    env: Mapping[str, str]
    folder: Path
    files: Mapping[str, str]
    contained: bool
    each: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A step, ``shown`` to people as this command line; ``over`` tells of ranks elsewhere."""

    step: StepPlan
    shown: tuple[str, ...]
    over: Over | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Launched:
    """The command line of a step's ranks, its variables, and whether they lie on other hosts."""

    argv: tuple[str, ...]
    shown: tuple[str, ...]
    env: dict[str, str]
    over: Over | None = None
    launch: Launch | None = None
    """What starts the ranks, where that is the host's, and they are in containers."""


def plan_step(ctx: Context, spec: Spec, journal: Journal, number: int) -> Planned:
    """Plan a step of the attempt; the same plan each time. Raises `LaunchError`."""
    command = spec.commands[number]
    contained = journal.entry.image is not None
    limits = _limits(ctx, spec, journal)
    argv, env = command.argv(), _env(spec, command, journal)
    run = _Launched(argv=argv, shown=argv, env=env)
    if command.mpi is not None:
        run = _launch(ctx, spec, journal, number, run)
    user = None if contained else journal.entry.user
    own = variables(ctx.settings.pass_env, user, journal.tmp)
    inherited = {"HOME": HOME} if contained else own
    folder = None if run.over is None else run.over.folder
    step = StepPlan(
        folder=journal.steps,
        number=number,
        argv=run.argv,
        env=inherited | run.env,
        cwd=Path(WORKDIR if contained else journal.artifacts, command.workdir),
        stdin=command.stdin_bytes(),
        stdout=journal.logs / "stdout",
        stderr=journal.logs / "stderr",
        grace=spec.grace,
        orphan_limit=ctx.settings.orphan_limit,
        limits=limits,
        sandbox=_sandbox(spec, journal, run, folder) if contained else None,
        launch=run.launch,
        user=user,
    )
    return Planned(step=step, shown=run.shown, over=run.over)


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


def _launch(ctx: Context, spec: Spec, journal: Journal, number: int, run: _Launched) -> _Launched:
    """Make a program into the ranks of a step. Raises `LaunchError`."""
    entry, mpi = journal.entry, spec.commands[number].mpi
    assert mpi is not None
    limits = _limits(ctx, spec, journal)
    hybrid = is_hybrid(spec, spec.commands[number], ctx.settings.mpi_mode)
    contained = entry.image is not None and not hybrid
    of_docker = contained and entry.runtime == "docker"
    launcher = ctx.launchers.inside() if contained else ctx.launchers.find(mpi.version)
    layout = lay_out(
        mpi,
        cpus=limits.cpus,
        cores=limits.cores,
        # Docker's containers may use CPUs that this agent may not: those of another one.
        alone=not of_docker or has_all_cpus(),
        slots=ctx.settings.mpi_slots,
        hosts=[place.host for place in entry.hosts],
    )
    if layout.trouble is not None:
        raise LaunchError(layout.trouble)
    folder = journal.folder / "launch" / str(number)
    span = None
    if layout.hosts:
        seen = LAUNCH if contained else folder
        span = Span(hosts=layout.hosts, agent=launch.program(seen), network=entry.network)
    # Else each rank of a program with OpenMP would take all cores.
    env = {"OMP_NUM_THREADS": str(layout.threads)} | run.env
    if span is not None and launcher.name != "openmpi":
        env = _of_the_network(entry.hosts) | env
    ranks = Ranks(
        np=layout.np,
        env=tuple(env),
        bind=layout.bind,
        wished=mpi.bind is None,
        memory=not of_docker,  # which allows set_mempolicy(2) to CAP_SYS_NICE alone
        oversubscribe=mpi.oversubscribe,
        args=mpi.args,
        span=span,
        guard=not mpi.force,
    )
    over = _over(journal, layout, folder, contained)
    if hybrid:
        return _hybrid(launcher, ranks, replace(run, env=env), over, force=mpi.force)
    return _launched(launcher, ranks, run.argv, env, over)


def _of_the_network(hosts: Sequence[Place]) -> dict[str, str]:
    """Tell MPICH's ranks, by what its two libraries read, which network is theirs.

    Only where that was chosen, all hosts know it by the same name, and nothing faster is kept from
    ranks by it.
    """
    names = {place.interface for place in hosts}
    if len(names) > 1 or "" in names:
        return {}
    return dict.fromkeys(("FI_TCP_IFACE", "UCX_NET_DEVICES"), names.pop())


def _launched(
    launcher: Launcher,
    ranks: Ranks,
    argv: tuple[str, ...],
    env: dict[str, str],
    over: Over | None,
) -> _Launched:
    return _Launched(
        argv=launcher.command(ranks, argv),
        # What it looks at first is of no interest to people.
        shown=launcher.command(replace(ranks, guard=False), argv),
        env=dict(launcher.environment(ranks)) | env,
        # What says to mpirun how it comes to other hosts is not for its daemons there: that of
        # Open MPI 4 would look for the remote-launch agent, to start others in its turn.
        over=over and replace(over, env=env, files=launcher.files(ranks)),
    )


def _hybrid(
    launcher: Launcher, ranks: Ranks, run: _Launched, over: Over | None, *, force: bool
) -> _Launched:
    """Make a program into ranks in containers of their own, which bring the step's variables."""
    ranks = replace(ranks, env=(), guard=False, boxed=True)
    line = launcher.command(ranks, RANK)
    own = dict(launcher.environment(ranks))
    return replace(
        run,
        shown=(*line[: -len(RANK)], *run.argv),
        over=over and replace(over, env=run.env, files=launcher.files(ranks), each=ranks.np),
        launch=Launch(argv=line, np=ranks.np, env=own, mpi="" if force else launcher.mpi),
    )


def _sandbox(spec: Spec, journal: Journal, run: _Launched, folder: Path | None) -> Sandbox:
    """Describe the container of a step, or those of its ranks, which are no islands."""
    if run.launch is None:
        return sandbox(spec, journal, launch=folder)
    return replace(sandbox(spec, journal), network="host")


def _over(journal: Journal, layout: Layout, folder: Path, contained: bool) -> Over | None:
    used = {host.address for host in layout.hosts}
    others = tuple(place for place in journal.entry.hosts[1:] if place.address in used)
    if not others:
        return None
    return Over(hosts=others, env={}, folder=folder, files={}, contained=contained)
