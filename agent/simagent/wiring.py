"""The only place that makes what works together, from the configuration."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from simagent.client import Tasks
from simagent.client.calls import Notice, log_notice
from simagent.client.pace import LOCAL_POLLS, REMOTE_POLLS
from simagent.config import Config, ConfigError
from simagent.domain.keys import TaskKeys
from simagent.engines import open_queue, open_store, queues
from simagent.ledger import Ledger
from simagent.ports.clock import SystemClock
from simagent.ports.images import Images
from simagent.ports.launcher import Launcher
from simagent.ports.runtime import Runtime

if TYPE_CHECKING:  # clients need no worker: they start faster without
    from simagent.launchers.installed import InstalledLaunchers, Mpirun
    from simagent.runtimes.cgroups import Cgroups
    from simagent.worker.context import Context, Settings
    from simagent.worker.loop import Agent
    from simagent.worker.member import MemberAgent
    from simagent.worker.membership import Membership
    from simagent.worker.sweep import Sweeper


def open_tasks(config: Config, *, notice: Notice = log_notice) -> Tasks:
    """Make what works on the tasks of the project; ``notice`` is told what is worth knowing."""
    return Tasks(
        Ledger(open_store(config)),
        queues(config),
        SystemClock(),
        project=config.project,
        notice=notice,
        polls=REMOTE_POLLS if config.store_charges else LOCAL_POLLS,
    )


def open_launchers(config: Config) -> "InstalledLaunchers":
    """Find what starts MPI ranks on this machine, and in images."""
    from simagent.launchers.hydra import HydraLauncher
    from simagent.launchers.inside import InsideLauncher
    from simagent.launchers.installed import InstalledLaunchers
    from simagent.launchers.openmpi import OpenMpiLauncher

    root, allow = os.geteuid() == 0, config.mpi.allow
    build: dict[str, Callable[[Mpirun], Launcher]] = {
        "hydra": lambda it: HydraLauncher(it.path, version=it.version, allow=allow),
        "openmpi": lambda it: OpenMpiLauncher(it.path, version=it.version, root=root, allow=allow),
    }
    return InstalledLaunchers(config.mpirun, build, InsideLauncher(allow=allow))


def find_cgroups() -> Path:
    """Tell where the cgroups of steps would be; changes nothing. Raises `ConfigError`."""
    from simagent.runtimes.cgroups import NoCgroupsError, find

    try:
        return find().base
    except NoCgroupsError as error:
        raise ConfigError(f"no cgroups can be had: {error}") from error


def open_cgroups(config: Config) -> "Cgroups | None":
    """Set up cgroups for steps; None where rlimits have to do. Raises `ConfigError`."""
    import structlog

    from simagent.runtimes.cgroups import Cgroups, NoCgroupsError, find

    if config.limits == "rlimits":
        return None
    try:
        return Cgroups.open(find())
    except NoCgroupsError as error:
        if config.limits == "cgroup":
            raise ConfigError(f"limits: no cgroups can be had: {error}") from error
        structlog.get_logger().debug("limits are enforced by rlimits", why=str(error))
        return None


def open_runtimes(
    config: Config, cgroups: "Cgroups | None" = None, *, agent: str = "", every: bool = False
) -> dict[str, Runtime]:
    """Make what can run steps here, by name.

    Those that are neither wanted nor there are left out, unless ``every`` one is needed to look
    after what runs already; ``agent`` is whose containers they are.
    """
    from simagent.runtimes.process import ProcessRuntime

    # Also where no new commands of the host may run: those that do have to be looked after.
    process = ProcessRuntime(cgroups)
    runtimes: dict[str, Runtime] = {"process": process}
    if every or _has_docker(config):
        from simagent.runtimes.docker import DockerRuntime
        from simagent.runtimes.docker_engine import DockerEngine

        engine = DockerEngine(config.docker_host)
        runtimes["docker"] = DockerRuntime(engine, config.allow_root_images, agent)
    if every or _has_apptainer(config):
        from simagent.runtimes.apptainer import ApptainerRuntime

        runtimes["apptainer"] = ApptainerRuntime(config.apptainer, process)
    return runtimes


def open_images(config: Config, *, every: bool = False) -> dict[str, Images]:
    """Make the image caches of the container runtimes that are here, or of ``every``, by name."""
    found: dict[str, Images] = {}
    folder = config.state_dir.absolute() / "images"
    if every or _has_docker(config):
        from simagent.runtimes.docker_engine import DockerEngine
        from simagent.runtimes.docker_images import DockerImages

        found["docker"] = DockerImages(DockerEngine(config.docker_host), folder / "docker")
    if every or _has_apptainer(config):
        from simagent.runtimes.apptainer_images import ApptainerImages

        found["apptainer"] = ApptainerImages(
            config.apptainer,
            folder / "apptainer",
            open_store(config),
            insecure_registries=config.insecure_registries,
            sif_cache=config.sif_cache,
        )
    return found


def _containers(config: Config) -> tuple[str, ...]:
    """Name the runtimes that new tasks may have."""
    here = {"docker": _has_docker, "apptainer": _has_apptainer}
    return tuple(name for name in config.runtimes if here[name](config))


def _has_docker(config: Config) -> bool:
    named = config.docker_host or os.environ.get("DOCKER_HOST")
    here = Path("/var/run/docker.sock").exists() or shutil.which("dockerd")
    return "docker" in config.runtimes and bool(named or here)


def _has_apptainer(config: Config) -> bool:
    return "apptainer" in config.runtimes and shutil.which(config.apptainer) is not None


def open_agent(
    config: Config, *, until_empty: bool = False, only: TaskKeys | None = None
) -> "Agent":
    """Make the agent of this machine, on a state folder that is already held for it."""
    from simagent.worker.drain import DrainFile
    from simagent.worker.loop import Agent

    drain = DrainFile(config.state_dir)
    ctx = open_context(config)
    former = config.state_dir.absolute() / "member"
    if only is None and former.is_dir():
        from simagent.worker.former import end_membership

        end_membership(ctx, former)
    return Agent(
        ctx,
        slots=config.slots if only is None else 1,
        until_empty=until_empty,
        only=only,
        drain=drain,
        in_fleet=only is None,
    )


def open_member(config: Config) -> "MemberAgent":
    """Make the agent of a member of a cluster, on a state folder that is already held for it.

    Raises `ConfigError`.
    """
    import pwd

    from simagent.cluster.entrance import Entrance, EntranceError
    from simagent.cluster.sshd import Sshd, relay_command
    from simagent.worker.drain import DrainFile
    from simagent.worker.entries import Entries
    from simagent.worker.journal import Journals
    from simagent.worker.member import MemberAgent, MemberDuties, open_door

    if not Journals(config.state_dir).empty:
        raise ConfigError(
            f"role: an agent left tasks in {config.state_dir}, which a member does not carry on: "
            "start it once more as it was, and let it drain; or name another --state-dir"
        )
    member = _membership(config)
    user = config.mpi.ssh_user or pwd.getpwuid(os.geteuid()).pw_name
    users, gid = open_door(member.folder, user)
    socket = member.folder / "entrance"
    entries = Entries(member)
    entrance = Entrance(socket, MemberDuties(member, entries), member.clock, users=users, gid=gid)
    try:
        listener = entrance.listen()
    except EntranceError as error:
        raise ConfigError(str(error)) from error
    port = config.mpi.ssh_port
    return MemberAgent(
        member,
        entries,
        entrance,
        listener,
        Sshd(member.folder / "sshd", port=port, user=user, relay=relay_command(socket)),
        port=port,
        user=user,
        drain=DrainFile(config.state_dir),
    )


def _membership(config: Config) -> "Membership":
    from simagent.worker.cores import physical_cores
    from simagent.worker.identity import identify
    from simagent.worker.membership import Membership

    if config.cluster is None:
        raise ConfigError("cluster: a member needs the name of its cluster")
    cgroups, identity = open_cgroups(config), identify(config.state_dir, config.agent)
    launchers = open_launchers(config)
    limits = {"limits": "cgroup" if cgroups else "rlimits"}
    return Membership(
        cluster=config.cluster,
        # With short timeouts: what is read of the head is to be of now.
        ledger=Ledger(open_store(config, lease=True, told=_tell_of_store)),
        clock=SystemClock(),
        times=config.times,
        identity=replace(identity, machine={**identity.machine, **limits}),
        folder=config.state_dir.absolute() / "member",
        runtimes=open_runtimes(config, cgroups, agent=identity.agent),
        images=open_images(config),
        settings=_settings(config),
        slots=config.mpi.slots or physical_cores(),
        interface=config.mpi.interface,
        shared_dir=config.mpi.shared_dir,
        hybrid=config.mpi.mode != "contained",
        mpi=lambda: tuple(f"{it.flavour} {it.version}" for it in launchers.installed()),
    )


def open_context(config: Config) -> "Context":
    """Make all that the agent works with."""
    from simagent.clouds.choice import choose, facts
    from simagent.wiring_head import open_head
    from simagent.worker.context import Context
    from simagent.worker.identity import identify
    from simagent.worker.journal import Journals

    cgroups = open_cgroups(config)
    identity = identify(config.state_dir, config.agent)
    cloud = choose(config.cloud, config.cloud_endpoint, SystemClock().wall)
    machine = {"limits": "cgroup" if cgroups else "rlimits", **facts(cloud)}
    journals = Journals(config.state_dir)
    existing = not journals.empty
    clock = SystemClock()
    store = open_store(config, existing=existing, prove=True, told=_tell_of_store)
    # What it renews was claimed there.
    lease_ledger = Ledger(open_store(config, existing=True, lease=True))
    return Context(
        ledger=Ledger(store),
        lease_ledger=lease_ledger,
        head=open_head(config, identity, Ledger(lease_ledger.store), clock),
        queue=open_queue(config, config.group, prove=not existing),
        clock=clock,
        times=config.times,
        identity=replace(identity, machine={**identity.machine, **machine}),
        journals=journals,
        runtimes=open_runtimes(config, cgroups, agent=identity.agent, every=existing),
        images=open_images(config, every=existing),
        launchers=open_launchers(config),
        settings=_settings(config),
        cloud=cloud,
    )


def _settings(config: Config) -> "Settings":
    from simagent.telemetry.pump import LOCAL_PACE, REMOTE_PACE
    from simagent.transfer.unpack import Limits
    from simagent.worker.caretaker import ImageMarks
    from simagent.worker.containers import slot_users, task_user
    from simagent.worker.context import Settings
    from simagent.worker.control import LOCAL_LOOKS, REMOTE_LOOKS

    return Settings(
        group=config.group,
        allow_process=config.process_allowed,
        # With engines that others reach, a task could read the files of a machine that is not
        # its user's.
        allow_file_inputs=config.embedded,
        pass_env=config.pass_env,
        orphan_limit=config.orphan_limit,
        pack_threads=config.pack_threads or len(os.sched_getaffinity(0)),
        looks=REMOTE_LOOKS if config.store_charges else LOCAL_LOOKS,
        pace=replace(
            REMOTE_PACE if config.store_charges else LOCAL_PACE, sample=config.sample_every
        ),
        inputs=Limits(max_bytes=config.max_input_bytes, max_files=config.max_input_files),
        max_processes=config.max_processes or None,
        max_file_bytes=config.max_file_bytes or None,
        max_log_bytes=config.max_log_bytes or None,
        min_free=config.min_free,
        task_user=task_user(config.task_uid),
        allow_root_images=config.allow_root_images,
        containers=_containers(config),
        prefetch=config.prefetch,
        marks=ImageMarks(high=config.images_high / 100, low=config.images_low / 100),
        slot_users=slot_users(config.task_uid, config.slots),
        gpus=config.gpus,
        mpi_slots=config.mpi.slots,
        mpi_mode=config.mpi.mode,
        tags=config.tags,
    )


def _tell_of_store(why: str) -> None:
    import structlog

    structlog.get_logger().warning("the store cannot be used yet", error=why)


def open_sweeper(config: Config) -> "Sweeper":
    """Make what sweeps the group once; it judges for the whole group, not for this machine."""
    from simagent.worker.receive import Judge
    from simagent.worker.sweep import Sweeper

    ledger, clock = Ledger(open_store(config, prove=True)), SystemClock()
    judge = Judge(ledger, clock, config.times, can_run=lambda _spec: None)
    queue = open_queue(config, config.group)
    return Sweeper(ledger, queue, clock, config.times, judge, group=config.group)
