"""A member's own ssh server: it lets in one key of one user, for the relay and nothing else."""

from collections.abc import Sequence
from pathlib import Path


class SshdError(Exception):
    """The server does not run; the message says why, and what to do."""


def relay_command(socket: Path) -> tuple[str, ...]:
    """Give the command line of a relay that leads to the member agent at ``socket``."""
    raise NotImplementedError


class Sshd:
    """The ssh server of a member, with its files in ``folder``; it outlives the agent.

    It is openssh-server's, but knows no file of the system's own one. It runs as ``user``, never
    as root: whom it lets in is that user, for ``relay``. The relay must be able to connect to the
    member agent's socket as that user. ``user`` is the agent's own, but for an agent of root's.
    """

    def __init__(self, folder: Path, *, port: int, user: str, relay: Sequence[str]) -> None:
        self._folder = folder
        self._port = port
        self._user = user
        self._relay = tuple(relay)

    @property
    def host_key(self) -> str:
        """Give the public key that it proves itself by, as known_hosts(5) has it, without names.

        Made when first asked for, and kept. Raises `SshdError`.
        """
        raise NotImplementedError

    def trouble(self) -> str | None:
        """Tell what this machine lacks to run it, None where it lacks nothing; never raises."""
        raise NotImplementedError

    def authorize(self, public_key: str | None) -> None:
        """Let in this key, in the form of authorized_keys(5), and no other; None: nobody.

        Connections that are open stay so. Raises `SshdError`.
        """
        raise NotImplementedError

    def ensure(self) -> None:
        """See to it that it runs: start it, or adopt the one of an earlier incarnation.

        One that was started for another port, user or relay, or from a program that was replaced
        since, is stopped first; its connections go on. To be called from time to time. Raises
        `SshdError`.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Stop it, where it runs; open connections go on."""
        raise NotImplementedError
