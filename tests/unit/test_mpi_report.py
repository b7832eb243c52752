"""What the ranks of `simagent mpi check` told is judged: each thing that is wrong has its line."""

import json
from typing import Any

import pytest

from simagent.cli.mpi_report import Rank, Report, document, judge, read_ranks, short_version, table
from simagent.mpi_probe import MARK

OPENMPI = "Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4, repo rev: v4.1.4, May 26, 2022"
TOGETHER = {
    "sum_is_right": True,
    "each_reached_each": True,
    "sum_seconds": 2e-6,
    "large_sum_seconds": 0.0012,
    "large_sum_bytes": 1 << 20,
}


def record(number: int, size: int = 2, **fields: Any) -> dict[str, Any]:
    """Make what a rank tells that met the others."""
    told = {
        "id": f"id-{number}",
        "told": [number, size],
        "rank": number,
        "size": size,
        "host": f"vm{number + 1}",
        "cpus": "0-1",
        "cpu": 0,
        "uid": 1000,
        "shm": f"{number}:1",
        "python": "/usr/bin/python3",
        "mpi4py": "4.1.2",
        "library": OPENMPI,
        "met": True,
        "link": {
            "to": (number + 1) % size,
            "seconds": 1.8e-6,
            "bytes_per_second": 2.5e9,
        },
        "together": TOGETHER,
    }
    return told | fields


def judged(
    *records: dict[str, Any],
    np: int | None = 2,
    hosts: int | None = None,
    ended: str | None = None,
    without_files: tuple[int, ...] = (),
) -> Report:
    files = [json.dumps(told) for told in records]
    lines = [f"{MARK}{text}" for text in files]
    kept = [text for number, text in enumerate(files) if number not in without_files]
    ranks, written = read_ranks(lines, kept)
    return judge(ranks, written, np=np, hosts=hosts, ended=ended)


def test_all_is_well() -> None:
    report = judged(record(0), record(1), hosts=2)
    assert report.troubles == ()
    assert report.notes == ()
    head, first, second, sums = table(report)
    assert head.split()[:4] == ["RANK", "HOST", "CPU", "MAY"]
    assert " ".join(first.split()) == "0 vm1 0 0-1 Open MPI 4.1.4 1 1.8 us 2.5 GB/s"
    assert second.split()[:2] == ["1", "vm2"]
    assert sums == "a sum over all ranks: 2 us; of 1.0 MB each: 1.2 ms"


def test_the_document_has_it_all() -> None:
    told = document(judged(record(0), record(1, uid=7)), "T")
    assert told["ok"] is False
    assert told["task"] == "T"
    assert told["hosts"] == {"vm1": 1, "vm2": 1}
    assert [rank["rank"] for rank in told["ranks"]] == [0, 1]
    assert told["ranks"][0]["link"]["seconds"] == 1.8e-6
    json.dumps(told)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([{}, {"host": "vm1"}], "2 hosts were asked for, ranks were on 1: vm1"),
        ([{}, {"uid": 1}], "user numbers differ: 1 on vm2; 1000 on vm1"),
        (
            [{}, {"library": "Open MPI v5.0.7, package"}],
            "versions of MPI differ: Open MPI 4.1.4 on vm1; Open MPI 5.0.7 on vm2",
        ),
        (
            [{"unseen": ["id-1"]}, {}],
            "the folder is not shared: what ranks wrote on vm2 is missing",
        ),
        ([{}, {"together": TOGETHER | {"sum_is_right": False}}], "a sum over all ranks is wrong"),
        ([{"together": TOGETHER | {"each_reached_each": False}}, {}], "came wrongly to vm1"),
        (
            [{"size": 1, "rank": 0}, {"size": 1, "rank": 0}],
            "2 of 2 ranks take themselves for the only one: their MPI (Open MPI 4.1.4) does not",
        ),
        (
            [{"met": False, "told": [None, None], "mpi4py": None}] * 2,
            "ranks got no variables of mpirun",
        ),
        (
            [{"met": False}, {"met": False}],
            "2 ranks were started, and did not meet the others (none met); those on vm1, vm2: is "
            "the network between the hosts open to MPI?",
        ),
    ],
)
def test_what_is_wrong_is_said(changes: list[dict[str, Any]], told: str) -> None:
    report = judged(*(record(n) | change for n, change in enumerate(changes)), hosts=2)
    (line,) = [line for line in report.troubles if told in line]
    assert line


def test_a_rank_that_told_nothing_is_named() -> None:
    report = judged(record(0, 3), record(2, 3), np=None)
    assert report.troubles == ("1 of 3 ranks are missing: 1",)


def test_a_host_whose_files_do_not_come_back_shares_no_folder() -> None:
    report = judged(record(0), record(1, met=False, mpi4py=None), without_files=(1,))
    assert "the folder is not shared: what ranks wrote on vm2 is missing" in report.troubles


def test_the_end_of_the_task_goes_first() -> None:
    assert judged(ended="the task failed: oom").troubles == ("the task failed: oom",)
    assert judged().troubles == ("no rank told anything: see the task's log",)


def test_without_mpi4py_nothing_is_measured_and_that_is_said() -> None:
    plain: dict[str, Any] = {"met": False, "mpi4py": None, "link": None, "together": None}
    report = judged(record(0, **plain), record(1, **plain, python=None))
    assert report.troubles == ()
    (note,) = report.notes
    assert "no Python for this MPI was found on vm1, vm2" in note
    assert len(list(table(report))) == 3


def test_ranks_of_a_host_that_share_no_memory_are_noted() -> None:
    report = judged(record(0, host="vm1"), record(1, host="vm1"))
    assert report.notes == ("ranks on vm1 share no memory: each has a /dev/shm of its own",)
    assert report.troubles == ()


def test_what_an_image_prints_besides_is_left_out() -> None:
    lines = ["hello", MARK + "{", MARK + '{"id": 7}', f"x {MARK}{json.dumps(record(0, 1))}"]
    ranks, written = read_ranks(lines, ["[]", "null"])
    assert [rank.id for rank in ranks] == ["id-0"]
    assert written == set()


def test_what_a_rank_told_last_counts() -> None:
    early, late = record(0, 1, met=False, rank=None), record(0, 1)
    for texts in ((early, late), (late, early)):
        ranks, _ = read_ranks([MARK + json.dumps(text) for text in texts], [])
        assert [rank.met for rank in ranks] == [True]


@pytest.mark.parametrize(
    ("library", "short"),
    [
        (OPENMPI, "Open MPI 4.1.4"),
        ("(Open MPI) 4.1.4", "Open MPI 4.1.4"),
        ("MPICH Version:      5.0.2", "MPICH 5.0.2"),
        ("MPICH Version:\t4.0.2\nMPICH Release date: none", "MPICH 4.0.2"),
        ("Intel(R) MPI Library 2021.9 for Linux* OS", "Intel(R) MPI Library 2021.9"),
        ("", ""),
    ],
)
def test_versions_are_shortened(library: str, short: str) -> None:
    assert short_version(library) == short
    assert Rank(id="x", host="h", library=library).mpi == short
