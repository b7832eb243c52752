"""How the head enters its members: ssh with a key of its own, to hosts whose key it knows."""

from pathlib import Path

from simagent.domain.cluster import Member


class SshError(Exception):
    """A member cannot be entered, or the key for it not be made; the message says what to do."""


class HeadKey:
    """The key of a head, kept in ``folder``, which nobody else may read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def public(self) -> str:
        """Give the key's public half as authorized_keys(5) has it, made when first asked for.

        Raises `SshError`.
        """
        raise NotImplementedError

    def trouble(self) -> str | None:
        """Tell what this machine lacks to enter members, None where it lacks nothing."""
        raise NotImplementedError

    def command(self, member: Member) -> tuple[str, ...]:
        """Give the command line that runs the relay of a member. Raises `SshError`."""
        raise NotImplementedError
