"""`simagent status`: how the agent of this machine stands, by its own word."""

import os
import pwd
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from simagent import __version__
from simagent.cli.text import coloured, columns, moment, printable, put, put_json, seconds, size
from simagent.client import ClientError
from simagent.config import Config
from simagent.worker.identity import holder_of
from simagent.worker.snapshot import HANGS_AFTER
from simagent.worker.statussocket import NoAnswerError, ask

_ANSWERS_WITHIN = 5.0
_STAGES = {
    "starting": "starts",
    "taking_tasks": "takes tasks",
    "draining": "drains: takes no more tasks, and ends with those that it runs",
    "waiting_for_store": "waits for the store",
    "waiting_for_queue": "waits for the queue",
    "giving_back": "gives its tasks back",
    "letting_go": "stops; what it runs goes on",
}
_ROLES = {"member": "member", "run": "simagent run"}
_HEADS = ("TASK", "ATTEMPT", "STATUS", "STEP", "SINCE", "SLOT", "USER", "LEASE", "CPU", "MEMORY")
_RUN_HEADS = ("TASK", "ATTEMPT", "ENTRY", "FOR")
_UNITS = Path("/run/systemd/system")
_SYSTEM = Path("/var/lib/simagent")

Fields = Mapping[str, Any]
"""A snapshot as it came: of an agent that may be older or newer than this command."""


def show_status(config: Config, *, as_json: bool) -> None:
    """Print how the agent of the state folder stands. Raises `ClientError` where none answers."""
    folder = config.state_dir
    try:
        told = ask(folder, _ANSWERS_WITHIN)
    except NoAnswerError as error:
        raise ClientError(_nobody(folder, str(error))) from error
    if as_json:
        put_json(told)
        return
    for line in _describe(told):
        put(line)


def _nobody(folder: Path, why: str) -> str:
    """Say that no agent answers, and what was last known of one."""
    try:
        holder = holder_of(folder)
    except PermissionError:
        return f"{folder} is not this user's to look at: ask as root, or as the agent's user"
    look = "; see `systemctl status simagent`" if _is_service(folder) else ""
    if holder is not None:
        return f"{holder} has {folder}, but does not tell how it stands: {why}{look}"
    parts = [f"no agent runs on {folder}", *_last(folder)]
    others = _SYSTEM / "lock"
    if folder != _SYSTEM and os.geteuid() != 0 and others.exists():
        parts.append("that of the system is root's: sudo simagent status")
    return "; ".join(parts) + look


def _last(folder: Path) -> Iterator[str]:
    """Tell what is left of the last agent of a folder."""
    lock, attempts = folder / "lock", folder / "attempts"
    if lock.exists():
        at = moment(lock.stat().st_mtime)
        crashed = lock.stat().st_size > 0
        yield f"the last one began at {at} and was cut off" if crashed else f"it ended at {at}"
    left = len(list(attempts.iterdir())) if attempts.is_dir() else 0
    if left:
        yield f"tasks that it left, and that may run on: {left}"


def _is_service(folder: Path) -> bool:
    return folder == _SYSTEM and _UNITS.exists()


def _describe(told: Fields) -> Iterator[str]:
    """Yield the lines for people."""
    role = _ROLES.get(str(told.get("role")), "agent")
    name = printable(str(told.get("agent") or "")) or "-"
    stage = str(told.get("stage"))
    what = _STAGES.get(stage, stage)
    yield f"{role} {name}  {what}"
    if told.get("hangs"):
        yield _red(f"! the main loop has not turned for {_ago(told.get('turned'))}: it hangs")
    for notice in told.get("notices") or ():
        yield _red(f"! {printable(str(notice))}")
    rows = [(head, text) for head, text in _facts(told) if text]
    width = max(len(head) for head, _ in rows)
    yield from (f"{head.ljust(width)}  {text}" for head, text in rows)
    tasks, runs = told.get("tasks") or (), told.get("runs") or ()
    if tasks:
        yield ""
        yield from columns([_HEADS, *(_task_cells(task) for task in tasks)])
    if runs:
        yield ""
        yield from columns([_RUN_HEADS, *(_run_cells(run) for run in runs)])


