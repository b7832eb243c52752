"""The only place that makes engines from the configuration."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from simagent.client import Client
from simagent.config import Config, ConfigError
from simagent.domain.keys import TaskKeys
from simagent.ledger import Ledger
from simagent.ports.clock import SystemClock, Wake
from simagent.ports.images import Images
from simagent.ports.launcher import Launcher
from simagent.ports.queue import Queue, QueueRefusedError, QueueUnavailableError
from simagent.ports.runtime import Runtime
from simagent.ports.store import Store, StoreUnavailableError

if TYPE_CHECKING:  # clients need no worker: they start faster without
    from simagent.queues.sqs import SqsQueue
    from simagent.runtimes.cgroups import Cgroups
    from simagent.worker.context import Context
    from simagent.worker.loop import Agent
    from simagent.worker.sweep import Sweeper


def open_store(
    config: Config, *, existing: bool = False, prove: bool = False, lease: bool = False
) -> Store:
    """Make the store, one that was there before if ``existing``.

    ``prove`` is for who relies on its conditional writes: where they might be missing they are
    tried, at once or, of an ``existing`` store or one that cannot be reached, with the first.
    ``lease`` is for renewals, which wait for no answer for long.
    Raises `simagent.ports.store.StoreRefusedError`.
    """
    if _scheme(config.store_url) == "s3":
        return _open_s3(config, existing=existing, prove=prove, lease=lease)
    from simagent.stores.directory import DirectoryStore

    return DirectoryStore(_path(config.store_url), existing=existing)


def _open_s3(config: Config, *, existing: bool, prove: bool, lease: bool) -> Store:
    from simagent.stores.s3 import S3Store
    from simagent.stores.s3_calls import LEASE_ANSWER, LEASE_CONNECT, Access

    access = Access(
        endpoint=config.s3_endpoint,
        region=config.s3_region,
        path_style=config.s3_path_style,
        ca_bundle=config.s3_ca_bundle,
        kms_key=config.s3_kms_key,
    )
    if lease:
        access = replace(access, connect=LEASE_CONNECT, answer=LEASE_ANSWER)
    store = S3Store(config.store_url, access, prove=prove)
    if prove and not existing:
        # An outage passes, and the agent has more to do meanwhile than to start again and again.
        with suppress(StoreUnavailableError):
            store.prove()
    return store


def open_queue(config: Config, group: str) -> Queue:
    """Make the queue of a group. Raises `simagent.ports.queue.QueueRefusedError`."""
    if _scheme(config.queue_url) == "sqs":
        return _open_sqs(config, group)
    from simagent.queues.sqlite import SqliteQueue

    return SqliteQueue(_path(config.queue_url), group, SystemClock())


def _open_sqs(config: Config, group: str) -> "SqsQueue":
    from simagent.queues.sqs import SqsQueue

    name = config.queue_url.removeprefix("sqs://")
    if "{group}" not in name and group != config.group:
        raise QueueRefusedError(
            f"sqs://{name} is the queue of group {config.group!r} alone, not of {group!r}: "
            f"set group to that, or name the queues as sqs://{name}-{{group}}"
        )
    region, endpoint = config.sqs_region, config.sqs_endpoint
    return SqsQueue(name, group, SystemClock(), region=region, endpoint=endpoint)


def try_queue(config: Config) -> str:
    """Use the queue, and tell what was found. Raises QueueError, OSError."""
    if _scheme(config.queue_url) == "sqs":
        # Nothing is sent: an agent of the group would hear it.
        return _open_sqs(config, config.group).check()
    queue = open_queue(config, "simagent-doctor")
    queue.send("doctor")
    message = queue.receive(visibility=30.0, wait=1.0, wake=Wake())
    if message is None:
        raise QueueUnavailableError("a message that was sent did not come")
    queue.delete(message.receipt)
    return "a message was sent and received"


def queues(config: Config) -> Callable[[str], Queue]:
    """Give what opens the queue of a group, once each."""
    opened: dict[str, Queue] = {}

    def open_once(group: str) -> Queue:
        if group not in opened:
            opened[group] = open_queue(config, group)
        return opened[group]

    return open_once


def open_client(config: Config) -> Client:
    """Make a client."""
    return Client(Ledger(open_store(config)), queues(config), SystemClock(), project=config.project)


def open_launcher(config: Config) -> Launcher | None:
    """Make the launcher of MPI ranks; None where this machine has none."""
    from simagent.launchers.hydra import HydraLauncher, detect

    return HydraLauncher(config.mpirun) if detect(config.mpirun) else None


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
    return Agent(
        open_context(config),
        until_empty=until_empty,
        only=only,
        drain=drain,
        in_fleet=only is None,
    )


def open_context(config: Config) -> "Context":
    """Make all that the agent works with."""
    from simagent.telemetry.pump import LOCAL_PACE
    from simagent.transfer.unpack import Limits
    from simagent.worker.caretaker import ImageMarks
    from simagent.worker.containers import task_user
    from simagent.worker.context import Context, Settings
    from simagent.worker.identity import identify
    from simagent.worker.journal import Journals

    cgroups = open_cgroups(config)
    identity = identify(config.state_dir, config.agent)
    limits = {"limits": "cgroup" if cgroups else "rlimits"}
    settings = Settings(
        group=config.group,
        allow_process=config.process_allowed,
        # With engines that others reach, a task could read the files of a machine that is not
        # its user's.
        allow_file_inputs=config.embedded,
        pass_env=config.pass_env,
        orphan_limit=config.orphan_limit,
        pack_threads=config.pack_threads or len(os.sched_getaffinity(0)),
        pace=replace(LOCAL_PACE, sample=config.sample_every),
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
    )
    journals = Journals(config.state_dir)
    existing = not journals.empty
    return Context(
        ledger=Ledger(open_store(config, existing=existing, prove=True)),
        # What it renews was claimed there.
        lease_ledger=Ledger(open_store(config, existing=True, lease=True)),
        queue=open_queue(config, config.group),
        clock=SystemClock(),
        times=config.times,
        identity=replace(identity, machine={**identity.machine, **limits}),
        journals=journals,
        runtimes=open_runtimes(config, cgroups, agent=identity.agent, every=existing),
        images=open_images(config, every=existing),
        launcher=open_launcher(config),
        settings=settings,
    )


def open_sweeper(config: Config) -> "Sweeper":
    """Make what sweeps the group once; it judges for the whole group, not for this machine."""
    from simagent.worker.receive import Judge
    from simagent.worker.sweep import Sweeper

    ledger, clock = Ledger(open_store(config, prove=True)), SystemClock()
    judge = Judge(ledger, clock, config.times, can_run=lambda _spec: None)
    queue = open_queue(config, config.group)
    return Sweeper(ledger, queue, clock, config.times, judge, group=config.group)


def _scheme(url: str) -> str:
    return urlsplit(url).scheme


def _path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))
