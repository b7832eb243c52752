"""The order that an agent keeps among images and containers, and what it never touches."""

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
from structlog.testing import capture_logs

from fakes.clock import FakeClock
from fakes.containers import FakeContainers, FakeImages
from simagent.domain.events import Event
from simagent.domain.reasons import Reason
from simagent.ports.clock import Wake
from simagent.ports.images import ImageError, KeptImage
from simagent.ports.runtime import RuntimeFailedError
from simagent.worker.caretaker import FRESH, Caretaker, ImageMarks
from simagent.worker.journal import Journals

SIZE = 10


@dataclass
class Shelf(FakeImages):
    """Images of ten percent of a disk each, by their names."""

    folder: Path = Path()
    names: list[str] = field(default_factory=list)
    pinned: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()
    asked_for: tuple[str, ...] = ()
    """Those that a task asks for just as they are about to be removed."""
    used: float = 0.0

    def disk(self) -> Path:
        return self.folder

    def kept(self) -> list[KeptImage]:
        return [
            KeptImage(
                refs=(name,),
                digest=name,
                handle=f"handle of {name}",
                size_bytes=SIZE,
                used=self.used,
                pinned=name in self.pinned,
            )
            for name in self.names
        ]

    def remove(self, digest: str, *, unused_since: float | None = None) -> int:
        assert unused_since == self.used
        if digest in self.stuck:
            raise ImageError(Reason.RUNTIME_FAILED, "a container uses it")
        if digest in self.asked_for:
            return 0
        self.names.remove(digest)
        return SIZE


class Reaped(FakeContainers):
    """Containers of attempts, by the folders of their steps."""

    def __init__(self, *folders: Path) -> None:
        super().__init__()
        self.folders = list(folders)
        self.error: RuntimeFailedError | None = None

    def reap(self, known: Callable[[Path], bool]) -> int:
        if self.error is not None:
            raise self.error
        before = len(self.folders)
        self.folders = [folder for folder in self.folders if known(folder)]
        return before - len(self.folders)


class Fixture:
    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.journals = Journals(folder)
        self.images = Shelf(folder=folder, names=list("abcde"), used=self.clock.wall() - 2 * FRESH)
        self.runtime = Reaped()
        self.stop = Wake()

    def caretaker(self, *prefetch: str, high: float = 0.85, **changes: Any) -> Caretaker:
        return Caretaker(
            clock=self.clock,
            journals=self.journals,
            runtimes={"docker": self.runtime},
            images={"docker": self.images},
            marks=ImageMarks(high=high, low=0.7),
            prefetch=prefetch,
            containers=("docker", "apptainer"),
            used=lambda _: 0.5 + len(self.images.names) / 10,
            **changes,
        )

    def attempt(self, name: str, journal: str = "{}") -> Path:
        folder = self.journals.root / name
        folder.mkdir()
        (folder / "journal.json").write_text(journal)
        return folder / "steps"


@pytest.fixture
def it(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path)


def test_images_make_room_the_least_recently_used_first(it: Fixture) -> None:
    it.caretaker().look(it.stop)
    assert it.images.names == ["d", "e"]


def test_images_stay_where_there_is_room(it: Fixture) -> None:
    it.caretaker(high=1.0).look(it.stop)
    assert it.images.names == list("abcde")


def test_what_is_pinned_or_in_use_stays(it: Fixture) -> None:
    it.images.pinned = ("a",)
    it.images.stuck = ("c",)
    entry = (
        '{"project": "p", "task": "t", "group": "g", "epoch": 1, "agent": "a", "incarnation": "i",'
        ' "boot_id": "b", "image": "handle of b",'
        ' "attempt": {"epoch": 1, "agent": "a", "version": "1", "started": 1}}'
    )
    it.attempt("p.t.1", entry)
    it.caretaker().look(it.stop)
    assert it.images.names == list("abc")


