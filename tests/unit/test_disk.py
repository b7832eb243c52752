"""What is kept back of a disk, and what logs give back to it."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fakes.disks import fill, plain_disk, small_disk
from simagent.domain.quantities import size_text
from simagent.domain.spec import Resources
from simagent.domain.state import Attempt
from simagent.telemetry.spool import KEPT_END, Spool, allot
from simagent.worker.capacity import lacking, short_of_space
from simagent.worker.disk import Reserve, free_bytes, on_same_disk, used_bytes
from simagent.worker.journal import Entry, Journals

MIB = 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as folder:
        yield folder


def entry() -> Entry:
    attempt = Attempt(epoch=1, agent="a", version="1", machine={}, started=1.0)
    return Entry(
        project="p",
        task="T1",
        group="g",
        epoch=1,
        agent="a",
        incarnation="i",
        boot_id="b",
        attempt=attempt,
    )


def test_the_reserve_is_given_up_piece_by_piece_and_made_again(disk: Path) -> None:
    reserve = Reserve(disk)
    whole = free_bytes(disk)
    reserve.fill()
    left = free_bytes(disk)
    assert 7 * MIB < whole - left < 9 * MIB
    reserve.fill()
    assert free_bytes(disk) == left
    freed = []
    while reserve.give_up():
        freed.append(free_bytes(disk) - left)
    assert len(freed) == 5
    assert freed[0] == 4 * MIB
    assert freed[-1] == 8 * MIB
    reserve.fill()
    assert free_bytes(disk) == left


def test_no_reserve_is_made_of_the_last_space(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mib=14) as disk:
        reserve = Reserve(disk)
        reserve.fill()
        assert not reserve.give_up()


def test_the_reserve_is_kept_while_there_is_space(disk: Path) -> None:
    reserve = Reserve(disk)
    reserve.fill()
    assert not reserve.give_up_if_full()
    fill(disk)
    assert reserve.give_up_if_full()
    assert not reserve.give_up_if_full()  # what was freed is free
    (disk / "record").write_bytes(bytes(MIB))


def test_the_reserve_has_inodes_too(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", inodes=100) as disk:
        reserve = Reserve(disk)
        reserve.fill()
        with suppress(OSError):
            for number in range(100):
                (disk / str(number)).touch()
        assert reserve.give_up_if_full()
        (disk / "record").touch()


def test_a_journal_is_written_on_a_full_disk(disk: Path) -> None:
    journals = Journals(disk)
    journals.reserve.fill()
    journal = journals.create(entry())
    for number in range(1, 6):  # however often it is filled again: as often as there is a piece
        fill(disk).rename(disk / f"ballast-{number}")
        journal.write(incarnation=f"i{number}" * 2000)
    (found,) = Journals(disk).all()
    assert found.entry.incarnation == "i5" * 2000


def test_no_journal_is_begun_on_a_full_disk(disk: Path) -> None:
    journals = Journals(disk)
    journals.reserve.fill()
    fill(disk)
    with pytest.raises(OSError, match="space"):
        journals.create(entry())
    assert journals.empty
    assert journals.reserve.give_up()


def test_files_are_counted_as_the_disk_counts_them(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "file").write_bytes(bytes(MIB))
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1000 * MIB)
    used, all_of_it = used_bytes(tmp_path)
    assert all_of_it
    assert MIB <= used < 2 * MIB


def test_a_disk_that_does_not_tell_what_is_free_has_enough(tmp_path: Path) -> None:
    with plain_disk(tmp_path / "plain") as folder:
        assert free_bytes(folder) > 10**18


def test_disks_are_told_apart(tmp_path: Path, disk: Path) -> None:
    assert on_same_disk(tmp_path / "not" / "there", tmp_path)
    assert not on_same_disk(disk / "not" / "there", tmp_path)


def test_a_task_is_refused_while_too_little_is_free(tmp_path: Path) -> None:
    there = tmp_path / "state"
    assert short_of_space(there, 1) is None
    why = short_of_space(there, 10**18)
    assert why is not None
    assert f"are free in {there}, less than min_free (" in why


def test_what_is_kept_free_is_not_there_for_tasks(tmp_path: Path) -> None:
    asked = Resources(disk=MIB)
    assert lacking(asked, tmp_path, 1) is None
    assert lacking(asked, tmp_path, 10**18) == (
        "resources.disk: 1.0 MiB are asked for, 0 bytes are free"
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1536, "1.5 KiB"), (12 * MIB, "12.0 MiB"), (3 * 2**40, "3,072.0 GiB")],
)
def test_sizes_are_written_for_people(count: int, text: str) -> None:
    assert size_text(count) == text


# --- Logs ---------------------------------------------------------------------------------------


def on_disk(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_a_log_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    spool = Spool(path, 100_000)
    assert spool.trim() == 0  # it is not there yet
    path.write_bytes(b"a" * 100_000)
    assert spool.trim() == 0
    with path.open("ab") as file:
        for _ in range(8):
            file.write(b"b" * 4 * MIB)
            file.flush()
            spool.trim()
            assert on_disk(path) < 3 * MIB
        file.write(b"c")
    data = path.read_bytes()
    assert len(data) == 100_000 + 32 * MIB + 1
    assert data[:100_000] == b"a" * 100_000
    assert data[-KEPT_END:] == b"b" * (KEPT_END - 1) + b"c"
    assert data[MIB] == 0


def test_a_log_with_space_of_its_own_is_written_on_a_full_disk(disk: Path) -> None:
    path = disk / "stderr"
    allot(path, 2**16)
    assert path.read_bytes() == b""
    fill(disk)
    with path.open("ab", buffering=0) as file:
        assert file.write(b"x" * 2**16) == 2**16
        with pytest.raises(OSError, match="space"):
            file.write(b"y")


def test_a_later_agent_goes_on_with_a_log(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    path.write_bytes(b"a" * 8 * MIB)
    assert Spool(path, 1000).trim() == 7 * MIB - 1000
    assert Spool(path, 1000).trim() == 7 * MIB - 1000
    assert path.read_bytes()[:1000] == b"a" * 1000


def test_a_log_that_is_begun_anew_is_trimmed_anew(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    spool = Spool(path, 1000)
    path.write_bytes(b"a" * 8 * MIB)
    spool.trim()
    path.write_bytes(b"b" * 1000)
    assert spool.trim() == 0
    path.write_bytes(b"b" * 8 * MIB)
    assert spool.trim() == 7 * MIB - 1000
    assert path.read_bytes()[:1000] == b"b" * 1000


def test_nothing_else_is_hurt_that_lies_in_a_logs_place(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"a" * 8 * MIB)
    path = tmp_path / "stdout"
    path.symlink_to(other)
    assert Spool(path, 0).trim() == 0
    path.unlink()
    path.hardlink_to(other)
    assert Spool(path, 0).trim() == 0
    assert other.read_bytes() == b"a" * 8 * MIB
