"""What `simagent doctor` says of whom tasks run as, and of what they could get at as these."""

import os
from collections.abc import Iterator
from typing import Literal

from simagent.cli.finding import Check
from simagent.config import Config
from simagent.wiring.settings import users_of
from simagent.worker.metadata import SERVERS, ways
from simagent.worker.users import TaskUsers, name_of

_USERS = (
    "make users named simtask-0, simtask-1, … as systemd/sysusers.d/simagent.conf does, "
    "or set task_uid"
)
_BLOCK = "systemctl enable --now simagent-firewall, with nftables installed"


def isolation(config: Config) -> Iterator[Check]:
    """Tell whom programs and containers of tasks run as."""
    users = users_of(config)
    if config.process_allowed:
        yield _programs(config, users)
    uid, gid = users.common
    text = f"images run as uid {uid}, gid {gid}, without privileges"
    if users.slots:
        text = f"images run as {_names(users)}, without privileges"
    yield Check("containers", "ok", text)
    if users.slots and len(users.slots) < config.slots:
        text = (
            f"{config.slots} slots have {len(users.slots)} users: tasks that share one can get at "
            "each other's files and processes"
        )
        yield Check("isolation", "note", text, _USERS)


def _programs(config: Config, users: TaskUsers) -> Check:
    if not users.own_programs:
        text = f"commands of tasks without an image run as {_names(users)}, with no way to more"
        return Check("isolation", "ok", text)
    if os.geteuid() != 0:
        text = (
            f"commands of tasks run as this user (uid {os.geteuid()}) and may do what it may, "
            "also read its files and credentials: run only tasks you trust"
        )
        return Check("isolation", "note", text)
    fix = "unset allow_root_process" if config.allow_root_process else _USERS
    text = (
        "commands of tasks without an image run as root and may do anything on this machine: "
        "run only tasks you trust"
    )
    return Check("isolation", "note", text, fix)


def credentials(config: Config) -> Iterator[Check]:
    """Tell whether tasks get at the credentials of the agent."""
    if config.embedded:
        return
    text = "no task gets those of the agent: neither its variables nor its files"
    own = config.process_allowed and users_of(config).own_programs
    if own:
        text = (
            "programs of tasks run as this user: they can read its ~/.aws, and ask the machine's "
            "metadata service for the role that the agent has"
        )
    verdict: Literal["ok", "note"] = "note" if own else "ok"
    fix = "allow_process = false, and tasks with images" if own else ""
    yield Check("credentials", verdict, text, fix)


def metadata(config: Config) -> Iterator[Check]:
    """Tell whether tasks get an answer from a cloud's metadata server, by trying each user."""
    users = users_of(config)
    if not users.slots and config.embedded:
        return  # a machine of somebody's own
    everyone = list(users.all)
    if config.process_allowed and users.own_programs:
        everyone.insert(0, (os.geteuid(), os.getegid()))
    tried = {user: ways(user) for user in everyone}
    reached = [user for user, found in tried.items() if "open" in found.values()]
    servers = " and ".join(SERVERS)
    if not all(tried.values()):
        yield Check("metadata", "note", f"whether tasks get to {servers} could not be tried")
    elif reached:
        names = ", ".join(name_of(uid) for uid, _ in reached)
        text = (
            f"tasks that run as {names} get to the metadata server of a cloud ({servers}), where "
            "there is one, and to the credentials that it gives this machine"
        )
        yield Check("metadata", "note", text, _USERS if not users.slots else _BLOCK)
    elif any("closed" in found.values() for found in tried.values()):
        yield Check("metadata", "ok", f"no task gets to {servers}; the agent does")
    else:
        yield Check("metadata", "ok", f"no way leads to {servers}: there is nothing to close")


def _names(users: TaskUsers) -> str:
    first, *others = users.slots or (users.common,)
    text = f"{name_of(first[0])} (uid {first[0]})"
    if others:
        text += f" to {name_of(others[-1][0])} (uid {others[-1][0]}), each slot's as its own"
    return text
