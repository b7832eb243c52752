"""How fast outputs are packed: against zipfile, and against the same work with nothing around it.

`python -m bench.archive [--json]`
"""

import hashlib
import io
import json
import math
import os
import random
import sys
import tempfile
import time
import zipfile
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from isal import isal_zlib

from bench.report import Result, show
from simagent.domain.spec import Outputs
from simagent.transfer.archive import BLOCK, Archive
from simagent.transfer.outputs import EMPTY, select

_MB = 1_000_000
_SMALL_FILES, _SMALL_SIZE = 20_000, 1300
_RUNS = 3


class _Sink(io.RawIOBase):
    """Where the archive goes, as over a connection that is never slow."""

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        return len(memoryview(data))  # type: ignore[arg-type]


def run() -> list[Result]:
    """Pack 300 MB of mixed files, and 20,000 small ones."""
    with tempfile.TemporaryDirectory(prefix="bench-archive-") as folder:
        mixed, small = Path(folder, "mixed"), Path(folder, "small")
        _make_mixed(mixed)
        _make_small(small)
        return [*_compare("outputs: 300 MB mixed", mixed, _bare_large),
                *_compare("outputs: 20,000 small files", small, _bare_small)]  # fmt: skip


def _compare(name: str, root: Path, bare: Callable[[Path], None]) -> Iterator[Result]:
    plain, ours, floor = [], [], []
    for _ in range(_RUNS):  # in turns, so that the machine's other work falls on all alike
        plain.append(_seconds(_zipfile, root))
        ours.append(_seconds(_pack, root))
        floor.append(_seconds(bare, root))
    best = min(ours)
    speedup, share = min(plain) / best, min(floor) / best
    yield Result(name, "≥ 4 × zipfile", f"{best:.2f} s", speedup, speedup >= 4)
    yield Result(name, "≥ 0.8 × bare work", f"{best:.2f} s", share, share >= 0.8)


def _seconds(work: Callable[[Path], None], root: Path) -> float:
    began = time.perf_counter()
    work(root)
    return time.perf_counter() - began


def _zipfile(root: Path) -> None:
    with zipfile.ZipFile(_Sink(), "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(root))


def _pack(root: Path) -> None:
    for _chunk in Archive(select(root, EMPTY, Outputs()).members, threads=_threads()):
        pass


def _threads() -> int:
    return len(os.sched_getaffinity(0))


def _bare_large(root: Path) -> None:
    """Read, hash, deflate and hash again on all cores: no order, and no archive."""

    def block(path: Path, offset: int) -> None:
        with path.open("rb") as file:
            data = os.pread(file.fileno(), BLOCK, offset)
        hashlib.sha256(data)
        hashlib.sha256(isal_zlib.compress(data, 1, -15))

    with ThreadPoolExecutor(_threads()) as pool:
        for path in root.iterdir():
            for offset in range(0, path.stat().st_size, BLOCK):
                pool.submit(block, path, offset)


def _bare_small(root: Path) -> None:
    """List the files, then read, deflate and hash them in as many processes as there are cores."""
    folders = sorted(root.iterdir())
    count = _threads()
    with ProcessPoolExecutor(count, get_context("fork")) as pool:
        list(pool.map(_bare_folders, [folders[number::count] for number in range(count)]))


def _bare_folders(folders: list[Path]) -> None:
    for folder in folders:
        for entry in os.scandir(folder):
            file = os.open(entry.path, os.O_RDONLY)
            data = os.read(file, os.fstat(file).st_size)
            os.close(file)
            hashlib.sha256(data)
            hashlib.sha256(isal_zlib.compress(data, 1, -15))


def _make_mixed(root: Path) -> None:
    root.mkdir()
    rng = random.Random(1)
    rows = "".join(
        f"{number},{rng.gauss(0, 1):.6f},{rng.gauss(0, 1):.6f},{rng.random():.4e}\n"
        for number in range(100_000)
    ).encode()
    field = array("f", (math.sin(i / 3e4) + 0.01 * rng.gauss(0, 1) for i in range(1 << 20)))
    values = field.tobytes()
    for number in range(4):
        (root / f"random{number}").write_bytes(os.urandom(25 * _MB))
        (root / f"table{number}.csv").write_bytes((rows * 10)[: 25 * _MB])
        (root / f"field{number}.f32").write_bytes((values * 7)[: 25 * _MB])


def _make_small(root: Path) -> None:
    rng = random.Random(2)
    for number in range(_SMALL_FILES):
        folder = root / f"{number // 100:03d}"
        if number % 100 == 0:
            folder.mkdir(parents=True)
        text = "".join(f"{i},{rng.gauss(0, 1):.6f},{rng.random():.4f}\n" for i in range(70))
        (folder / f"{number:05d}.csv").write_text(text[:_SMALL_SIZE])


if __name__ == "__main__":
    found = run()
    if "--json" in sys.argv[1:]:
        print(json.dumps([asdict(result) for result in found], indent=1))
    else:
        show(found)
