"""What tasks leave is removed and walked through, however they left it."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.capsules import NOBODY, as_user
from simagent.runtimes.workplace import remove_folder
from simagent.transfer.removal import remove_tree, walk
from simagent.worker.disk import used_bytes
from simagent.worker.journal import Journals

LEVELS = 3000
"""More than Python calls itself, files are open at a time, or a path has room for."""


@pytest.fixture
def left() -> Iterator[Path]:
    """A folder that any user gets to."""
    with tempfile.TemporaryDirectory(prefix="simagent-test-") as made:
        Path(made).chmod(0o777)
        yield Path(made) / "left"


def deep(folder: Path, name: str = "aa", levels: int = LEVELS) -> None:
    folder.mkdir()
    here = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=here))
    os.close(here)


def test_a_deep_tree_is_removed(left: Path) -> None:
    deep(left)
    (left / "file").touch()
    remove_tree(left)
    assert not left.exists()


def test_an_attempt_whose_journal_is_gone_keeps_no_agent_from_starting(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    deep(journals.root / "p.t.1")
    assert list(journals.all()) == []
    assert journals.empty


def test_what_a_task_has_closed_is_removed(left: Path) -> None:
    def closed() -> bool:
        (left / "a" / "b" / "c").mkdir(parents=True)
        (left / "a" / "b" / "c" / "file").touch()
        for path, mode in (("a/b/c", 0), ("a/b", 0o555), ("a", 0), ("", 0o500)):
            (left / path).chmod(mode)
        remove_tree(left)
        return left.exists()

    assert not (as_user((NOBODY, NOBODY), closed) if os.geteuid() == 0 else closed())


def test_links_lead_nowhere(tmp_path: Path) -> None:
    kept, left = tmp_path / "kept", tmp_path / "left"
    kept.mkdir()
    (kept / "file").touch()
    deep(left)
    (left / "link").symlink_to(kept)
    (left / "aa" / "link").symlink_to(kept)
    assert "file" not in {entry.name for entry in walk(left) if "link" in entry.path}
    remove_tree(left)
    assert not left.exists()
    assert (kept / "file").exists()
    left.symlink_to(kept)
    remove_tree(left)
    assert (kept / "file").exists()


def test_a_deep_tree_is_counted(left: Path) -> None:
    deep(left, levels=1500)
    (left / "file").write_bytes(b"x" * 10_000)
    used, all_of_it = used_bytes(left)
    assert used >= 10_000
    assert all_of_it
    remove_tree(left)


def test_an_image_that_is_unpacked_very_deep_ends_nothing(left: Path) -> None:
    deep(left)
    remove_folder(left)
    remove_tree(left)
    assert not left.exists()
