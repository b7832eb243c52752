"""How the head enters its members: ssh with a key of its own, to hosts whose key it knows."""

import hashlib
import re
import shutil
from pathlib import Path

from simagent.cluster.keyfiles import KeyFileError, make_key, write
from simagent.domain.cluster import Member

CONNECT_LIMIT = 10
"""Seconds until a host that does not answer is given up."""

_ALIAS = "member"
_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_%-]{0,254}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,254}")
_HOST_KEY = re.compile(r"(ssh-ed25519|ecdsa-sha2-nistp(?:256|384|521)) [A-Za-z0-9+/]+={0,2}")

_OPTIONS = {
    "BatchMode": "yes",
    "PreferredAuthentications": "publickey",
    "IdentitiesOnly": "yes",
    "IdentityAgent": "none",
    "AddKeysToAgent": "no",
    "StrictHostKeyChecking": "yes",
    "GlobalKnownHostsFile": "/dev/null",
    "HostKeyAlias": _ALIAS,
    "CheckHostIP": "no",
    "UpdateHostKeys": "no",
    "VerifyHostKeyDNS": "no",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "ControlMaster": "no",
    "ControlPath": "none",
    "ConnectionAttempts": "1",
    "ConnectTimeout": str(CONNECT_LIMIT),
    # The beats of head and relay tell more, and sooner; these end an ssh that nobody looks after.
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    "EscapeChar": "none",
    "LogLevel": "ERROR",
}


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
        try:
            return make_key(self._folder / "key")
        except KeyFileError as error:
            raise SshError(str(error)) from None

    def trouble(self) -> str | None:
        """Tell what this machine lacks to enter members, None where it lacks nothing."""
        lacks = [name for name in ("ssh", "ssh-keygen") if shutil.which(name) is None]
        return f"{' and '.join(lacks)} not found: install openssh-client" if lacks else None

    def command(self, member: Member) -> tuple[str, ...]:
        """Give the command line that runs the relay of a member. Raises `SshError`."""
        host_key = _HOST_KEY.fullmatch(member.host_key)
        for what, value, good in (
            ("host key", member.host_key, host_key),
            ("address", member.address, _ADDRESS.fullmatch(member.address)),
            ("ssh user", member.ssh_user, _USER.fullmatch(member.ssh_user)),
        ):
            if not good:
                raise SshError(f"host {member.host}: {value!r} is no {what}: is its agent of this "
                               "version?")  # fmt: skip
        assert host_key is not None
        if self.trouble() is not None:
            raise SshError(self.trouble())
        _ = self.public
        known = self._known(member.host_key)
        options = _OPTIONS | {
            "HostKeyAlgorithms": host_key[1],
            "UserKnownHostsFile": _quoted(known),
            "IdentityFile": _quoted(self._folder / "key"),
        }
        return (
            *("ssh", "-F", "none", "-T", "-x", "-a"),
            *(word for name, value in options.items() for word in ("-o", f"{name}={value}")),
            *("-p", str(member.port), "-l", member.ssh_user, "--", member.address),
        )

    def _known(self, host_key: str) -> Path:
        """Give a file which knows this key alone, never changed: connections begun earlier use it.

        Raises `SshError`.
        """
        name = hashlib.sha256(host_key.encode()).hexdigest()[:16]
        path = self._folder / f"known_hosts.{name}"
        if not path.exists():
            try:
                write(path, f"{_ALIAS} {host_key}\n", 0o600)
            except OSError as error:
                raise SshError(f"{path}: {error.strerror}") from None
        return path


def _quoted(path: Path) -> str:
    """Write a path as ssh_config(5) has it. Raises `SshError`."""
    text = str(path.absolute())
    if '"' in text or "$" in text or "\n" in text:
        raise SshError(f"ssh cannot use keys in {text!r}: choose another state_dir")
    return '"' + text.replace("%", "%%") + '"'
