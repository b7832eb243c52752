"""Cgroups for the steps: a limit on all processes of an attempt together, and their sure end.

Cgroup v2 only, as the kernel's Documentation/admin-guide/cgroup-v2.rst describes it. Nothing but
folders and files: the cgroups lie beneath one that is the agent's, found by `find`.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from simagent.ports.runtime import StepLimits

NAME = "simagent"
LEAF = "agent"
"""Where the agent itself is, beneath a cgroup that it was given: processes are in leaves only."""

_NEEDED = ("memory", "pids")
_WISHED = ("cpu",)
_LEFT_OVER = 600.0
_PERIOD = 100_000  # microseconds; the kernel's default of cpu.max


class NoCgroupsError(Exception):
    """Steps cannot have cgroups here; the message says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """A cgroup beneath which those of the steps go, and the one that the agent has to join first.

    ``above`` is where controllers have to be passed on from, too.
    """

    base: Path
    leaf: Path | None = None
    above: Path | None = None


def find(proc: Path = Path("/proc"), uid: int | None = None) -> Place:
    """Tell where the agent's cgroups can be; changes nothing. Raises `NoCgroupsError`.

    In this order: beside the agent, where it was started in a subgroup named ``agent``, as
    systemd's DelegateSubgroup= does; for root, a cgroup at the top of the tree, as container
    engines make theirs, which is there already where a unit lets the agent write to nothing else;
    in the agent's own cgroup, where it is alone there and may.
    """
    root, own = _locate(proc / "self")
    _check_controllers(root)
    if own.name == LEAF and _writable(own.parent):
        return Place(own.parent)
    if (os.geteuid() if uid is None else uid) == 0:
        if _writable(root):
            return Place(root / NAME, above=root)
        if _writable(root / NAME) and not _missing(root / NAME):
            return Place(root / NAME)
    if not _writable(own):
        raise NoCgroupsError(f"the agent may not write {own}")
    # systemd starts a unit's process in the unit's cgroup: that must never become an inner one,
    # or a restart fails while steps of the last incarnation run.
    if own.name.endswith(".service"):
        raise NoCgroupsError(f"{own.name} has no DelegateSubgroup={LEAF}")
    if _text(own / "cgroup.procs").split() != [str(os.getpid())]:
        raise NoCgroupsError(f"other processes are in {own}, too")
    return Place(own, leaf=own / LEAF)


class Cgroups:
    """The cgroups of the steps on this machine."""

    def __init__(self, base: Path) -> None:
        self.base = base

    @classmethod
    def open(cls, place: Place) -> "Cgroups":
        """Set the place up, and clear it of what no step is in. Raises `NoCgroupsError`."""
        try:
            if place.above is not None:
                _pass_on(place.above)
            place.base.mkdir(exist_ok=True)
            if place.leaf is not None:
                place.leaf.mkdir(exist_ok=True)
                (place.leaf / "cgroup.procs").write_text(str(os.getpid()))
            _pass_on(place.base)
        except OSError as error:
            raise NoCgroupsError(f"cannot set up {place.base}: {error.strerror}") from error
        # Another agent's step may be about to enter one that is new.
        before = time.time() - _LEFT_OVER
        for cgroup in place.base.glob(f"{NAME}-*"):
            with suppress(FileNotFoundError):
                if cgroup.stat().st_mtime < before:
                    remove(cgroup)
        return cls(place.base)

    def create(self, attempt: str, limits: StepLimits) -> Path:
        """Make the cgroup of an attempt, with its limits. Raises OSError."""
        cgroup = self.base / f"{NAME}-{attempt}"
        cgroup.mkdir(exist_ok=True)
        if limits.memory_bytes is not None:
            (cgroup / "memory.max").write_text(str(limits.memory_bytes))
            with suppress(OSError):  # there is none where swap is not accounted for
                (cgroup / "memory.swap.max").write_text("0")
        with suppress(OSError):  # Linux has it since 4.19; else ranks are killed one by one
            (cgroup / "memory.oom.group").write_text("1")
        if limits.processes is not None:
            (cgroup / "pids.max").write_text(str(limits.processes))
        if limits.cpus is not None:
            quota = max(1000, round(limits.cpus * _PERIOD))
            with suppress(OSError):  # without the controller, they are bound to cores all the same
                (cgroup / "cpu.max").write_text(f"{quota} {_PERIOD}")
        return cgroup


def kill(cgroup: Path) -> None:
    """Kill all that is in a cgroup, if it is there. Linux can since 5.14."""
    if cgroup.is_dir():
        with suppress(OSError):
            (cgroup / "cgroup.kill").write_text("1")


def remove(cgroup: Path) -> None:
    """Remove a cgroup, unless processes are in it."""
    with suppress(OSError):
        cgroup.rmdir()


def _locate(process: Path) -> tuple[Path, Path]:
    """Find the tree's root and the agent's own cgroup, as folders. See cgroups(7)."""
    trees = []
    for line in _text(process / "mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split()[:1] == ["cgroup2"]:
            top, mounted = (Path(_unescaped(field)) for field in fields.split()[3:5])
            trees.append((top, mounted))
    if not trees:
        raise NoCgroupsError("no cgroup v2 tree is mounted")
    for line in _text(process / "cgroup").splitlines():
        if line.startswith("0::"):
            own = Path(line.removeprefix("0::"))
            # A part of the tree may be mounted over itself, to be written to where the rest is not.
            for top, mounted in trees:
                if ".." not in own.parts and own.is_relative_to(top):
                    return mounted, mounted / own.relative_to(top)
    raise NoCgroupsError("the agent's own cgroup lies outside of the cgroup v2 tree")


def _unescaped(field: str) -> str:
    return field.replace(r"\040", " ")


def _check_controllers(root: Path) -> None:
    missing = _missing(root)
    if missing:
        raise NoCgroupsError(f"cgroup v2 has no controller for {' and '.join(missing)}")


def _missing(cgroup: Path) -> list[str]:
    offered = _text(cgroup / "cgroup.controllers").split()
    return [name for name in _NEEDED if name not in offered]


def _pass_on(cgroup: Path) -> None:
    """Let the cgroups beneath this one have the controllers. Raises OSError."""
    control = cgroup / "cgroup.subtree_control"
    enabled = _text(control).split()
    offered = _text(cgroup / "cgroup.controllers").split()
    for name in (*_NEEDED, *(name for name in _WISHED if name in offered)):
        if name not in enabled:
            control.write_text(f"+{name}")


def _writable(cgroup: Path) -> bool:
    files = ("cgroup.procs", "cgroup.subtree_control")
    return all(os.access(path, os.W_OK) for path in (cgroup, *(cgroup / name for name in files)))


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text()
    return ""
