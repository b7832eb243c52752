"""What a step's container is: its settings, and the few lines of shell that start the program."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simagent.ports.runtime import Sandbox, StepLimits, StepPlan
from simagent.shim import ATTENTION

FOLDER = "/.simagent"
NEW = "new"
BEGUN = "begun"
AGAIN = "again"
FAILED = "failed"
ORPHANED = "orphaned"
REPORT_BYTES = 4096
"""What the report has from the start, so that it can be written on a full disk."""

LABEL_AGENT = "simagent.agent"
LABEL_FOLDER = "simagent.folder"
LABEL_STEP = "simagent.step"

# Files are read and written in here, not by the engine, whose logs are neither byte for byte nor
# safe from its restarts. The report says how far it came: a container that is started twice, say
# by an order that was late, does not run the program twice. The guard is no child of the program's
# (its parent exits at once), and heeds no signal; where there is no `stat` there is none. The
# program is looked up here, as a shell's own words (and all of BusyBox's tools) would go before it.
# The names are odd, as changing a variable that the step was given would change it for the program.
SCRIPT = f"""
_sa_say() {{ IFS=' '; echo "$*" 1<>{FOLDER}/report; }}
_sa_fail() {{ trap - EXIT; _sa_say "$@"; exit 127; }}
_sa_guard() {{
    trap '' HUP INT QUIT PIPE ALRM TERM USR1 USR2
    _sa_left=$2 _sa_mark=
    while sleep "$1"; do
        _sa_now=$(stat -c '%h %Y' {FOLDER}/agent) || exit
        _sa_left=$((_sa_left - 1))
        case $_sa_now in
        "0 "*) _sa_left=0 ;;
        "$_sa_mark") ;;
        *) _sa_mark=$_sa_now _sa_left=$2 ;;
        esac
        if [ "$_sa_left" -le 0 ]; then
            _sa_say {ORPHANED}
            kill -TERM -1
            sleep "$3"
            kill -KILL -1
        fi
    done
}}
read -r _sa_line <{FOLDER}/report
if [ "$_sa_line" != {NEW} ]; then _sa_say {AGAIN}; exit 125; fi
_sa_say {BEGUN}
(_sa_guard "$1" "$2" "$3" </dev/null >/dev/null 2>&1 &)
shift 3
trap '_sa_say {FAILED} $?' EXIT
exec <{FOLDER}/stdin >>{FOLDER}/stdout 2>>{FOLDER}/stderr
unset TINI_KILL_PROCESS_GROUP
cd -- "$1" 2>/dev/null || _sa_fail not_executable \\
    "cannot start in $1: no such folder, or one that it may not enter"
_sa_name=$2
shift 2
_sa_found= _sa_bad=
_sa_try() {{
    if [ -f "$1" ] && [ -x "$1" ]; then _sa_found=$1; return; fi
    if [ -d "$1" ]; then _sa_bad=${{_sa_bad:-$1: is a folder}}
    elif [ -e "$1" ]; then
        _sa_bad=${{_sa_bad:-$1: permission denied: make it executable (chmod +x)}}
    fi
}}
case $_sa_name in
*/*) _sa_try "$_sa_name" ;;
*)  set -f
    IFS=:
    for _sa_dir in $PATH; do
        _sa_try "${{_sa_dir:-.}}/$_sa_name"
        [ "$_sa_found" ] && break
    done ;;
esac
if [ -z "$_sa_found" ]; then
    [ "$_sa_bad" ] && _sa_fail not_executable "$_sa_bad"
    case $_sa_name in
    */*) _sa_fail command_not_found "$_sa_name: no such program in the image" ;;
    *) _sa_fail command_not_found "$_sa_name: no such program in the image, in PATH ($PATH)" ;;
    esac
fi
if [ -r "$_sa_found" ]; then
    IFS= read -r _sa_line <"$_sa_found"
    case $_sa_line in
    '#!'* | ?ELF*) ;;
    *) _sa_fail not_executable \\
        "$_sa_found: neither a program for this machine nor a script with a #! line" ;;
    esac
