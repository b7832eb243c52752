"""Makes the agent of a member of a cluster, from the configuration."""

from dataclasses import replace

from simagent.clouds.choice import facts
from simagent.cluster.entrance import Entrance, EntranceError
from simagent.cluster.sshd import Sshd, default_user, relay_command
from simagent.config import Config, ConfigError
from simagent.engines import open_store
from simagent.ledger import Ledger
from simagent.ports.clock import SystemClock
from simagent.wiring.life import open_end, open_terms
from simagent.wiring.machine import (
    open_cgroups,
    open_cloud,
    open_images,
    open_launchers,
    open_runtimes,
)
from simagent.wiring.settings import settings
from simagent.wiring.window import Watch
from simagent.worker.cores import physical_cores
from simagent.worker.drain import DrainFile
from simagent.worker.entries import Entries
from simagent.worker.identity import identify
from simagent.worker.journal import Journals
from simagent.worker.member import MemberAgent, MemberDuties, open_door
from simagent.worker.membership import Membership
from simagent.worker.shares import this_machine


def open_member(config: Config) -> MemberAgent:
    """Make the agent of a member of a cluster, on a state folder that is already held for it.

    Raises `ConfigError`.
    """
    if not Journals(config.state_dir).empty:
        raise ConfigError(
            f"role: an agent left tasks in {config.state_dir}, which a member does not carry on: "
            "start it once more as it was, and let it drain; or name another --state-dir"
        )
    member = _membership(config)
    user = config.mpi.ssh_user or default_user()
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
        terms=open_terms(config, member.clock),
        end=open_end(config, member.cloud),
    )


def _membership(config: Config) -> Membership:
    if config.cluster is None:
        raise ConfigError("cluster: a member needs the name of its cluster")
    cgroups, identity = open_cgroups(config), identify(config.state_dir, config.agent)
    launchers = open_launchers(config)
    limits = {"limits": "cgroup" if cgroups else "rlimits"}
    cloud = open_cloud(config)
    clock = SystemClock()
    watch = Watch(config, clock)
    return Membership(
        cluster=config.cluster,
        # With short timeouts: what is read of the head is to be of now.
        ledger=Ledger(watch.store(open_store(config, lease=True))),
        clock=clock,
        times=config.times,
        identity=replace(identity, machine={**identity.machine, **limits, **facts(cloud)}),
        cloud=cloud,
        folder=config.state_dir / "member",
        runtimes=open_runtimes(config, cgroups, agent=identity.agent),
        images=open_images(config),
        settings=settings(config),
        slots=config.mpi.slots or physical_cores(),
        interface=config.mpi.interface,
        shared_dir=config.mpi.shared_dir,
        hybrid=config.mpi.mode != "contained",
        mpi=lambda: tuple(f"{it.flavour} {it.version}" for it in launchers.installed()),
        tally=watch.tally,
        contacts=watch.of_member,
        gpus=this_machine(config.gpus).gpus,
    )
