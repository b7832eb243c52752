"""Archives that mean harm, or are broken: refused by name, and nothing is written outside."""

import io
import os
import random
import stat
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from simagent.transfer.errors import InputRejectedError
from simagent.transfer.unpack import Limits, check, unpack
from simagent.transfer.zipread import ZipError, read_directory

MEBI = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "outer" / "root"
    folder.mkdir(parents=True)
    return folder


def member(name: str, data: bytes = b"data", mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x")
    info.filename = name
    info.create_system = 3
    info.external_attr = mode << 16
    info.comment = b""
    info.extra = b""
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def make(*members: tuple[zipfile.ZipInfo | str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, data in members:
            archive.writestr(member(info) if isinstance(info, str) else info, data)
    return file.getvalue()


def refuse(data: bytes, root: Path, match: str, limits: Limits | None = None) -> None:
    """Assert that an archive is refused before anything is written at all."""
    with pytest.raises(InputRejectedError, match=match):
        unpack(io.BytesIO(data), root, limits=limits or Limits())
    assert list(root.iterdir()) == []
    assert list(root.parent.iterdir()) == [root]


def link(name: str, target: str) -> tuple[zipfile.ZipInfo, bytes]:
    return member(name, mode=stat.S_IFLNK | 0o777), target.encode()


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "a/..",
        "/etc/x",
        "//x",
        "a//x",
        "./x",
        "..",
        ".",
        "",
        "..\\x",
        "a\\..\\..\\x",
        "\\x",
        "C:\\x",
        "n" * 256,
        "d/" * 1200 + "x",
    ],
)
def test_paths_that_lead_out(root: Path, name: str) -> None:
    refuse(make(("good", b"good"), (name, b"bad")), root, "path")


def test_backslashes_of_another_system(root: Path) -> None:
    info = member("a\\b")
    info.create_system = 0
    refuse(make((info, b"x")), root, "backslashes")


def test_a_backslash_is_a_character_of_a_name_here(root: Path) -> None:
    unpack(io.BytesIO(make(("a\\b", b"x"))), root)
    assert (root / "a\\b").read_bytes() == b"x"


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "..", "../x", "a/../../x", "a/..", "", "../outer/root", "x" * 5000]
)
def test_links_that_lead_out(root: Path, target: str) -> None:
    refuse(make(("good", b"good"), link("link", target)), root, "link")


def test_a_link_may_go_up_inside(root: Path) -> None:
    unpack(io.BytesIO(make(("data/x", b"x"), link("runs/1/in", "../../data/x"))), root)
    assert (root / "runs/1/in").read_bytes() == b"x"


def test_writing_through_a_link_of_the_archive(root: Path, tmp_path: Path) -> None:
    refuse(make(link("d", "sub"), ("sub/y", b""), ("d/x", b"bad")), root, "both as a folder")


def test_writing_through_a_link_that_is_there(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "d").symlink_to(outside)
    with pytest.raises(InputRejectedError, match="in the way"):
        unpack(io.BytesIO(make(("d/x", b"bad"))), root)
    with pytest.raises(InputRejectedError, match="in the way"):
        unpack(io.BytesIO(make(("x", b"bad"))), root, destination="d/deeper")
    assert list(outside.iterdir()) == []


def test_a_link_in_a_files_place_is_replaced_not_followed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    (root / "x").symlink_to(outside)
    unpack(io.BytesIO(make(("x", b"mine"))), root)
    assert outside.read_bytes() == b"precious"
    assert (root / "x").read_bytes() == b"mine"
    assert not (root / "x").is_symlink()


def test_links_through_links_stay_inside(root: Path) -> None:
    # Lexically loop/loop/.. is fine; followed, it would climb out of the root.
    refuse(make(link("loop", "."), link("b", "loop/loop/../..")), root, "link")


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_devices(root: Path, kind: int) -> None:
    refuse(make((member("null", mode=kind | 0o666), b"")), root, "device")