fi
command -v shopt >/dev/null && shopt -s execfail  # bash would not run its trap
exec "$_sa_found" "$@"
exit $?
"""

_GUARD_PERIOD = 30.0  # seconds
_LEAST_MEMORY = 6 * 2**20  # bytes; engines refuse less
_LEAST_CPUS = 0.01


def container_name(folder: Path, number: int) -> str:
    """Name the container of a step: the same each time, another for each other step."""
    return f"simagent-{hashlib.sha256(str(folder).encode()).hexdigest()[:24]}-{number}"


def settings(plan: StepPlan, sandbox: Sandbox, *, agent: str, shell: Path | None) -> dict[str, Any]:
    """Give what the engine makes the container of. ``shell`` is of the host, None: the image's."""
    program = f"{FOLDER}/sh" if shell is not None else "/bin/sh"
    # As the process group of the program is what signals are meant for.
    env = {**plan.env, "TINI_KILL_PROCESS_GROUP": "1"}
    own = {LABEL_AGENT: agent, LABEL_FOLDER: str(plan.folder), LABEL_STEP: str(plan.number)}
    return {
        "Image": sandbox.image,
        "Entrypoint": [program, "-c", SCRIPT, "simagent", *_guarded(plan), str(plan.cwd)],
        "Cmd": list(plan.argv),
        "Env": [f"{name}={value}" for name, value in env.items()],
        "User": f"{sandbox.uid}:{sandbox.gid}",
        "WorkingDir": "/",
        "Labels": {**sandbox.labels, **own},
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM",
        "StopTimeout": math.ceil(plan.grace),
        "HostConfig": {
            "Init": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "ReadonlyRootfs": True,
            "IpcMode": "private",
            "NetworkMode": sandbox.network,
            "LogConfig": {"Type": "none"},
            "RestartPolicy": {"Name": "no"},
            "Mounts": _mounts(plan, sandbox, shell),
            **_limits(plan.limits, sandbox),
        },
    }


def report_path(folder: Path, number: int) -> Path:
    """Tell where the container of a step says how far it came."""
    return folder / f"step-{number}.report"


def stdin_path(plan: StepPlan) -> Path:
    """Tell where the container reads its standard input from."""
    return Path("/dev/null") if plan.stdin is None else plan.folder / f"step-{plan.number}.stdin"


def _guarded(plan: StepPlan) -> tuple[str, str, str]:
    """Give how often the guard looks for an agent, how often in vain, and the step's grace."""
    period = min(_GUARD_PERIOD, plan.orphan_limit / 4)
    return f"{period:.3f}", str(math.ceil(plan.orphan_limit / period)), str(math.ceil(plan.grace))


def _mounts(plan: StepPlan, sandbox: Sandbox, shell: Path | None) -> list[Mapping[str, Any]]:
    # Each log by itself, so that a task cannot put a link in its place.
    mounts = [
        _bind(plan.stdout, f"{FOLDER}/stdout", writable=True),
        _bind(plan.stderr, f"{FOLDER}/stderr", writable=True),
        _bind(report_path(plan.folder, plan.number), f"{FOLDER}/report", writable=True),
        _bind(stdin_path(plan), f"{FOLDER}/stdin", writable=False),
        _bind(plan.folder / ATTENTION, f"{FOLDER}/agent", writable=False),
    ]
    if shell is not None:
        mounts.append(_bind(shell, f"{FOLDER}/sh", writable=False))
    for mount in sandbox.mounts:
        mounts.append(_bind(mount.source, str(mount.target), writable=mount.writable))
    return mounts


def _bind(source: Path, target: str, *, writable: bool) -> Mapping[str, Any]:
    return {
        "Type": "bind",
        "Source": str(source),
        "Target": target,
        "ReadOnly": not writable,
        "BindOptions": {"Propagation": "rprivate"},
    }


def _limits(limits: StepLimits, sandbox: Sandbox) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if limits.memory_bytes is not None:
        memory = max(limits.memory_bytes, _LEAST_MEMORY)
        found |= {"Memory": memory, "MemorySwap": memory}
    if limits.cpus is not None:
        found["NanoCpus"] = round(max(limits.cpus, _LEAST_CPUS) * 1e9)
    if limits.processes is not None:
        found["PidsLimit"] = limits.processes
    if limits.file_bytes is not None:
        most = {"Name": "fsize", "Soft": limits.file_bytes, "Hard": limits.file_bytes}
        found["Ulimits"] = [most]
    if sandbox.shm_bytes is not None:
        found["ShmSize"] = sandbox.shm_bytes
    if sandbox.gpus:
        which = {"DeviceIDs": list(sandbox.gpu_ids)} if sandbox.gpu_ids else {"Count": sandbox.gpus}
        found["DeviceRequests"] = [{**which, "Capabilities": [["gpu"]]}]
    return found