def _facts(told: Fields) -> Iterator[tuple[str, str]]:
    up = f"for {seconds(told.get('uptime'))}, since {moment(told.get('started'))}"
    yield "runs", f"{up}, pid {told.get('pid')}, incarnation {told.get('incarnation') or '-'}"
    if told.get("slots"):
        unsettled = told.get("unsettled")
        more = f", {unsettled} attempts of before to be looked at" if unsettled else ""
        yield "slots", f"{told.get('busy')} of {told['slots']} taken{more}"
    yield "tells systemd", printable(str(told.get("text") or ""))
    yield "group", printable(str(told.get("group") or ""))
    yield "cluster", printable(str(told.get("cluster") or ""))
    for engine in told.get("engines") or ():
        yield str(engine.get("name")), _engine(engine)
    if told.get("turned") is not None:
        turned = _ago(told["turned"])
        yield "main loop", f"turned {turned} ago (up to {HANGS_AFTER:.0f} s is well)"
    yield from _disk(told.get("disk") or {})
    yield from _versions(told.get("versions") or {})


def _engine(engine: Fields) -> str:
    url, answered, failing = engine.get("url"), engine.get("answered"), engine.get("failing")
    last = "has not been asked yet" if answered is None else f"answered {_ago(answered)} ago"
    if failing is not None:
        error = printable(str(engine.get("error")))
        last = f"{_red(f'fails for {_ago(failing)}: {error}')}, {last}"
    return f"{printable(str(url))}  {last}"


def _disk(disk: Fields) -> Iterator[tuple[str, str]]:
    if not disk:
        return
    free = "its disk cannot be seen"
    if disk.get("free") is not None:
        free = f"{size(disk['free'])} free of {size(disk.get('total'))}"
    yield "state folder", f"{disk.get('path')}  {free}, {size(disk.get('floor'))} are kept free"
    images = [
        f"{it.get('count')} of {it.get('runtime')} ({size(it.get('size_bytes'))})"
        for it in disk.get("images") or ()
    ]
    yield "images", ", ".join(images)


def _versions(versions: Fields) -> Iterator[tuple[str, str]]:
    own = versions.get("simagent")
    text = f"simagent {own}, Python {versions.get('python')}"
    if own != __version__:
        text += f"; {__version__} is installed, and begins with a restart: tasks run on"
    yield "versions", f"{text}, journals of format {versions.get('journal')}"
    for name, engine in versions.items():
        if name not in ("simagent", "python", "journal"):
            yield name, printable(str(engine))


def _task_cells(task: Fields) -> list[str]:
    step, cores = task.get("step"), task.get("cpu_cores")
    status = str(task.get("status"))
    cells = [
        str(task.get("id")),
        str(task.get("epoch")),
        status,
        "-" if step is None else f"{step + 1} of {task.get('steps')}",
        _since(task.get("since") if step is None else task.get("step_since")),
        str(task.get("slot")),
        _user(task.get("user")),
        f"{_ago(task.get('beat'))} ago" + (", late" if task.get("late") else ""),
        "-" if cores is None else f"{cores:.2f}",
        size(task.get("memory_bytes")) or "-",
    ]
    return [printable(cell) for cell in cells]


def _run_cells(run: Fields) -> list[str]:
    cells = [run.get("task"), run.get("epoch"), run.get("entry"), _ago(run.get("age"))]
    return [printable(str(cell)) for cell in cells]


def _user(uid: int | None) -> str:
    if uid is None:
        return "-"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _since(at: float | None) -> str:
    return "-" if at is None else f"{moment(at)} ({seconds(max(0.0, time.time() - at))})"


def _ago(value: float | None) -> str:
    return "?" if value is None else seconds(value) if value >= 60 else f"{value:.0f} s"


def _red(text: str) -> str:
    return coloured(text, "failed")