def test_images_stay_while_it_cannot_be_read_which_are_in_use(
    it: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    it.attempt("p.t.1", '{"image": "handle of a"}')
    it.attempt("p.t.2", "damaged")

    def short(_path: Path) -> NoReturn:
        raise OSError(errno.ENFILE, "Too many open files in system")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", short)
        it.caretaker().look(it.stop)
    assert it.images.names == list("abcde")
    it.caretaker().look(it.stop)
    assert it.images.names == ["a", "e"]


def test_what_is_asked_for_meanwhile_stays_and_is_not_told_as_removed(it: Fixture) -> None:
    it.images.asked_for = ("a",)
    with capture_logs() as logs:
        it.caretaker().look(it.stop)
    assert it.images.names == ["a", "e"]
    removed = [line["digest"] for line in logs if line["event"] == Event.IMAGE_REMOVED]
    assert removed == ["b", "c", "d"]


def test_what_was_just_used_stays(it: Fixture) -> None:
    """Its task may not have written down yet that it uses it."""
    it.images.used = it.clock.wall() - FRESH / 2
    it.caretaker().look(it.stop)
    assert it.images.names == list("abcde")


def test_images_make_room_where_no_task_is_taken_for_lack_of_it(it: Fixture) -> None:
    """On a small disk, or with much to be kept free, that is long before the high mark."""
    caretaker = it.caretaker(high=1.0, min_free=30, free=lambda _: 60 - SIZE * len(it.images.names))
    caretaker.look(it.stop)
    assert it.images.names == ["d", "e"]


def test_a_disk_that_fails_ends_nothing(it: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    for owner, name in ((it.images, "ensure"), (it.images, "remove"), (it.runtime, "reap")):
        monkeypatch.setattr(owner, name, fail)
    caretaker = it.caretaker("debian:1")
    caretaker.look(it.stop)
    monkeypatch.setattr(it.images, "kept", fail)
    caretaker.look(it.stop)
    monkeypatch.undo()
    caretaker.look(it.stop)
    assert len(it.images.fetched) == 1
    assert it.images.names == ["d", "e"]


def test_images_on_a_disk_that_is_not_to_be_seen_stay(it: Fixture) -> None:
    it.images.disk = lambda: None  # type: ignore[method-assign,assignment,return-value]
    it.caretaker().look(it.stop)
    assert it.images.names == list("abcde")


def test_containers_of_no_attempt_are_removed(it: Fixture) -> None:
    known, gone = it.attempt("p.t.1"), it.journals.root / "p.t.2" / "steps"
    it.runtime.folders = [known, gone]
    it.caretaker().look(it.stop)
    assert it.runtime.folders == [known]


def test_an_engine_that_is_away_keeps_nothing_else_from_order(it: Fixture) -> None:
    it.runtime.error = RuntimeFailedError(Reason.RUNTIME_FAILED, "no answer")
    it.caretaker().look(it.stop)
    assert it.images.names == ["d", "e"]


def test_containers_that_were_left_while_the_engine_was_away_go_soon_after(it: Fixture) -> None:
    it.runtime.folders = [it.journals.root / "p.t.1" / "steps"]
    it.runtime.error = RuntimeFailedError(Reason.RUNTIME_FAILED, "no answer")
    it.clock.after(20.0, lambda: setattr(it.runtime, "error", None))
    it.clock.after(60.0, it.stop.set)
    it.caretaker().run(it.stop)
    assert it.runtime.folders == []


def test_images_are_prefetched_once_and_stay(it: Fixture) -> None:
    caretaker = it.caretaker("debian:1", "alpine")
    away = ImageError(Reason.IMAGE_PULL, "no answer", retryable=True)
    it.images.errors = [away]
    assert not caretaker.settled
    assert it.caretaker().settled
    caretaker.look(it.stop)
    assert caretaker.settled, "each was tried"
    assert it.images.fetched == ["docker://docker.io/library/alpine:latest"]
    caretaker.look(it.stop)
    caretaker.look(it.stop)
    assert it.images.fetched[1:] == ["docker://docker.io/library/debian:1"]
    assert it.images.pins == set(it.images.fetched)


def test_an_image_that_does_not_exist_is_not_asked_for_again(it: Fixture) -> None:
    caretaker = it.caretaker("debian:1")
    it.images.errors = [ImageError(Reason.IMAGE_NOT_FOUND, "no such image")]
    caretaker.look(it.stop)
    caretaker.look(it.stop)
    assert it.images.fetched == []


def test_prefetching_waits_for_the_engine(it: Fixture) -> None:
    it.runtime.broken = "not started yet"
    caretaker = it.caretaker("debian:1")
    caretaker.look(it.stop)
    assert it.images.fetched == []
    it.runtime.broken = None
    caretaker.look(it.stop)
    assert len(it.images.fetched) == 1
