"""A shell of the host that runs in any image: a BusyBox that needs no files besides itself."""

import os
from collections.abc import Sequence
from pathlib import Path

SHELLS = ("/bin/busybox", "/usr/bin/busybox")

_PT_INTERP = 3
_PROGRAM_HEADERS = ((32, 40), (54, 56), (56, 58))  # elf(5): e_phoff, e_phentsize, e_phnum


def static_shell(candidates: Sequence[str | Path] = SHELLS) -> Path | None:
    """Find a BusyBox that needs no files besides itself, and so runs in any image."""
    for path in map(Path, candidates):
        try:
            if os.access(path, os.X_OK) and _is_static(path):
                return path.resolve()
        except (OSError, ValueError):
            continue
    return None


def _is_static(path: Path) -> bool:
    """Tell whether an ELF file names no loader; see elf(5)."""
    with path.open("rb") as file:
        head = file.read(64)
        if head[:5] != b"\x7fELF\x02":
            return False
        at, size, count = (int.from_bytes(head[i:k], "little") for i, k in _PROGRAM_HEADERS)
        file.seek(at)
        table = file.read(size * count)
    kinds = {int.from_bytes(table[i : i + 4], "little") for i in range(0, len(table), size)}
    return _PT_INTERP not in kinds
