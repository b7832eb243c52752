"""Durations and sizes as people write them: `90`, `"15 min"`, `"2h"`; `"4GiB"`, `"500MB"`."""

import math
import re
from typing import Annotated

from pydantic import BeforeValidator, Field

_NUMBER_UNIT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
_SECONDS = {"": 1, "ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def _parse(value: object, units: dict[str, float], example: str) -> object:
    if isinstance(value, bool):
        raise ValueError(f'{value} is no number: write one, or one with a unit, as "{example}"')
    if not isinstance(value, str):
        return value
    match = _NUMBER_UNIT.fullmatch(value)
    if match is None or match[2].lower() not in units:
        raise ValueError(
            f'cannot read {value!r}: write a number, or one with a unit, as "{example}"'
        )
    number = float(match[1]) * units[match[2].lower()]
    if not math.isfinite(number):
        raise ValueError(f'{value[:20]}... is too large: write something like "{example}"')
    return number


def parse_duration(value: object) -> object:
    """Turn `"2h"` into seconds; anything but a string is passed on. Raises ValueError."""
    return _parse(value, dict(_SECONDS), "15 min")


def parse_size(value: object) -> object:
    """Turn `"4GiB"` into bytes; anything but a string is passed on. Raises ValueError."""
    parsed = _parse(value, dict(_SIZES), "4GiB")
    return int(parsed) if isinstance(value, str) and isinstance(parsed, float) else parsed


def size_text(count: int) -> str:
    """Write a number of bytes for people: `700 bytes`, `12.0 MiB`, `1.4 GiB`."""
    for unit in ("GiB", "MiB", "KiB"):
        if count >= _SIZES[unit.lower()]:
            return f"{count / _SIZES[unit.lower()]:,.1f} {unit}"
    return f"{count} bytes"


Seconds = Annotated[float, BeforeValidator(parse_duration), Field(ge=0, allow_inf_nan=False)]
Bytes = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
