"""`simagent sweep`: look after the open tasks of a group once."""

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from simagent.cli.text import put, put_json
from simagent.config import Config
from simagent.ports.clock import SystemClock
from simagent.wiring import open_sweeper
from simagent.worker.sweep import BATCH, Sweeper, Swept


def sweep_group(config: Config, *, wait: bool, as_json: bool) -> None:
    """Sweep; where tasks are held, sweep again when their holders must have shown themselves."""
    sweeper = open_sweeper(config)
    total = _walk(sweeper)
    if total.held and wait:
        seconds = config.times.suspect
        with _spinner(f"{total.held} tasks are held: watching their agents for {seconds:.0f} s"):
            SystemClock().wait(seconds)
        again = _walk(sweeper)
        total = dataclasses.replace(
            again,
            rung=total.rung + again.rung,
            closed=total.closed + again.closed,
            tidied=total.tidied + again.tidied,
        )
    if as_json:
        put_json({"group": config.group, **dataclasses.asdict(total)})
    else:
        put(
            f"group {config.group}: {total.seen} open tasks seen, {total.rung} rung again, "
            f"{total.closed} closed, {total.tidied} markers removed, {total.held} held"
        )


def _walk(sweeper: Sweeper) -> Swept:
    """Sweep batch by batch, until a batch brings nothing new."""
    total = Swept()
    while (swept := sweeper.sweep()) is not None and swept.seen:
        total = Swept(
            *(
                getattr(total, field.name) + getattr(swept, field.name)
                for field in dataclasses.fields(Swept)
            )
        )
        if swept.seen < BATCH:
            break
    return total


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
