"""Packing and unpacking again: nothing is lost, whatever the files and whoever reads them."""

import errno
import hashlib
import io
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simagent.transfer import archive as archive_module
from simagent.transfer.archive import BLOCK, SMALL, Archive
from simagent.transfer.batch import CHANGED, UNREADABLE, VANISHED, Member, why_unread
from simagent.transfer.tree import scan
from simagent.transfer.unpack import unpack
from simagent.transfer.zipread import read_directory


def members(root: Path) -> list[Member]:
    return [
        Member(f.path, str(root), f.path, f.kind, f.status.st_size if f.kind == "file" else 0)
        for f in scan(root)
        if f.kind != "folder" or f.empty
    ]


def pack(root: Path, threads: int = 2) -> tuple[bytes, Archive]:
    archive = Archive(members(root), threads=threads)
    return b"".join(archive), archive


def look(root: Path) -> dict[str, tuple[object, ...]]:
    """Describe a tree: what of it must survive."""
    seen: dict[str, tuple[object, ...]] = {}
    for path, kind, status, empty in scan(root):
        full = os.path.join(root, path)
        if kind == "link":
            seen[path] = ("link", os.readlink(full))
        elif kind == "file":
            data = Path(full).read_bytes()
            seen[path] = ("file", status.st_mode, int(status.st_mtime), data)
        elif empty:
            seen[path] = ("folder", status.st_mode)
    return seen


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def round_trip(root: Path, target: Path, threads: int = 2) -> Archive:
    data, archive = pack(root, threads)
    assert archive.notes == []
    assert archive.size == len(data)
    assert archive.sha256 == hashlib.sha256(data).hexdigest()
    target.mkdir()
    unpack(io.BytesIO(data), target)
    assert look(target) == look(root)
    return archive


names = st.binary(min_size=1, max_size=20).filter(
    lambda b: b"/" not in b and b"\0" not in b and b"\\" not in b and b not in (b".", b"..")
)
contents = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda b, n: b * n, st.binary(min_size=1, max_size=50), st.integers(0, 8000)),
    st.integers(1, 3 * SMALL).map(os.urandom),
)
leaf = st.one_of(
    st.tuples(st.just("file"), contents, st.integers(0o400, 0o777), st.integers(0, 2**31 - 1)),
    st.tuples(st.just("link"), names),
)
trees: st.SearchStrategy[object] = st.recursive(
    leaf, lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=12
)


def build(path: bytes, node: object) -> None:
    if isinstance(node, dict):
        os.mkdir(path)
        for name, inner in node.items():
            build(path + b"/" + name, inner)
        return
    assert isinstance(node, tuple)
    if node[0] == "link":
        os.symlink(node[1], path)
        return
    Path(os.fsdecode(path)).write_bytes(node[1])
    os.chmod(path, node[2] | 0o600)
    os.utime(path, (node[3], node[3]))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=st.dictionaries(names, trees, max_size=6))