def test_set_uid_is_dropped(root: Path) -> None:
    info = member("tool", mode=stat.S_IFREG | 0o6755)
    unpack(io.BytesIO(make((info, b"#!/bin/sh\n"))), root)
    assert stat.S_IMODE((root / "tool").stat().st_mode) == 0o755


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "names",
    [("x", "x"), ("x", "x/y"), ("x/y", "x"), ("x", "x/"), ("a/b/c", "a/b"), ("a/b", "a/b/c/d")],
)
def test_names_that_fight(root: Path, names: tuple[str, str]) -> None:
    refuse(make((names[0], b""), (names[1], b"")), root, "is in it")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_folder_may_be_named_twice(root: Path) -> None:
    unpack(io.BytesIO(make(("d/", b""), ("d/", b""), ("d/x", b"x"))), root)
    assert (root / "d/x").read_bytes() == b"x"


def test_an_encrypted_member(root: Path) -> None:
    data = bytearray(make(("x", b"x" * 100)))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    refuse(bytes(data), root, "encrypted")


def test_an_unknown_method(root: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x", "x" * 100)
    refuse(file.getvalue(), root, "method 14")


def test_too_many_members(root: Path) -> None:
    data = make(*((str(number), b"") for number in range(11)))
    refuse(data, root, "11 members", Limits(max_files=10))


def test_folders_that_are_only_gone_through_count(root: Path) -> None:
    data = make(("a/b/c/x", b""), ("a/b/y", b""), ("a/d/", b""), ("a-/z", b""), ("a/d/e/z", b""))
    assert unpack(io.BytesIO(data), root, limits=Limits(max_files=10)).files == 4
    with pytest.raises(InputRejectedError, match="9 files and folders"):
        unpack(io.BytesIO(data), root, limits=Limits(max_files=9))


def test_what_paths_go_through_takes_no_memory(root: Path) -> None:
    data = make(*((f"{number}/{'a' * 250}/" + "b/" * 90 + "x", b"") for number in range(2000)))
    directory = read_directory(io.BytesIO(data), max_files=2000)
    tracemalloc.start()
    try:
        check(directory, Limits())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * MEBI, "not what all the folders' paths would take: 80 MB"


def test_a_directory_that_is_too_large(root: Path) -> None:
    data = make(*((str(number), b"") for number in range(100)))
    with pytest.raises(ZipError, match="directory has"):
        read_directory(io.BytesIO(data), max_files=100, max_bytes=1000)


def test_too_large(root: Path) -> None:
    refuse(make(("x", bytes(2 * MEBI))), root, "unpacks to", Limits(max_bytes=MEBI))


def test_a_bomb_by_its_ratio(root: Path) -> None:
    limits = Limits(ratio_from=MEBI, max_ratio=500)
    refuse(make(("x", bytes(20 * MEBI))), root, "times its size", limits)


def lying(data: bytes, size: int, *, crc: int | None = None) -> bytes:
    """Let the one member of an archive declare another size."""
    changed = bytearray(data)
    at = changed.index(b"PK\x01\x02")
    struct.pack_into("<I", changed, at + 24, size)
    struct.pack_into("<I", changed, 22, size)
    if crc is not None:
        struct.pack_into("<I", changed, at + 16, crc)
        struct.pack_into("<I", changed, 14, crc)
    return bytes(changed)


def test_a_bomb_that_lies_about_its_size(root: Path) -> None:
    data = lying(make(("x", bytes(40 * MEBI))), 100)
    with pytest.raises(InputRejectedError, match="more than the 100 bytes"):
        unpack(io.BytesIO(data), root)
    assert sum(path.stat().st_size for path in root.rglob("*")) <= MEBI


def test_a_size_that_is_too_large(root: Path) -> None:
    with pytest.raises(InputRejectedError, match="damaged"):
        unpack(io.BytesIO(lying(make(("x", b"x" * 50)), 60)), root)


def test_a_wrong_checksum(root: Path) -> None:
    with pytest.raises(InputRejectedError, match="damaged"):
        unpack(io.BytesIO(lying(make(("x", b"x" * 50)), 50, crc=1)), root)


def test_a_member_used_twice(root: Path) -> None:
    """The overlap bomb: many lines of the directory that share one member's contents."""
    data = bytearray(make(("x", bytes(MEBI))))
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    header = bytes(data[start:end])
    other = bytearray(header)
    other[46] = ord("y")
    directory = header + bytes(other)
    record = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 2, 2, len(directory), start, 0)
    refuse(bytes(data[:start]) + directory + record, root, "overlaps")


