"""The hosts of ranks in the words of each `mpirun`: files that lie beside the remote-launch agent.

In files, as they become long; and Open MPI 5 knows its own host by an address only there.
"""

import re
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Final

from simagent.ports.launcher import LaunchError, Ranks, Span

_OPENMPI, _HYDRA = "hosts.openmpi", "hosts.hydra"
_ADDRESS: Final = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z.-]*[0-9A-Za-z])?")
_NETWORK: Final = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}/[0-9]{1,2}")


def openmpi_hosts(span: Span) -> str:
    """Name the file that Open MPI reads."""
    return _beside(span, _OPENMPI)


def hydra_hosts(span: Span) -> str:
    """Name the file that Hydra reads."""
    return _beside(span, _HYDRA)


def host_files(ranks: Ranks) -> MappingProxyType[str, str]:
    """Give the files' text, by their names; none where all ranks are on one host."""
    if ranks.span is None:
        return MappingProxyType({})
    hosts = ranks.span.hosts
    return MappingProxyType(
        {
            _OPENMPI: "".join(f"{host.address} slots={host.slots}\n" for host in hosts),
            _HYDRA: "".join(f"{host.address}:{host.slots}\n" for host in hosts),
        }
    )


def check_span(ranks: Ranks) -> Span | None:
    """Give the span back, where there is one that can be said to `mpirun`. Raises `LaunchError`."""
    span = ranks.span
    if span is None:
        return None
    if len(span.hosts) < 2:
        raise LaunchError("mpi.hosts: a span has two hosts or more")
    addresses = [host.address for host in span.hosts]
    for number, host in enumerate(span.hosts):
        if not _ADDRESS.fullmatch(host.address):
            raise LaunchError(f"mpi.hosts: {host.address!r} is no address that mpirun understands")
        if host.address in addresses[:number]:
            raise LaunchError(f"mpi.hosts: two hosts have the address {host.address}")
        if host.slots < 1:
            raise LaunchError(f"mpi.hosts: {host.address} has no slot for a rank")
    slots = sum(host.slots for host in span.hosts)
    if ranks.np > slots and not ranks.oversubscribe:
        raise LaunchError(f"mpi.np: {ranks.np} ranks are asked for, the hosts have {slots} slots")
    if not span.agent.startswith("/") or any(char.isspace() for char in span.agent):
        raise LaunchError(f"mpi.hosts: {span.agent!r} is no path that mpirun can call")
    if span.network is not None and not _NETWORK.fullmatch(span.network):
        raise LaunchError(f"mpi.interface: {span.network!r} is no network of IPv4")
    return span


def _beside(span: Span, name: str) -> str:
    return str(PurePosixPath(span.agent).parent / name)
