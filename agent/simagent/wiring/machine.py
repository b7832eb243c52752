"""Makes what runs steps on this machine, and what asks its cloud, from the configuration."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from simagent.clouds.choice import choose
from simagent.config import Config, ConfigError
from simagent.engines import open_store
from simagent.ports.clock import SystemClock
from simagent.ports.cloud import Cloud
from simagent.ports.images import Images
from simagent.ports.launcher import Launcher
from simagent.ports.runtime import Runtime

if TYPE_CHECKING:  # each machine has some of them alone
    from simagent.launchers.installed import InstalledLaunchers, Mpirun
    from simagent.runtimes.cgroups import Cgroups


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


def open_cloud(config: Config) -> Cloud | None:
    """Make what asks the cloud that this machine is of; None where it is of none."""
    return choose(config.cloud, config.cloud_endpoint, SystemClock().wall)


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
    folder = config.state_dir / "images"
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


def containers(config: Config) -> tuple[str, ...]:
    """Name the runtimes that new tasks may have."""
    here = {"docker": _has_docker, "apptainer": _has_apptainer}
    return tuple(name for name in config.runtimes if here[name](config))


def _has_docker(config: Config) -> bool:
    named = config.docker_host or os.environ.get("DOCKER_HOST")
    here = Path("/var/run/docker.sock").exists() or shutil.which("dockerd")
    return "docker" in config.runtimes and bool(named or here)


def _has_apptainer(config: Config) -> bool:
    return "apptainer" in config.runtimes and shutil.which(config.apptainer) is not None
