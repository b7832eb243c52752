"""`simagent sweep`: look after the open tasks of a group once."""

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from simagent.cli.text import put, put_json
from simagent.config import Config
from simagent.domain.times import Times
from simagent.ports.clock import SystemClock
from simagent.wiring.agent import open_sweeper
from simagent.worker.sweep import Swept


def sweep_group(config: Config, *, wait: bool, as_json: bool) -> None:
    """Sweep; where tasks are held, sweep on until their holders must have shown themselves."""
    sweeper = open_sweeper(config)
    total = sweeper.walk()
    if total.held and wait:
        pauses = list(_pauses(config.times))
        seconds = f"{sum(pauses):.0f} s"
        with _spinner(f"{total.held} tasks are held: watching their agents for {seconds}"):
            for pause in pauses:
                SystemClock().wait(pause)
                total = _sum(total, sweeper.walk())
    if as_json:
        put_json({"group": config.group, **dataclasses.asdict(total)})
    else:
        put(
            f"group {config.group}: {total.seen} open tasks seen, {total.rung} rung again, "
            f"{total.closed} closed, {total.tidied} markers removed, {total.held} held"
        )


def _pauses(times: Times) -> Iterator[float]:
    """Give the seconds between the passes that show which of the holders are dead.

    The last pass alone is late enough to prove it: an earlier one would only begin anew.
    """
    left = times.lease_ttl + times.renew_every / 2
    while left > 1.5 * times.renew_every:
        yield times.renew_every
        left -= times.renew_every
    yield left


def _sum(before: Swept, last: Swept) -> Swept:
    """Tell what was done in all passes, and what the last one met."""
    return dataclasses.replace(
        last,
        rung=before.rung + last.rung,
        closed=before.closed + last.closed,
        tidied=before.tidied + last.tidied,
    )


@contextmanager
def _spinner(text: str) -> Iterator[None]:
    from rich.console import Console

    console = Console(stderr=True)
    if not sys.stderr.isatty():
        console.print(text, soft_wrap=True)
        yield
        return
    with console.status(text):
        yield
