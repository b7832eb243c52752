"""How things are written for people: times, sizes, columns."""

from collections.abc import Sequence
from datetime import UTC, datetime


def seconds(value: float | None) -> str:
    """Write a duration given in seconds: `0.31 s`, `4 min 05 s`, `3 h 12 min`."""
    if value is None:
        return "-"
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def size(value: int | None) -> str:
    """Write a number of bytes: `512 B`, `1.4 kB`, `12.0 MB`."""
    if value is None:
        return ""
    amount, units = float(value), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 999.95 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    return f"{value} B" if units[0] == "B" else f"{amount:.1f} {units[0]}"


def moment(unix: float | None) -> str:
    """Write a Unix time as local time."""
    if unix is None:
        return "-"
    return datetime.fromtimestamp(unix, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align the cells of rows."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def printable(text: str) -> str:
    """Take the control characters out of what others wrote: a terminal would obey them."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
