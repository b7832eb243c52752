"""Makes the agent of this machine, and the sweeper of its group."""

from collections.abc import Callable
from dataclasses import replace

from simagent.clouds.choice import facts
from simagent.config import Config
from simagent.domain.keys import TaskKeys
from simagent.engines import open_queue, open_store
from simagent.ledger import Ledger
from simagent.ports.clock import SystemClock
from simagent.wiring.head import open_head
from simagent.wiring.life import open_end, open_terms
from simagent.wiring.machine import (
    open_cgroups,
    open_cloud,
    open_images,
    open_launchers,
    open_runtimes,
)
from simagent.wiring.settings import prepare_for, settings
from simagent.wiring.window import Watch
from simagent.worker.context import Context
from simagent.worker.drain import DrainFile
from simagent.worker.endoflife import EXIT, NO_END
from simagent.worker.former import end_membership
from simagent.worker.identity import identify
from simagent.worker.journal import Journals
from simagent.worker.loop import Agent
from simagent.worker.receive import Judge
from simagent.worker.sweep import Sweeper
from simagent.worker.trial import Probe, Trial


def open_agent(
    config: Config,
    *,
    until_empty: bool = False,
    only: TaskKeys | None = None,
    probe: Callable[[Context], Probe] | None = None,
) -> Agent:
    """Make the agent of this machine, on a state folder that is already held for it.

    ``probe`` makes what tries MPI, where it leads a cluster.
    """
    drain = DrainFile(config.state_dir)
    ctx = open_context(config, own_task=only is not None)
    former = config.state_dir / "member"
    if only is None and former.is_dir():
        end_membership(ctx, former)
    trial = None
    if probe is not None and ctx.head is not None:
        trial = Trial(ctx.head, ctx.clock, probe(ctx))
    return Agent(
        ctx,
        slots=config.slots if only is None else 1,
        until_empty=until_empty,
        only=only,
        drain=drain,
        in_fleet=only is None,
        terms=open_terms(config, ctx.clock) if only is None else NO_END,
        end=open_end(config, ctx.cloud) if only is None else EXIT,
        trial=trial,
    )


def open_context(config: Config, *, own_task: bool = False) -> Context:
    """Make all that the agent works with; ``own_task``: for a task of who runs it alone.

    Raises `ConfigError`.
    """
    its = settings(config, own_task=own_task)
    prepare_for(config, its.users)
    clock = SystemClock()
    watch = Watch(config, clock)
    cgroups = open_cgroups(config)
    identity = identify(config.state_dir, config.agent)
    cloud = open_cloud(config)
    machine = {"limits": "cgroup" if cgroups else "rlimits", **facts(cloud)}
    journals = Journals(config.state_dir)
    existing = not journals.empty
    doubts: list[str] = []
    store = watch.store(open_store(config, existing=existing, prove=True, told=doubts.append))
    for why in doubts:
        watch.doubt(why)
    # What it renews was claimed there.
    lease_ledger = Ledger(watch.store(open_store(config, existing=True, lease=True)))
    return Context(
        ledger=Ledger(store),
        lease_ledger=lease_ledger,
        head=open_head(config, identity, Ledger(lease_ledger.store), clock),
        queue=watch.queue(open_queue(config, config.group, prove=not existing)),
        clock=clock,
        times=config.times,
        identity=replace(identity, machine={**identity.machine, **machine}),
        journals=journals,
        runtimes=open_runtimes(config, cgroups, agent=identity.agent, every=existing),
        images=open_images(config, every=existing),
        launchers=open_launchers(config),
        settings=its,
        cloud=cloud,
        tally=watch.tally,
        doubt=" ".join(doubts),
        contacts=watch.of_agent,
    )


def open_sweeper(config: Config) -> Sweeper:
    """Make what sweeps the group once; it judges for the whole group, not for this machine."""
    ledger, clock = Ledger(open_store(config, prove=True)), SystemClock()
    judge = Judge(ledger, clock, config.times, can_run=lambda _spec: None)
    queue = open_queue(config, config.group)
    return Sweeper(ledger, queue, clock, config.times, judge, group=config.group)