def test_a_member_inside_another(root: Path) -> None:
    """A stored member whose contents are another's header and contents."""
    inner = make(("y", b"inner"))
    start = inner.index(b"PK\x01\x02")
    outer_info = member("x")
    outer_info.compress_type = zipfile.ZIP_STORED
    outer = make((outer_info, inner[:start]))
    header = bytearray(inner[start : inner.index(b"PK\x05\x06")])
    struct.pack_into("<I", header, 42, 31)  # where the inner header lies: after the outer one
    at = outer.index(b"PK\x01\x02")
    directory = outer[at : outer.index(b"PK\x05\x06")] + bytes(header)
    record = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 2, 2, len(directory), at, 0)
    refuse(outer[:at] + directory + record, root, "overlaps")


def test_headers_that_differ(root: Path) -> None:
    data = bytearray(make(("safe", b"x")))
    data[30:34] = b"evil"
    with pytest.raises(InputRejectedError, match="two ways"):
        unpack(io.BytesIO(bytes(data)), root)
    assert not (root / "evil").exists()


def test_cut_off_anywhere(root: Path) -> None:
    data = make(("x", os.urandom(5000)), ("y", b"y" * 5000))
    for length in range(0, len(data), 97):
        with pytest.raises(InputRejectedError):
            unpack(io.BytesIO(data[:length]), root)


def test_no_archive_at_all(root: Path) -> None:
    refuse(b"", root, "no zip archive")
    refuse(b"<html>not found</html>" * 100, root, "no zip archive")


@pytest.mark.parametrize("seed", range(4))
def test_noise_never_surprises(root: Path, tmp_path: Path, seed: int) -> None:
    """Whatever is changed: refused, or unpacked inside."""
    good = make(
        ("a/x", b"text " * 500), ("b", os.urandom(800)), ("e/", b""), link("a/l", "../b"),
    )  # fmt: skip
    rng = random.Random(seed)
    for number in range(80):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        target = root / str(number)
        target.mkdir()
        try:
            unpack(io.BytesIO(bytes(data)), target, limits=Limits(max_bytes=MEBI, max_files=50))
        except InputRejectedError:
            continue
    assert [path.name for path in tmp_path.iterdir()] == ["outer"]
    assert list(root.parent.iterdir()) == [root]


def test_later_wins_over_what_is_there(root: Path) -> None:
    unpack(io.BytesIO(make(("x", b"long enough"), link("l", "x"))), root)
    unpack(io.BytesIO(make(("x", b"new"), ("l", b"a file now"))), root)
    assert (root / "x").read_bytes() == b"new"
    assert (root / "l").read_bytes() == b"a file now"


@pytest.mark.parametrize("name", ["d", "d/x/y"])
def test_a_file_and_a_folder_do_not_replace_each_other(root: Path, name: str) -> None:
    (root / "d").mkdir()
    (root / "d" / "x").write_bytes(b"x")
    with pytest.raises(InputRejectedError, match="in the way"):
        unpack(io.BytesIO(make((name, b"new"))), root)
    assert (root / "d" / "x").read_bytes() == b"x"


def test_a_destination(root: Path) -> None:
    unpack(io.BytesIO(make(("a/x", b"x"), link("a/l", "x"))), root, destination="./in/1/")
    assert (root / "in/1/a/l").read_bytes() == b"x"


@pytest.mark.parametrize("size", [MEBI - 1, MEBI, MEBI + 1, 5 * MEBI])
def test_sizes_around_a_piece(root: Path, size: int) -> None:
    unpack(io.BytesIO(make(("x", bytes(size)))), root)
    assert (root / "x").stat().st_size == size


def test_progress_and_stats(root: Path) -> None:
    seen: list[int] = []
    count: Callable[[int], None] = seen.append
    stats = unpack(io.BytesIO(make(("x", b"x" * 10), ("y", b"y" * 5))), root, on_progress=count)
    assert stats == (2, 15)
    assert sum(seen) == 15
    assert zlib.crc32((root / "x").read_bytes()) == zlib.crc32(b"x" * 10)
