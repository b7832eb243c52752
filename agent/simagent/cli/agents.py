"""`simagent agents`: who takes tasks, and what they do."""

from collections.abc import Sequence
from typing import Any

from simagent.api import AgentInfo
from simagent.cli.opening import open_client
from simagent.cli.text import columns, moment, printable, put, put_json, say, seconds, size
from simagent.config import Config

_HEADS = ("AGENT", "GROUP", "STATE", "SLOTS", "VERSION", "MACHINE", "RUNTIMES", "TAGS", "BEAT")


def list_agents(config: Config, *, group: str | None, every: bool, as_json: bool) -> None:
    """Print the agents, but for those that have been silent for a day unless ``every`` one."""
    found = open_client(config).agents(group=group, gone=every)
    if as_json:
        put_json([_describe(agent) for agent in found])
        return
    if not found:
        put("no agents" + (f" of group {group}" if group else ""))
        return
    lines = columns([_HEADS, *map(_cells, found)])
    put(lines[0])
    for line, agent in zip(lines[1:], found, strict=True):
        put(line)
        _put_tasks(agent)
    if any(agent.silent for agent in found):
        say(
            "who is silent is told by the agents' clocks and this machine's: it may have ended, be "
            "cut off, or have a clock that is wrong; --prune watches before it removes any"
        )


def prune_agents(config: Config, *, group: str | None, as_json: bool) -> None:
    """Remove what agents that are gone have left to be seen."""
    watch = config.times.agent_ttl
    say(f"watching for {watch:.0f} s which agents show themselves, where any look silent")
    gone = open_client(config).prune_agents(group=group)
    if as_json:
        put_json(gone)
        return
    put(f"removed: {', '.join(map(printable, gone))}" if gone else "no agent is gone")


def _describe(agent: AgentInfo) -> dict[str, Any]:
    return {
        **agent.heartbeat.model_dump(mode="json"),
        "state": agent.state,
        "silent": agent.silent,
        "age_seconds": round(agent.age, 1),
    }


def _cells(agent: AgentInfo) -> Sequence[str]:
    heartbeat = agent.heartbeat
    state = f"silent since {moment(heartbeat.at)}" if agent.silent else agent.state
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
            seconds(agent.age),
        )
    ]


def _put_tasks(agent: AgentInfo) -> None:
    for task in agent.heartbeat.tasks:
        what = f"{task.status}, attempt {task.epoch}, since {moment(task.since)}"
        put(printable(f"  {task.project}/{task.id}  {what}"))
