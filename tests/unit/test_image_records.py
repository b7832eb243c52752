"""The records of fetched images, of several processes at a time."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from simagent.ports.clock import Wake
from simagent.ports.images import PullInterruptedError
from simagent.runtimes.apptainer_images import ApptainerImages
from simagent.runtimes.image_records import ImageRecord, ImageRecords

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.fixture
def records(tmp_path: Path) -> ImageRecords:
    return ImageRecords(tmp_path / "images")


def record(digest: str = A, used: float = 1.0, *, ours: bool = True) -> ImageRecord:
    return ImageRecord(refs=(), digest=digest, handle="h", size_bytes=5, used=used, ours=ours)


def test_what_was_noted_is_found(records: ImageRecords) -> None:
    assert records.all() == []
    assert records.of(A) is None
    records.note(record(), ref="x:1")
    found = records.of(A)
    assert found is not None
    assert (found.refs, found.size_bytes) == (("x:1",), 5)
    assert records.meant("x:1") == found
    assert records.meant("x:2") is None


def test_a_reference_means_one_image(records: ImageRecords) -> None:
    records.note(record(A), ref="x:1")
    records.note(record(A), ref="y:1")
    records.note(record(B, 2.0), ref="x:1")
    assert [(kept.digest, kept.refs) for kept in records.kept()] == [(A, ("y:1",)), (B, ("x:1",))]


def test_the_least_recently_used_comes_first(records: ImageRecords) -> None:
    records.note(record(A, 5.0), ref="x:1")
    records.note(record(B, 4.0), ref="y:1")
    assert [kept.digest for kept in records.kept()] == [B, A]
    records.note(record(B, 6.0), ref="y:1")
    assert [kept.digest for kept in records.kept()] == [A, B]


def test_pinned_and_whose_it_is_stay_as_they_were(records: ImageRecords) -> None:
    records.note(record(), ref="x:1", pin=True)
    records.note(record(ours=False), ref="x:1")
    assert [kept.pinned for kept in records.kept()] == [True]
    records.unpin(A)
    assert [kept.pinned for kept in records.kept()] == [False]
    records.note(record(B, ours=False), ref="y:1")
    records.note(record(B), ref="y:1")
    assert [kept.digest for kept in records.kept()] == [A], "what was here before is nobody's"


def test_a_damaged_record_is_set_aside(records: ImageRecords) -> None:
    for content in (b"", b"{}", b"[1]", b'{"refs": 1}', b"\xff"):
        records.note(record(), ref="x:1")
        (file,) = records.folder.glob("*.json")
        file.write_bytes(content)
        assert records.all() == []
        assert not file.exists()


def test_what_is_forgotten_is_gone(records: ImageRecords) -> None:
    records.note(record(), ref="x:1")
    records.forget(A)
    records.forget(A)
    records.unpin(A)
    assert records.all() == []


def test_one_at_a_time_has_its_turn(records: ImageRecords) -> None:
    inside, most = [0], [0]

    def fetch() -> None:
        with ImageRecords(records.folder).fetching("x"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            inside[0] -= 1

    threads = [threading.Thread(target=fetch) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    wake = Wake()
    wake.set()
    with (
        records.fetching("x"),
        records.fetching("y"),
        pytest.raises(PullInterruptedError),
        records.fetching("x", wake),
    ):
        pass
    with records.fetching("x", wake):
        pass


def test_an_image_that_was_asked_for_since_it_was_chosen_for_removal_stays(tmp_path: Path) -> None:
    images = ApptainerImages("apptainer", tmp_path)
    file = tmp_path / "image.sif"
    file.write_bytes(b"sif")
    kept = ImageRecord(refs=(), digest=A, handle=str(file), size_bytes=3, used=1.0)
    images._records.note(kept, ref="x:1")
    (chosen,) = images.kept()
    images._records.note(replace(kept, used=2.0), ref="x:1")  # by a task that begins with it
    assert images.remove(A, unused_since=chosen.used) == 0
    assert file.exists()
    assert images.remove(A, unused_since=2.0) == 3
    assert not file.exists()
