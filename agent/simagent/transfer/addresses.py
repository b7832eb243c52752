"""Addresses that no task may have its inputs fetched from, refused where one is connected to."""

import ipaddress
import socket
from collections.abc import Iterable

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

METADATA: tuple[Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in (
        "169.254.0.0/16",  # link-local: where most clouds have it
        "fe80::/10",
        "fd00:ec2::254/128",  # AWS, over IPv6
        "fd20:ce::254/128",  # Google Cloud, over IPv6
        "100.100.100.200/32",  # Alibaba Cloud
        "168.63.129.16/32",  # Azure's host, which serves its machines
        "192.0.0.192/32",  # Oracle Cloud
    )
)
"""What serves this machine only: a cloud's metadata service would give away its credentials."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052


class AddressRefusedError(Exception):
    """An address is one of those that are refused; the argument is that."""


def check_address(address: str, refused: Iterable[Network]) -> None:
    """Raise `AddressRefusedError` where an address is in one of the networks.

    Also where it is just another way to write one that is.
    """
    ip = _unwrapped(ipaddress.ip_address(address.partition("%")[0]))
    if any(ip in network for network in refused):
        raise AddressRefusedError(address)


def checked_pool(refused: tuple[Network, ...], timeout: urllib3.Timeout) -> urllib3.PoolManager:
    """Make a pool of connections that asks nothing of who is at a refused address.

    The other end of each connection is looked at once there is one: whoever rules a name may
    give another address for it than when it was checked. Requests raise `AddressRefusedError`.
    """

    class Http(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return _checked(super()._new_conn(), refused)

    class Https(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return _checked(super()._new_conn(), refused)

    class HttpPool(HTTPConnectionPool):
        ConnectionCls = Http

    class HttpsPool(HTTPSConnectionPool):
        ConnectionCls = Https

    pool = urllib3.PoolManager(retries=False, timeout=timeout)
    pool.pool_classes_by_scheme = {"http": HttpPool, "https": HttpsPool}
    return pool


def _checked(connection: socket.socket, refused: Iterable[Network]) -> socket.socket:
    try:
        check_address(connection.getpeername()[0], refused)
    except BaseException:
        connection.close()
        raise
    return connection


def _unwrapped(ip: _Address) -> _Address:
    """Give the IPv4 address that an IPv6 one stands for, if it does."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped or ip
