"""Ports for servers that are told theirs, and take it some time after it was chosen."""

import secrets
from contextlib import suppress
from socket import create_server

# Not of those that the kernel gives to connections, 32768 and up: what other tests open meanwhile
# would have the port before its server does.
_FIRST, _COUNT = 15_000, 17_000
_TRIES = 100


def free_port(address: str = "127.0.0.1") -> int:
    """Give a port where nobody listens, by chance: others look for one at the same time.

    Raises:
        RuntimeError: There is none.
    """
    for _ in range(_TRIES):
        port = _FIRST + secrets.randbelow(_COUNT)
        with suppress(OSError), create_server((address, port)):
            return port
    raise RuntimeError(f"no port of {address} is free")
