"""Task ids: ULIDs (https://github.com/ulid/spec), which sort by the time they were made."""

import re
import secrets

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_MAX_MILLISECONDS = 2**48 - 1
ID_PATTERN = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")
NAME_PATTERN = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")


def _base32(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 32)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def new_id(wall: float) -> str:
    """Make a ULID for the time ``wall`` (seconds since the Unix epoch)."""
    milliseconds = min(max(int(wall * 1000), 0), _MAX_MILLISECONDS)
    return _base32(milliseconds, 10) + _base32(secrets.randbits(80), 16)


def newest_first(wall: float) -> str:
    """Make a string that sorts in the reverse order of the times it is made for."""
    return _base32(_MAX_MILLISECONDS - int(wall * 1000), 10)


def check_id(value: str) -> str:
    """Return the id if it may stand in a store key. Raises ValueError."""
    if not ID_PATTERN.fullmatch(value):
        raise ValueError(f"{value!r} is no task id: use up to 64 letters, digits, '-' and '_'")
    return value


def check_tag(value: str) -> str:
    """Return a tag of an agent. Raises ValueError."""
    name, equals, rest = value.partition("=")
    if not all(NAME_PATTERN.fullmatch(part) for part in (name, *([rest] if equals else []))):
        raise ValueError(
            f"{value!r} is no tag: use letters, digits, '.', '-' and '_', as NAME or NAME=VALUE"
        )
    return value


def check_name(value: str) -> str:
    """Return a group or project name if it may stand in a store key. Raises ValueError."""
    if not NAME_PATTERN.fullmatch(value):
        raise ValueError(
            f"{value!r} is no valid name: use up to 64 letters, digits, '.', '-' and '_'"
        )
    return value
