"""Where the other hosts of a cluster reach this one."""

import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from simagent.ports.passing import passes

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

# Addresses for documentation (RFC 5737): nothing is sent there, the kernel is asked for the way.
_SOMEWHERE = ("192.0.2.1", 9)

_FASTER = Path("/sys/class/infiniband")
"""Where Linux lists all that can RDMA: InfiniBand, RoCE, EFA, …"""


class AddressError(Exception):
    """This machine has no such address; the message says what it has."""


def own_address(interface: str | None) -> Interface:
    """Give this machine's address in a network, with the network that it is in.

    ``interface`` is the name of one, or a network as ADDRESS/BITS; None: that of the default route,
    else any but loopback's. Raises `AddressError`, and OSError where it cannot be told just now.
    """
    there = list(_addresses())
    if interface is None:
        wanted = _of_the_default_route()
        found = [at for _, at in there if at.ip == wanted] or [
            at for _, at in there if not at.ip.is_loopback
        ]
    elif "/" in interface:
        network = ipaddress.ip_interface(interface).network
        found = [at for _, at in there if at.version == network.version and at.ip in network]
    else:
        found = [at for name, at in there if name == interface]
    if found:
        return found[0]
    what = "a network besides loopback" if interface is None else interface
    known = ", ".join(f"{name} {at}" for name, at in there)
    raise AddressError(f"mpi.interface: this machine has no address in {what}; it has {known}")


def tcp_device(interface: str | None, *, faster: Path = _FASTER) -> str:
    """Name the network interface which `own_address` is of, where ranks have nothing but TCP.

    Empty where there is something faster: what restricts an MPI to an interface would keep it from
    that. Raises `AddressError`.
    """
    own = own_address(interface)
    if faster.is_dir() and any(faster.iterdir()):
        return ""
    return next((name for name, at in _addresses() if at == own), "")


def _addresses() -> Iterator[tuple[str, Interface]]:
    """Yield the addresses of the interfaces that are up, IPv4 first; not those of a link alone."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    for family in (socket.AF_INET, socket.AF_INET6):
        for name, addresses in psutil.net_if_addrs().items():
            for found in addresses:
                if name in up and found.family == family:
                    address = ipaddress.ip_address(found.address.partition("%")[0])
                    if not address.is_link_local:
                        yield name, ipaddress.ip_interface(f"{address}/{_bits(found.netmask)}")


def _bits(netmask: str | None) -> int | str:
    """Write a netmask as ip_interface takes it; psutil gives those of IPv6 as addresses."""
    if netmask is None:
        return 32
    address = ipaddress.ip_address(netmask)
    return address.max_prefixlen - (int(address) ^ ((1 << address.max_prefixlen) - 1)).bit_length()


def _of_the_default_route() -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(_SOMEWHERE)
            return ipaddress.ip_address(sock.getsockname()[0])
    except OSError as error:
        if passes(error):  # else it would be the address of another network, for a while
            raise
        return None
