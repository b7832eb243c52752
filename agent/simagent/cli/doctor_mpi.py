"""What `simagent doctor` finds of MPI, and of the cluster that the agent is of."""

import importlib.util
import os
import socket
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simagent.cli.cluster_check import age_of, kept_check
from simagent.cli.finding import Check
from simagent.cli.text import moment, printable, seconds
from simagent.cluster.ssh import HeadKey
from simagent.cluster.sshd import Sshd, default_user
from simagent.config import Config, ConfigError
from simagent.domain import keys
from simagent.domain.cluster import SHOWS_EVERY, Head, Member
from simagent.engines import open_store
from simagent.ledger import CorruptError, Ledger, TooNewError
from simagent.ports.store import StoreError
from simagent.wiring.head import wanted_hosts
from simagent.wiring.machine import open_launchers
from simagent.worker.address import AddressError, own_address
from simagent.worker.cores import physical_cores
from simagent.worker.shared import StalledError, names_in

_FAMILIES = {"hydra": "MPICH", "openmpi": "Open MPI"}
_SILENT_AFTER = 4 * SHOWS_EVERY + 60
"""Seconds, with a minute by which clocks may differ."""
_SHARE = "mount it on every host of the cluster, and name it in mpi.shared_dir"


def mpi(config: Config) -> Iterator[Check]:
    """Tell which MPI is here, and what starts ranks."""
    found = list(open_launchers(config).installed())
    for mpirun in found:
        family = _FAMILIES[mpirun.flavour]
        yield Check("mpi", "ok", f"{family} {mpirun.version}: {mpirun.path}")
    if not found:
        text = f"no mpirun of Open MPI or MPICH ({config.mpirun}): steps with mpi need an image"
        yield Check("mpi", "note", text, "apt-get install openmpi-bin, or pip install mpich")
    yield _ways(config, bool(found))
    slots = config.mpi.slots or physical_cores()
    yield Check("mpi slots", "ok", f"{slots}, {'as set' if config.mpi.slots else 'one a core'}")
    if importlib.util.find_spec("mpi4py") is None:
        text = f"{sys.executable} has no mpi4py: simagent mpi check measures nothing here"
        yield Check("mpi check", "note", text, "pip install 'simagent[mpi]'")


def _ways(config: Config, here: bool) -> Check:
    """Tell what starts ranks: docs/mpi.md has the names."""
    alone = "this machine's mpirun" if here else "nothing here"
    if config.mpi.mode == "hybrid":
        text = f"programs: {alone}; images: this machine's, a container for each rank (hybrid)"
        fix = "" if here else "install Open MPI or MPICH, or set mpi.mode to auto"
        return Check("mpi ranks", "ok" if here else "note", f"started by, {text}", fix)
    image = "their own mpirun (inside; over several hosts contained)"
    if config.mpi.mode == "auto" and here:
        image += ", or hybrid where a step names mpi.version"
    return Check("mpi ranks", "ok", f"started by, programs: {alone}; images: {image}")


def cluster(config: Config) -> Iterator[Check]:
    """Tell whether this host can take part in its cluster, and who else does."""
    if config.cluster is None:
        if config.role == "member":
            text = "role is member, of no cluster: the agent does not start"
            yield Check("cluster", "missing", text, "set cluster, or remove role")
        return
    try:
        at = own_address(config.mpi.interface)
    except AddressError as error:
        yield Check("cluster address", "missing", str(error), "set mpi.interface to one of these")
    else:
        yield Check("cluster address", "ok", f"{at.ip}, in {at.network}")
    yield _shared(config)
    if config.role == "member":
        yield _door(config)
    else:
        yield from _lead(config)
    yield from _hosts(config)
    kept = kept_check(config.state_dir)
    if kept is not None:
        yield _tried(kept)


def _tried(kept: dict[str, Any]) -> Check:
    """Tell what came of the head's own check."""
    when = f"{seconds(age_of(kept))} ago"
    if kept.get("ok"):
        return Check("cluster check", "ok", f"{len(kept.get('ranks', ()))} ranks met, {when}")
    troubles = "; ".join(map(str, kept.get("troubles", ())))
    if kept.get("tried") is False:
        fix = "set mpi.check_image, or allow_process on all hosts; or mpi.check = false"
        return Check("cluster check", "note", f"not tried, {printable(troubles)}, {when}", fix)
    return Check("cluster check", "note", f"{printable(troubles)}, {when}", "simagent mpi check")


