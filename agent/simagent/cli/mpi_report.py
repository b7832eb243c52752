"""What the ranks of `simagent mpi check` told: what is wrong with it, and how it is shown."""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from simagent.api.text import columns, printable, size
from simagent.mpi_probe import MARK

_MOST_NAMED = 5
_VERSION = re.compile(r"(?:version:? *|v)?(\d+(?:\.\w+)+)", re.IGNORECASE)


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Link(_Told):
    """The way to the next rank of the ring."""

    to: int
    seconds: float
    bytes_per_second: float


class Together(_Told):
    """What all ranks did at once; seconds."""

    sum_is_right: bool
    each_reached_each: bool
    sum_seconds: float
    large_sum_seconds: float
    large_sum_bytes: int


class Rank(_Told):
    """What one rank told last, in the words of `simagent.mpi_probe`.

    ``told`` is what its launcher said of its rank, and of how many there are; ``rank`` and
    ``size`` are what MPI itself says, known once it ``met`` the others.
    """

    id: str
    host: str
    told: tuple[int | None, int | None] = (None, None)
    rank: int | None = None
    size: int | None = None
    cpus: str = ""
    cpu: int | None = None
    uid: int | None = None
    shm: str | None = None
    python: str | None = None
    mpi4py: str | None = None
    library: str | None = None
    standard: str | None = None
    met: bool = False
    unseen: tuple[str, ...] = ()
    link: Link | None = None
    together: Together | None = None

    @property
    def number(self) -> int | None:
        """Its rank; before it met the others, as its launcher says."""
        return self.rank if self.met else self.told[0]

    @property
    def mpi(self) -> str:
        """Its MPI library, in short."""
        return short_version(self.library or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is known after a check.

    ``troubles`` are what is wrong, a line each, ``notes`` what else should be known.
    """

    ranks: tuple[Rank, ...]
    troubles: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def hosts(self) -> dict[str, int]:
        """How many ranks were on each host."""
        found: dict[str, int] = defaultdict(int)
        for rank in self.ranks:
            found[rank.host] += 1
        return dict(found)


def read_ranks(lines: Iterable[str], files: Iterable[str]) -> tuple[list[Rank], set[str]]:
    """Read what ranks printed and wrote; tell the ids of those whose files there are, too.

    What is no record is left out: images may print what they like.
    """
    found: dict[str, Rank] = {}
    marked = [line.partition(MARK)[2] for line in lines if MARK in line]
    written = [rank.id for rank in _read(files)]
    for rank in (*_read(marked), *_read(files)):
        if rank.id not in found or rank.met:
            found[rank.id] = rank
    ranks = sorted(found.values(), key=lambda rank: (rank.number is None, rank.number or 0))
    return ranks, set(written)


def _read(texts: Iterable[str]) -> Iterator[Rank]:
    for text in texts:
        try:
            yield Rank.model_validate(json.loads(text))
        except (ValidationError, ValueError):
            continue


def judge(
    ranks: Sequence[Rank],
    written: Collection[str],
    *,
    np: int | None,
    hosts: int | None,
    ended: str | None,
) -> Report:
    """Tell what is wrong: ``np`` ranks on ``hosts`` hosts were asked for, where that is known.

    ``ended`` is how the task ended, where it did not succeed.
    """
    troubles = [] if ended is None else [ended]
    if ranks:
        troubles += _alone(ranks)
        troubles += _missing(ranks, np, hosts)
        troubles += _different(ranks)
        troubles += _unshared(ranks, written)
        troubles += _wrong(ranks)
    elif ended is None:
        troubles.append("no rank told anything: see the task's log")
    return Report(
        ranks=tuple(ranks), troubles=tuple(dict.fromkeys(troubles)), notes=tuple(_notes(ranks))
    )


def _alone(ranks: Sequence[Rank]) -> Iterator[str]:
    """Tell of ranks that take themselves for the only one."""
    alone = [rank for rank in ranks if rank.size == 1]
    if len(ranks) > 1 and alone:
        yield (
            f"{len(alone)} of {len(ranks)} ranks take themselves for the only one: their MPI "
            f"({_names(rank.mpi for rank in alone)}) does not hear of the mpirun that started them"
        )
    unheard = [rank for rank in ranks if not rank.met and rank.told == (None, None)]
    if len(ranks) > 1 and unheard:
        yield (
            f"{len(unheard)} ranks got no variables of mpirun, as OMPI_COMM_WORLD_RANK: what "
            "stands between them and mpirun takes them away"
        )


def _missing(ranks: Sequence[Rank], np: int | None, hosts: int | None) -> Iterator[str]:
    met = [rank for rank in ranks if rank.met]
    sizes = {size for rank in ranks for size in (rank.size, rank.told[1]) if size is not None}
    wanted = np or max(sizes, default=0)
    there = {rank.number for rank in ranks} - {None}
    absent = sorted(set(range(wanted)) - there)
    if len(ranks) < wanted:
        which = f": {_numbers(absent)}" if absent else ""
        yield f"{wanted - len(ranks)} of {wanted} ranks are missing{which}"
    found = sorted({rank.host for rank in ranks})
    if hosts is not None and len(found) != hosts:
        yield f"{hosts} hosts were asked for, ranks were on {len(found)}: {_names(found)}"
    lost = [rank for rank in ranks if rank.mpi4py is not None and not rank.met]
    if lost:
        where = _names(sorted({rank.host for rank in lost}))
        how = "none met" if not met else f"{len(met)} met"
        yield (
            f"{len(lost)} ranks were started, and did not meet the others ({how}); those on "
            f"{where}: is the network between the hosts open to MPI?"
        )


def _different(ranks: Sequence[Rank]) -> Iterator[str]:
    """Tell what has to be the same everywhere, and is not."""
    for what, groups in (
        ("versions of MPI differ", _grouped(ranks, lambda rank: rank.mpi or None)),
        ("user numbers differ", _grouped(ranks, lambda rank: _text(rank.uid))),
    ):
        if len(groups) > 1:
            parts = [f"{name} on {_names(sorted(on))}" for name, on in sorted(groups.items())]
            yield f"{what}: {'; '.join(parts)}"


def _unshared(ranks: Sequence[Rank], written: Collection[str]) -> Iterator[str]:
    """Tell of hosts whose ranks wrote where nobody else sees it."""
    by_id = {rank.id: rank.host for rank in ranks}
    unseen = {by_id.get(name, name) for rank in ranks for name in rank.unseen}
    if written:
        unseen |= {rank.host for rank in ranks if rank.id not in written}
    if unseen:
        yield f"the folder is not shared: what ranks wrote on {_names(sorted(unseen))} is missing"


def _wrong(ranks: Sequence[Rank]) -> Iterator[str]:
    sums = [rank for rank in ranks if rank.together and not rank.together.sum_is_right]
    if sums:
        yield f"a sum over all ranks is wrong on {_names(sorted({rank.host for rank in sums}))}"
    cut = [rank for rank in ranks if rank.together and not rank.together.each_reached_each]
    if cut:
        where = _names(sorted({rank.host for rank in cut}))
        yield f"what each rank sent to each came wrongly to {where}"


def _notes(ranks: Sequence[Rank]) -> Iterator[str]:
    without = [rank for rank in ranks if rank.mpi4py is None]
    if without:
        what = "Python" if any(rank.python is None for rank in without) else "mpi4py"
        where = _names(sorted({rank.host for rank in without}))
        yield (
            f"nothing was measured, and ranks did not speak to each other: no {what} for this MPI "
            f"was found on {where} (pip install 'simagent[mpi]', or python3-mpi4py in the image)"
        )
    for host, own in _grouped(ranks, lambda rank: rank.host, lambda rank: _text(rank.shm)).items():
        if len(own) > 1:
            yield f"ranks on {host} share no memory: each has a /dev/shm of its own"


def _grouped(
    ranks: Sequence[Rank], by: Any, of: Any = lambda rank: rank.host
) -> dict[str, set[str]]:
    groups: dict[str, set[str]] = defaultdict(set)
    for rank in ranks:
        name, value = by(rank), of(rank)
        if name is not None and value is not None:
            groups[name].add(value)
    return groups


def short_version(library: str) -> str:
    """Shorten what a library says of itself: ``Open MPI 4.1.4``."""
    words = " ".join(library.replace("\t", " ").split())
    found = _VERSION.search(words)
    if found is None:
        return words[:40]
    family = words[: found.start()].strip(" ()-,")
    return f"{'Open MPI' if 'Open' in family else family or 'MPI'} {found[1]}"


def table(report: Report) -> Iterator[str]:
    """Write the ranks, one a line, and what they did together."""
    rows = [("RANK", "HOST", "CPU", "MAY USE", "MPI", "TO NEXT", "LATENCY", "BANDWIDTH")]
    for rank in report.ranks:
        link = rank.link
        rows.append(
            (
                _text(rank.number) or "?",
                printable(rank.host),
                _text(rank.cpu) or "?",
                printable(rank.cpus) or "?",
                printable(rank.mpi) or "?",
                "-" if link is None else str(link.to),
                "-" if link is None else duration(link.seconds),
                "-" if link is None else f"{size(int(link.bytes_per_second))}/s",
            )
        )
    if report.ranks:
        yield from columns(rows)
    done = next((rank.together for rank in report.ranks if rank.together), None)
    if done is not None:
        yield (
            f"a sum over all ranks: {duration(done.sum_seconds)}; "
            f"of {size(done.large_sum_bytes)} each: {duration(done.large_sum_seconds)}"
        )


def document(report: Report, task: str) -> dict[str, Any]:
    """Give the report for scripts. Times are seconds, bandwidths bytes a second."""
    return {
        "ok": not report.troubles,
        "troubles": list(report.troubles),
        "notes": list(report.notes),
        "task": task,
        "hosts": report.hosts,
        "ranks": [_described(rank) for rank in report.ranks],
    }


def _described(rank: Rank) -> Mapping[str, Any]:
    told = rank.model_dump(exclude={"id", "told", "unseen", "shm"})
    return {**told, "rank": rank.number, "mpi": rank.mpi}


def duration(seconds: float) -> str:
    """Write a short time with three digits: ``1.82 us``."""
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _names(names: Iterable[str]) -> str:
    """List a few of many."""
    listed = [printable(name) for name in dict.fromkeys(names)]
    more = len(listed) - _MOST_NAMED
    return ", ".join(listed[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _numbers(numbers: Sequence[int]) -> str:
    return _names(str(number) for number in numbers)
