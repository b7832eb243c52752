"""Makes the head of a cluster, where the configuration has the agent lead one."""

from pathlib import Path

from simagent.cluster.ssh import HeadKey
from simagent.config import Config, ConfigError
from simagent.ledger import Ledger
from simagent.ports.clock import Clock
from simagent.worker.address import AddressError, own_address, tcp_device
from simagent.worker.context import Identity
from simagent.worker.cores import physical_cores
from simagent.worker.head import Head, Leadership
from simagent.worker.hostlist import HostlistError, Wanted, read_hostlist
from simagent.worker.journal import Place
from simagent.worker.sharing import NOT_SHARED


def open_head(config: Config, identity: Identity, ledger: Ledger, clock: Clock) -> Head | None:
    """Make the head; None for an agent of no cluster. Raises `ConfigError`.

    Calls of the ``ledger`` have short timeouts, as those for a task's lease.
    """
    if config.cluster is None:
        return None
    if config.slots > 1:
        raise ConfigError(
            "slots: a cluster runs one task at a time: set slots to 1, or remove cluster"
        )
    try:
        at = own_address(config.mpi.interface)
        interface = "" if config.mpi.interface is None else tcp_device(config.mpi.interface)
    except AddressError as error:
        raise ConfigError(str(error)) from error
    key = HeadKey(config.state_dir / "head")
    shared = config.mpi.shared_dir
    own = Place(
        name=str(identity.machine.get("hostname", "")),
        address=str(at.ip),
        slots=config.mpi.slots or physical_cores(),
        agent=identity.agent,
        interface=interface,
    )
    leadership = Leadership(
        cluster=config.cluster,
        own=own,
        network=str(at.network),
        shared_dir=shared,
        wanted=wanted_hosts(config),
        size=config.mpi.size,
        trouble=NOT_SHARED if shared is None else key.trouble() or "",
    )
    return Head(leadership, ledger, clock, config.times, incarnation=identity.incarnation, key=key)


def wanted_hosts(config: Config) -> tuple[Wanted, ...]:
    """List the hosts that the configuration names, or the file it names. Raises `ConfigError`."""
    path: Path | None = config.mpi.hostfile
    if path is None:
        return tuple(Wanted(name) for name in config.mpi.hosts)
    try:
        return read_hostlist(path.read_text())
    except HostlistError as error:
        raise ConfigError(f"mpi.hostfile: {path}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"mpi.hostfile: {path} cannot be read: {error}") from error
