"""`simagent doctor`: what this machine offers, what is missing, and what mends it."""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import psutil

from simagent import __version__
from simagent.cli import doctor_engines, doctor_mpi, doctor_users
from simagent.cli.finding import Check, put_checks
from simagent.cli.text import put_json, size
from simagent.config import Config, ConfigError
from simagent.ports.runtime import Runtime
from simagent.wiring.machine import find_cgroups, open_runtimes
from simagent.worker.choice import CONTAINERS

_OWN_CGROUP = "run the agent as root, or: systemd-run --user --scope -p Delegate=yes simagent agent"
_PACKAGES = {"docker": "docker.io", "apptainer": "apptainer squashfuse uidmap"}


def examine(config: Config, *, as_json: bool) -> int:
    """Print all findings; tell the exit code: 1 where something needed is missing."""
    checks = [check for find in _CHECKS for check in find(config)]
    if as_json:
        put_json({"version": __version__, "checks": [asdict(check) for check in checks]})
    else:
        put_checks(checks)
    return int(any(check.verdict == "missing" for check in checks))


def _machine(config: Config) -> Iterator[Check]:
    del config
    python = f"{platform.python_version()} ({sys.executable})"
    yield Check("simagent", "ok", f"{__version__}, Python {python}")
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory()
    yield Check("cores", "ok", f"{cores} usable, of {os.cpu_count() or cores}")
    yield Check("memory", "ok", f"{size(memory.available)} free of {size(memory.total)}")


def _runtimes(config: Config) -> Iterator[Check]:
    runtimes = open_runtimes(config)
    working = [name for name in config.runtimes if _works(runtimes.get(name))]
    for name in CONTAINERS:
        runtime = runtimes.get(name)
        if name not in config.runtimes:
            yield Check(name, "note", "switched off by the setting runtimes")
        elif runtime is None:
            yield Check(name, "note", "not found on this machine", f"apt install {_PACKAGES[name]}")
        elif trouble := runtime.trouble():
            yield Check(name, "note", trouble)
        else:
            first, *notes = runtime.about()
            chosen = ", runs images where the task leaves the choice"
            yield Check(name, "ok", f"{first}{chosen if name == working[0] else ''}")
            for note in notes:
                yield Check(name, "note", note)
    if not working and not config.process_allowed:
        text = "allow_process is off, and nothing runs images: no task can run here"
        yield Check("runtime", "missing", text, "SIMAGENT_ALLOW_PROCESS=true, or one of the above")


def _works(runtime: Runtime | None) -> bool:
    return runtime is not None and runtime.trouble() is None


def _limits(config: Config) -> Iterator[Check]:
    alone = "by rlimits: memory for each process by itself"
    if os.geteuid() == 0:
        alone += ", processes not at all"
    if config.limits == "rlimits":
        yield Check("limits", "note", f"{alone}, as configured")
        return
    try:
        base = find_cgroups()
    except ConfigError as error:
        if config.limits == "cgroup":
            yield Check("limits", "missing", str(error), "SIMAGENT_LIMITS=auto")
        else:
            fix = "" if os.geteuid() == 0 else _OWN_CGROUP
            yield Check("limits", "note", f"{alone} ({error})", fix)
    else:
        yield Check("limits", "ok", f"by cgroups in {base}")


def _clock(config: Config) -> Iterator[Check]:
    del config
    wall = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(wall))
    if wall >= Path(__file__).stat().st_mtime - 86_400:
        yield Check("clock", "ok", shown)
    else:
        text = f"{shown} is before simagent was installed: times shown will be wrong"
        yield Check("clock", "note", text, "timedatectl set-ntp true")


_CHECKS: tuple[Callable[[Config], Iterator[Check]], ...] = (
    _machine,
    doctor_engines.state_dir,
    doctor_engines.store,
    doctor_engines.queue,
    doctor_mpi.mpi,
    doctor_mpi.cluster,
    doctor_users.isolation,
    doctor_users.credentials,
    doctor_users.metadata,
    _runtimes,
    _limits,
    _clock,
)
