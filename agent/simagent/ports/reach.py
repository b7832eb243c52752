"""Why a server could not be reached or would not listen, in words. Knows no client library."""

import errno
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path

_UNKNOWN_ISSUER = {18, 19, 20, 21}
_NOT_YET, _EXPIRED, _OTHER_NAME = 9, 10, 62
"""Codes of OpenSSL's verification (X509_V_ERR_…)."""
# Where a client library compares the names itself.
_OTHER_HOST = re.compile(r"hostname .* doesn't match")
_NOT_FOR = "the certificate is not for {host}: name the server as its certificate does"
_NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN}
_LITTLE_SKEW = 60.0
# As AWS words it: "User: … is not authorized to perform: s3:PutObject on resource: "…" because …".
_DENIED = re.compile(r'perform: (?P<action>\w+:\w+)(?: on resource: "?(?P<resource>[^\s"]+))?')


def why_unreachable(error: BaseException, host: str, *, trust: str) -> str:
    """Say what kept a connection to ``host`` from being made; empty if it is not known.

    ``trust`` is the setting that names the certificates to trust.
    """
    for cause in _causes(error):
        if isinstance(cause, socket.gaierror):
            return f"the name {host} is not known: check it, and this machine's DNS"
        if isinstance(cause, ConnectionRefusedError):
            return f"nothing listens at {host}: check the address, and whether the server runs"
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _distrusted(cause, host, trust)
        if _OTHER_HOST.search(str(cause)):
            return _NOT_FOR.format(host=host)
        if isinstance(cause, OSError) and cause.errno in _NO_ROUTE:
            return f"no route leads to {host}: check this machine's network"
    return ""


def unread_keys(environ: Mapping[str, str]) -> str:
    """Say why a file of AWS keys that is named, or where it usually is, cannot be read.

    It begins with a comma, to end a sentence; boto3 passes such a file over without a word. Empty
    where the file can be read, or where there is none.
    """
    named = environ.get("AWS_SHARED_CREDENTIALS_FILE")
    path = Path(named or "~/.aws/credentials")
    try:
        path.expanduser().open("rb").close()
    except (FileNotFoundError, NotADirectoryError) as error:
        return f", {path}: {error.strerror}" if named else ""
    except (OSError, RuntimeError) as error:
        return f", {path} cannot be read: {getattr(error, 'strerror', None) or error}"
    return ""


def skew(headers: Mapping[str, str], now: float) -> str:
    """Say how far this machine's clock is off, by the time that a server's answer bears.

    ``now`` is that clock's, in seconds since the Unix epoch; ``headers`` are in lower case.
    """
    try:
        ahead = now - parsedate_to_datetime(headers["date"]).timestamp()
    except (LookupError, ValueError, TypeError):
        ahead = 0.0
    if abs(ahead) < _LITTLE_SKEW:
        how = "wrong"
    else:
        how = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    return f"this machine's clock is {how}, set it (timedatectl set-ntp true)"


def denied(said: str, action: str, resource: str) -> str:
    """Name the permission that lacks: the one that the server's answer names, or the given one."""
    found = _DENIED.search(said)
    if found is not None:
        action, resource = found["action"], found["resource"] or resource
    return f"{action} on {resource} is not allowed"


def _distrusted(error: ssl.SSLCertVerificationError, host: str, trust: str) -> str:
    if error.verify_code == _NOT_YET:
        return (
            f"the certificate of {host} is not valid yet: set this machine's clock (timedatectl "
            "set-ntp true)"
        )
    if error.verify_code == _EXPIRED:
        return f"the certificate of {host} has expired: renew it, or set this machine's clock"
    if error.verify_code == _OTHER_NAME:
        return _NOT_FOR.format(host=host)
    if error.verify_code in _UNKNOWN_ISSUER:
        return f"no trusted CA has signed the certificate of {host}: name yours in {trust}"
    return f"the certificate of {host} cannot be trusted: {error.verify_message}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        found = waiting.pop(0)
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        # Client libraries keep the cause as an argument, or as its `reason`.
        waiting += [found.__cause__, found.__context__, getattr(found, "reason", None), *found.args]