def test_any_tree_survives(tree: dict[bytes, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        build(os.fsencode(folder) + b"/root", tree)
        round_trip(Path(folder, "root"), Path(folder, "target"))


@pytest.mark.parametrize(
    "size", [0, 1, SMALL - 1, SMALL, SMALL + 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17]
)
@pytest.mark.parametrize("kind", ["random", "text", "mixed"])
def test_sizes_around_the_blocks(root: Path, tmp_path: Path, size: int, kind: str) -> None:
    text = (b"0.125, 17.5, 3.25\n" * (size // 18 + 1))[:size]
    noise = os.urandom(size)
    data = {"random": noise, "text": text, "mixed": noise[: size // 2] + text[size // 2 :]}[kind]
    (root / "x").write_bytes(data)
    (entry,) = round_trip(root, tmp_path / "target").entries
    assert entry.sha256 == hashlib.sha256(data).hexdigest()
    assert entry.packed <= size + 16 + size // 1000
    if kind == "text" and size > SMALL:
        assert entry.packed < size / 5


def test_others_can_read_it(root: Path, tmp_path: Path) -> None:
    (root / "big").write_bytes(os.urandom(BLOCK + 5) + b"text " * BLOCK)
    (root / "folder").mkdir()
    (root / "folder" / "smäll").write_text("x" * 500)
    (root / "tool").write_text("#!/bin/sh\n")
    (root / "tool").chmod(0o755)
    (root / "empty").mkdir()
    (root / "link").symlink_to("folder/smäll")
    data, _ = pack(root)
    with zipfile.ZipFile(io.BytesIO(data)) as other:
        assert other.testzip() is None
        assert sorted(other.namelist()) == ["big", "empty/", "folder/smäll", "link", "tool"]
        assert other.read("big") == (root / "big").read_bytes()
        assert stat.S_IMODE(other.getinfo("tool").external_attr >> 16) == 0o755
    if (unzip := shutil.which("unzip")) is not None:
        (tmp_path / "a.zip").write_bytes(data)
        target = tmp_path / "target"
        subprocess.run([unzip, "-q", tmp_path / "a.zip", "-d", target], check=True)
        assert look(target) == look(root)


def test_ours_reads_what_others_write(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as other:
        other.writestr("a/b.txt", "b" * 1000)
        other.writestr(zipfile.ZipInfo("stored"), b"s")
        other.mkdir("empty")
        other.comment = b"a comment"
    path.write_bytes(b"#!/bin/sh\nexit 1\n" + path.read_bytes())  # as self-extracting ones begin
    (tmp_path / "target").mkdir()
    stats = unpack(path, tmp_path / "target")
    assert (tmp_path / "target/a/b.txt").read_text() == "b" * 1000
    assert (tmp_path / "target/empty").is_dir()
    assert stats == (2, 1001)


def test_many_small_files_by_helpers(root: Path, tmp_path: Path) -> None:
    for number in range(2200):
        (root / f"{number % 10}").mkdir(exist_ok=True)
        (root / f"{number % 10}" / f"{number}.csv").write_text(f"{number},{number / 7}\n" * 20)
    round_trip(root, tmp_path / "target", threads=3)


def test_a_helper_that_cannot_start_changes_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2200):
        (root / str(number)).write_text(str(number))
    monkeypatch.setattr("sys.executable", "/bin/false")
    round_trip(root, tmp_path / "target", threads=3)


def test_packing_beside_commands_makes_the_same_archive(root: Path) -> None:
    (root / "large").write_bytes(os.urandom(3 * BLOCK) + bytes(2 * BLOCK))
    for number in range(300):
        (root / f"small-{number}").write_text("x" * number)
    whole, _ = pack(root, threads=4)
    changing = iter([False, True] * 10_000)
    for yields in (lambda: True, lambda: next(changing)):
        archive = Archive(members(root), threads=4, yields=yields)
        assert b"".join(archive) == whole


def test_deep_trees(root: Path, tmp_path: Path) -> None:
    depth = 300
    folder = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("x" * 20, dir_fd=folder)
        deeper = os.open("x" * 20, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = deeper
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.close(folder)
    data, archive = pack(root)
    assert len(archive.entries[0].path) > os.pathconf(root, "PC_PATH_MAX")
    (tmp_path / "target").mkdir()
    unpack(io.BytesIO(data), tmp_path / "target")
    assert [f.path for f in scan(tmp_path / "target")] == [f.path for f in scan(root)]


def test_zip64_where_there_are_many(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if 100 were 65,535.
    monkeypatch.setattr("simagent.transfer.zipformat._MAX16", 100)
    (root / "x").write_bytes(b"x")
    one = members(root)[0]
    many = [one._replace(path=str(number)) for number in range(1000)]
    data = b"".join(Archive(many, threads=1))
    assert len(zipfile.ZipFile(io.BytesIO(data)).namelist()) == 1000
    assert len(read_directory(io.BytesIO(data), max_files=1000).entries) == 1000


def test_zip64_where_it_is_large(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if 2 MiB were 4 GiB: the fields are the same.
    monkeypatch.setattr("simagent.transfer.zipformat.ZIP64_FROM", 2 << 20)
    monkeypatch.setattr(archive_module, "ZIP64_FROM", 2 << 20)
    (root / "a").write_bytes(os.urandom(3 << 20))
    (root / "b").write_bytes(b"small")
    (root / "c").write_bytes(b"text " * (1 << 20))
    round_trip(root, tmp_path / "target")
    data, _ = pack(root)
    with zipfile.ZipFile(io.BytesIO(data)) as other:
        assert other.testzip() is None


def note_after(root: Path, change: str) -> tuple[list[tuple[str, str]], dict[str, bytes]]:
    """Change a file when it was selected, and give the notes and what was packed."""
    selected = members(root)
    path = root / "x"
    if change == "grow":
        with path.open("ab") as file:
            file.write(b"more")
    elif change == "shrink":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.unlink()
    if change == "fifo":
        os.mkfifo(path)
    elif change == "link":
        path.symlink_to("/etc/passwd")
    elif change == "socket":
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(os.path.relpath(path))
    elif change == "folder":
        path.mkdir()
    archive = Archive(selected, threads=2)
    with zipfile.ZipFile(io.BytesIO(b"".join(archive))) as other:
        assert other.testzip() is None
        return archive.notes, {name: other.read(name) for name in other.namelist()}


@pytest.mark.parametrize("size", [1000, 3 * BLOCK])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("grow", CHANGED),
        ("shrink", CHANGED),
        ("vanish", VANISHED),
        ("fifo", CHANGED),
        ("link", CHANGED),
        ("folder", CHANGED),
        ("socket", CHANGED),
    ],
)
def test_a_file_that_changes_is_named(root: Path, size: int, change: str, why: str) -> None:
    before = os.urandom(size)
    (root / "x").write_bytes(before)
    (root / "y").write_bytes(b"y")
    notes, packed = note_after(root, change)
    assert notes == [("x", why)]
    assert packed.pop("y") == b"y"
    expected = {"grow": before, "shrink": before[: size // 2]}
    assert packed == ({"x": expected[change]} if change in expected else {})


def test_a_file_that_shrinks_while_it_is_read(root: Path) -> None:
    data = os.urandom(16 * BLOCK)
    (root / "x").write_bytes(data)
    archive = Archive(members(root), threads=1)
    chunks: Iterator[bytes] = iter(archive)
    packed = [next(chunks), next(chunks)]
    os.truncate(root / "x", 8 * BLOCK + 5)
    packed += chunks
    assert archive.notes == [("x", CHANGED)]
    with zipfile.ZipFile(io.BytesIO(b"".join(packed))) as other:
        found = other.read("x")
    assert data.startswith(found)
    assert len(found) < len(data)
    assert archive.entries[0].sha256 == hashlib.sha256(found).hexdigest()


def test_an_unreadable_file_is_named() -> None:
    assert why_unread(PermissionError(errno.EACCES, "Permission denied")) == UNREADABLE
    assert why_unread(OSError(errno.EIO, "Input/output error")).startswith(UNREADABLE)


def test_a_folder_swapped_for_a_link_is_not_followed(root: Path, tmp_path: Path) -> None:
    (root / "sub").mkdir()
    (root / "sub" / "x").write_bytes(b"mine")
    selected = members(root)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "x").write_bytes(b"not mine")
    shutil.rmtree(root / "sub")
    (root / "sub").symlink_to(secret)
    archive = Archive(selected, threads=1)
    assert b"not mine" not in b"".join(archive)
    assert archive.notes == [("sub/x", CHANGED)]


def test_an_abandoned_archive_leaves_nothing_open(root: Path) -> None:
    (root / "x").write_bytes(os.urandom(12 * BLOCK))
    before = len(os.listdir("/proc/self/fd"))
    chunks = iter(Archive(members(root), threads=2))
    next(chunks)
    del chunks
    assert len(os.listdir("/proc/self/fd")) == before
