"""`simagent agents`: who takes tasks, and what they do."""

from collections.abc import Sequence
from typing import Any

from simagent.cli.text import columns, moment, printable, put, put_json, say, seconds, size
from simagent.client.agents import Agents
from simagent.config import Config
from simagent.domain.fleet import Heartbeat
from simagent.engines import open_store
from simagent.ports.clock import SystemClock

_DAY = 86_400.0
_TOLERANCE = 60.0
"""Seconds by which two machines' clocks may differ before an agent looks silent for it."""

_HEADS = ("AGENT", "GROUP", "STATE", "SLOTS", "VERSION", "MACHINE", "RUNTIMES", "TAGS", "BEAT")


def list_agents(config: Config, *, group: str | None, every: bool, as_json: bool) -> None:
    """Print the agents, but for those that have been silent for a day unless ``every`` one."""
    clock = SystemClock()
    agents = Agents(open_store(config), clock)
    found = [
        heartbeat
        for heartbeat in agents.all()
        if group in (None, heartbeat.group) and (every or not agents.silent(heartbeat, after=_DAY))
    ]
    after = config.times.agent_ttl + _TOLERANCE
    silent = [agents.silent(heartbeat, after=after) for heartbeat in found]
    now = clock.wall()
    if as_json:
        rows = zip(found, silent, strict=True)
        put_json([_describe(heartbeat, quiet, now) for heartbeat, quiet in rows])
        return
    if not found:
        put("no agents" + (f" of group {group}" if group else ""))
        return
    table = [_cells(heartbeat, quiet, now) for heartbeat, quiet in zip(found, silent, strict=True)]
    lines = columns([_HEADS, *table])
    put(lines[0])
    for line, heartbeat in zip(lines[1:], found, strict=True):
        put(line)
        _put_tasks(heartbeat)
    if any(silent):
        say(
            "who is silent is told by the agents' clocks and this machine's: it may have ended, be "
            "cut off, or have a clock that is wrong; --prune watches before it removes any"
        )


def prune_agents(config: Config, *, as_json: bool) -> None:
    """Remove what agents that are gone have left to be seen."""
    watch = config.times.agent_ttl
    say(f"watching for {watch:.0f} s which agents show themselves, where any look silent")
    gone = Agents(open_store(config), SystemClock()).prune(watch=watch)
    if as_json:
        put_json(gone)
        return
    put(f"removed: {', '.join(map(printable, gone))}" if gone else "no agent is gone")


def _describe(heartbeat: Heartbeat, silent: bool, now: float) -> dict[str, Any]:
    return {
        **heartbeat.model_dump(mode="json"),
        "state": heartbeat.state,
        "silent": silent,
        "age_seconds": round(max(0.0, now - heartbeat.at), 1),
    }


def _cells(heartbeat: Heartbeat, silent: bool, now: float) -> Sequence[str]:
    state = f"silent since {moment(heartbeat.at)}" if silent else heartbeat.state
    machine = heartbeat.machine
    memory = machine.get("memory_bytes")
    parts = (
        str(machine.get("hostname", "")),
        f"{machine['cpus']} cpus" if "cpus" in machine else "",
        size(int(memory)) if isinstance(memory, int | float) else "",
    )
    return [
        printable(cell)
        for cell in (
            heartbeat.agent,
            heartbeat.group,
            state,
            f"{heartbeat.slots - heartbeat.free}/{heartbeat.slots}",
            heartbeat.version,
            ", ".join(part for part in parts if part),
            ",".join(heartbeat.runtimes) or "-",
            ",".join(heartbeat.tags) or "-",
            seconds(max(0.0, now - heartbeat.at)),
        )
    ]


def _put_tasks(heartbeat: Heartbeat) -> None:
    for task in heartbeat.tasks:
        what = f"{task.status}, attempt {task.epoch}, since {moment(task.since)}"
        put(printable(f"  {task.project}/{task.id}  {what}"))
