"""What the configuration takes for the address of a queue, a store or a server."""

import re
from urllib.parse import unquote, urlsplit

_SQS_NAME = re.compile(r"[0-9A-Za-z_-]{1,75}")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")


def check_queue(value: str) -> str:
    """Take the URL of a queue, as it is. Raises ValueError."""
    match urlsplit(value).scheme:
        case "sqs":
            return _check_sqs(value)
        case "sqlite":
            return _check_url(value, "sqlite", "sqlite:///PATH")
    raise ValueError(f"{value!r} is not supported: use sqlite:///PATH or sqs://NAME")


def _check_sqs(value: str) -> str:
    # SQS takes 80 characters: five are for the dead letters' queue beside it.
    if not _SQS_NAME.fullmatch(value.removeprefix("sqs://").replace("{group}", "g")):
        raise ValueError(
            f"{value!r} is no queue of SQS: use sqs://NAME with up to 75 letters, digits, '-' and "
            "'_', and {group} where the group's name shall stand"
        )
    return value


def check_endpoint(value: str) -> str:
    """Take the URL of a server, as it is. Raises ValueError."""
    parts = urlsplit(value)
    plain = not (parts.path.strip("/") or parts.query or parts.fragment)
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise ValueError(f"{value!r} is no endpoint: use https://HOST, or http://HOST:PORT")
    return value


def check_listen(value: str) -> str:
    """Take where to listen, as HOST:PORT; a port alone is of loopback. Raises ValueError."""
    host, _, port = value.strip().rpartition(":")
    bare = host.strip("[]")
    bracketed = host.startswith("[") and host.endswith("]")
    plain = not set(bare) & set("/@[] ") and (":" not in bare or bracketed)
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536 and plain):
        raise ValueError(f"{value!r} is no address: use PORT, HOST:PORT or [::1]:PORT")
    return f"{host or '127.0.0.1'}:{port}"


def check_store(value: str) -> str:
    """Take the URL of a store, as it is. Raises ValueError."""
    if value.startswith("s3:"):
        return _check_bucket(value)
    return _check_url(value, "file", "file:///DIR or s3://BUCKET/PREFIX")


def _check_bucket(value: str) -> str:
    parts = urlsplit(value)
    if not _BUCKET.fullmatch(parts.netloc):
        raise ValueError(f"{value!r} names no bucket: use s3://BUCKET/PREFIX")
    if "?" in value or "#" in value:
        raise ValueError(f"{value!r} has more than a path: in a name write %3F for ?, %23 for #")
    prefix = unquote(parts.path).strip("/")
    if prefix and any(part in ("", ".", "..") for part in prefix.split("/")):
        raise ValueError(f"{value!r} has an empty part, or . or .., in its prefix: leave it out")
    return value


def _check_url(value: str, scheme: str, example: str) -> str:
    parts = urlsplit(value)
    if parts.scheme != scheme:
        raise ValueError(f"{value!r} is not supported: use {example}")
    if parts.netloc or not parts.path.startswith("/") or parts.path == "/":
        raise ValueError(f"{value!r} has no absolute path: use {example}, with three slashes")
    if "?" in value or "#" in value:
        raise ValueError(f"{value!r} has more than a path: in a name write %3F for ?, %23 for #")
    return value
