"""The threads that go on beside the agent's main loop."""

from collections.abc import Callable
from functools import partial

from simagent.ports.clock import Wake
from simagent.worker.caretaker import Caretaker
from simagent.worker.context import Context
from simagent.worker.drain import DrainFile
from simagent.worker.heartbeat import Heart
from simagent.worker.notices import NoticeWatch
from simagent.worker.orders import Preempted
from simagent.worker.strays import Strays
from simagent.worker.threads import CoreThread, Threads


def start_companions(
    ctx: Context,
    threads: Threads,
    ended: Wake,
    *,
    drain: DrainFile | None,
    heart: Heart | None,
    caretaker: Caretaker | None,
    changed: Callable[[], None],
    leave: Callable[[Preempted], None],
) -> list[CoreThread]:
    """Start them, until ``ended`` is set; give those whose end is waited for, shortly.

    ``changed`` is called when the loop is to look at everything again, ``leave`` when the machine
    is taken away, or what runs is to be given back for another reason.
    """
    if drain is not None:
        threads.start("drain", partial(drain.watch, ctx.clock, ended, changed, leave))
    if ctx.cloud is not None:
        notices = NoticeWatch(ctx.cloud, ctx.clock, leave)
        notices.ask()  # what would have to be given back at once is not taken
        threads.start("notices", partial(notices.run, ended))
    if caretaker is not None:
        threads.start("caretaker", partial(caretaker.run, ended))
    if ctx.head is not None:
        ctx.head.on_join = changed
        threads.start("strays", partial(Strays(ctx).run, ended))
    shown = {"heartbeat": heart, "head": ctx.head}
    return [
        threads.start(name, partial(it.run, ended)) for name, it in shown.items() if it is not None
    ]


def caretaker_of(ctx: Context) -> Caretaker | None:
    """Make what looks after images and containers, where there are any."""
    if not ctx.images:
        return None
    return Caretaker(
        clock=ctx.clock,
        journals=ctx.journals,
        runtimes=ctx.runtimes,
        images=ctx.images,
        marks=ctx.settings.marks,
        prefetch=ctx.settings.prefetch,
        containers=ctx.settings.containers,
        min_free=ctx.settings.min_free,
        free=ctx.free_bytes,
    )