def _shared(config: Config) -> Check:
    folder = config.mpi.shared_dir
    if folder is None:
        text = "mpi.shared_dir is not set: ranks stay on one host"
        return Check("cluster folder", "missing", text, _SHARE)
    try:
        names_in(folder)
    except StalledError as error:
        return Check("cluster folder", "missing", str(error), _SHARE)
    if not folder.is_dir():
        return Check("cluster folder", "missing", f"there is no folder {folder}", _SHARE)
    if config.role == "head" and not os.access(folder, os.W_OK | os.X_OK):
        fix = f"chown it to uid {os.geteuid()}, or chmod 1777 {folder}"
        return Check("cluster folder", "missing", f"{folder} cannot be written to", fix)
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        text = f"in {folder} everybody may put files in the place of others'"
        return Check("cluster folder", "note", text, f"chmod +t {folder}")
    return Check("cluster folder", "ok", f"{folder}, {_kind(folder)}")


def _kind(folder: Path) -> str:
    """Tell what a folder is on, by the longest mount point above it (proc(5): mounts)."""
    best, kind = "", "file system unknown"
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return kind
    path = str(folder.resolve())
    for line in lines:
        source, point, name = line.split()[:3]
        above = path == point or path.startswith(point.rstrip("/") + "/")
        if above and len(point) >= len(best):
            best, kind = point, f"{name} of {source}"
    return kind


def _door(config: Config) -> Check:
    """Tell whether the member's own ssh server can run."""
    user = config.mpi.ssh_user or default_user()
    port = config.mpi.ssh_port
    server = Sshd(config.state_dir / "member" / "sshd", port=port, user=user, relay=())
    trouble = server.trouble()
    if trouble is not None:
        return Check("cluster ssh", "missing", trouble)
    return Check("cluster ssh", "ok", f"the head is let in as {user}, at port {port}")


def _lead(config: Config) -> Iterator[Check]:
    trouble = HeadKey(config.state_dir / "head").trouble()
    if trouble is not None:
        yield Check("cluster ssh", "missing", trouble)
    else:
        yield Check("cluster ssh", "ok", "a key of the head's own enters members")
    if config.slots > 1:
        text = f"slots is {config.slots}: a head runs one task at a time"
        yield Check("cluster slots", "missing", text, "remove slots, or cluster")


def _hosts(config: Config) -> Iterator[Check]:
    """Tell who leads the cluster, and which members have shown themselves."""
    assert config.cluster is not None
    name = f"cluster {config.cluster}"
    try:
        wanted = wanted_hosts(config)
        ledger = Ledger(open_store(config))
        head = ledger.document(keys.cluster_head(config.cluster), Head())
        members = _members(ledger, config.cluster)
    except (StoreError, OSError, CorruptError, TooNewError, ConfigError) as error:
        yield Check(name, "note", f"not to be seen: {error}")
        return
    led = f"led by {printable(head.lease.agent)}" if head.lease else "led by nobody so far"
    size = config.mpi.size or max(1, len(wanted))
    there = sum(not member.trouble and not _silent(member) for member in members)
    waits = f", waits for {size} hosts" if config.role == "head" and size > 1 else ""
    yield Check(name, "ok", f"{led}, members: {there}{waits}")
    names = Counter([member.host for member in members if not _silent(member)])
    if config.role == "head":
        names[socket.gethostname()] += 1
    for member in members:
        yield _member(member, twice=names[member.host] > 1)
    known = {text for member in members for text in (member.host, member.address)}
    for host in wanted:
        if host.name not in known and not _is_own(host.name, config):
            text = f"{host.name} is to be used, and no member is called so"
            yield Check("cluster host", "note", text, "start its agent, or mend mpi.hosts")


def _is_own(name: str, config: Config) -> bool:
    try:
        return name in (socket.gethostname(), str(own_address(config.mpi.interface).ip))
    except AddressError:
        return name == socket.gethostname()


def _members(ledger: Ledger, cluster: str) -> list[Member]:
    found = []
    for entry in ledger.store.scan(keys.cluster_members(cluster)):
        try:
            found.append(Member.model_validate_json(ledger.store.get(entry.key).data))
        except ValueError:
            continue  # of another version
    return sorted(found, key=lambda member: (member.host, member.agent))


def _silent(member: Member) -> bool:
    return time.time() - member.at > _SILENT_AFTER


def _member(member: Member, *, twice: bool) -> Check:
    host = printable(member.host)
    if _silent(member):
        return Check("cluster host", "note", f"{host}: silent since {moment(member.at)}")
    if member.trouble:
        return Check("cluster host", "note", f"{host}: {printable(member.trouble)}")
    has = ", ".join(map(printable, (*member.mpi, *member.runtimes))) or "no MPI, no runtime"
    text = f"{host} ({printable(member.address)}): {member.slots} slots, uid {member.uid}, {has}"
    if twice:
        fix = "hostnamectl set-hostname OTHER, on one of them"
        return Check("cluster host", "missing", f"{text}: two hosts have this name", fix)
    return Check("cluster host", "ok", text)
