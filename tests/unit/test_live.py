"""Live files: what is asked and answered, and how an agent serves it."""

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.clock import FakeClock
from fakes.store import MemoryStore
from simagent.domain.keys import TaskKeys
from simagent.domain.live import (
    MAX_DATA,
    MAX_NAMES,
    MAX_REQUEST,
    Answer,
    Item,
    Place,
    Request,
    last_lines,
    parse_answer,
    parse_request,
    task_path,
)
from simagent.worker.live import LiveFiles

TASK = TaskKeys("default", "T1")


# --- What is asked and answered -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path"),
    [("", ""), (".", ""), ("a", "a"), ("./a//b/", "a/b"), ("..a/b..", "..a/b..")],
)
def test_a_path_is_written_plainly(text: str, path: str) -> None:
    assert task_path(text) == path


@pytest.mark.parametrize("text", ["/", "/a", "..", "a/../b", "a/..", "../a", "a\0b", "a/" * 4000])
def test_a_path_that_leads_out_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"absolute|leads out|characters"):
        task_path(text)


@given(st.lists(st.sampled_from([b"", b"a", b"bc"])), st.booleans(), st.integers(0, 5))
def test_the_last_lines_are_those_that_tail_shows(
    parts: list[bytes], finished: bool, lines: int
) -> None:
    data = b"\n".join(parts) + (b"\n" if finished else b"")
    kept = data.splitlines(keepends=True)  # only \n occurs
    start = last_lines(data, lines)
    expected = kept[len(kept) - lines :] if lines <= len(kept) else kept
    assert data[max(0, start) :] == b"".join(expected)
    assert (start < 0) == (lines >= max(1, len(kept)))


def test_answers_carry_any_name_and_any_bytes() -> None:
    name = os.fsdecode(b"\xff\n")
    answer = Answer(epoch=3, items=(Item(name=name, kind="file", size=1, mtime=2.5),))
    data = bytes(range(256)) * 2
    assert parse_answer(answer.encode(data)) == (answer, data)
    request = Request(op="read", path=name, since=Place(file="1.2.3", offset=7, before="0a"))
    assert parse_request(request.encode()) == request


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not JSON"),
        (b"[" * 50_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b" " * (MAX_REQUEST + 1), "bytes"),
        (b'{"op": "remove"}', "op"),
        (b'{"op": "read", "lines": -1}', "lines"),
        (b'{"op": "read", "wait": 1e9}', "wait"),
        (b'{"op": "read", "wait": NaN}', "wait"),
        (b'{"op": "read", "since": {"file": "x", "offset": -1}}', "since.offset"),
        (b'{"op": "list", "format": 2}', "format 2"),
    ],
)
def test_a_malformed_request_says_what_is_wrong(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_request(data)


@given(st.binary())
def test_any_bytes_are_an_answer_or_a_value_error(data: bytes) -> None:
    try:
        parse_answer(data)
    except ValueError:
        return


# --- How an agent serves it ---------------------------------------------------------------------


class Served:
    """A task's folder, and the agent's side of it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "work"
        self.root.mkdir()
        self.store = MemoryStore()
        self.clock = FakeClock()
        self.live = LiveFiles(
            self.store, self.clock, task=TASK, epoch=1, root=folder, beneath=self.root.name
        )
        self._number = 0

    def put(self, request: Request | bytes) -> str:
        self._number += 1
        name = f"R{self._number:04d}"
        data = request if isinstance(request, bytes) else request.encode()
        self.store.put(TASK.request(name), data)
        return name

    def answered(self, name: str) -> tuple[Answer, bytes] | None:
        if TASK.answer(name) not in self.keys():
            return None
        return parse_answer(self.store.get(TASK.answer(name)).data)

    def ask(self, request: Request | bytes) -> tuple[Answer, bytes]:
        name = self.put(request)
        self.live.serve()
        answered = self.answered(name)
        assert answered is not None
        self.store.delete(TASK.request(name))
        self.store.delete(TASK.answer(name))
        return answered

    def read(self, path: str, **fields: object) -> tuple[Answer, bytes]:
        return self.ask(Request.model_validate({"op": "read", "path": path, **fields}))

    def keys(self) -> list[str]:
        return [entry.key for entry in self.store.scan(TASK.requests)]


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path)


def test_a_folder_is_listed_with_what_each_name_is(served: Served) -> None:
    (served.root / "sub").mkdir()
    (served.root / "b.txt").write_bytes(b"12345")
    os.mkfifo(served.root / "pipe")
    (served.root / "link").symlink_to("b.txt")
    answer, _ = served.ask(Request(op="list"))
    found = [(item.name, item.kind) for item in answer.items]
    assert found == [("b.txt", "file"), ("link", "link"), ("pipe", "fifo"), ("sub", "folder")]
    assert answer.items[0].size == 5
    assert answer.more == 0
    (only,) = served.ask(Request(op="list", path="b.txt"))[0].items
    assert only.name == "b.txt"
    assert served.ask(Request(op="list", path="sub"))[0].items == ()


def test_a_long_listing_tells_how_many_names_it_leaves_out(served: Served) -> None:
    for number in range(MAX_NAMES + 5):
        (served.root / f"f{number:06d}").touch()
    answer, _ = served.ask(Request(op="list"))
    assert len(answer.items) + answer.more == MAX_NAMES + 5
    assert [item.name for item in answer.items[:2]] == ["f000000", "f000001"]
    assert len(answer.items) > MAX_NAMES // 2
    assert len(answer.encode()) < 2**20


def test_long_names_make_no_answer_longer_than_a_mebibyte(served: Served) -> None:
    for number in range(1500):
        (served.root / (os.fsdecode(b"\xff" * 240) + f"{number:06d}")).touch()
    name = served.put(Request(op="list"))
    served.live.serve()
    assert len(served.store.get(TASK.answer(name)).data) < 2**20
    answered = served.answered(name)
    assert answered is not None
    assert len(answered[0].items) + answered[0].more == 1500


def test_the_end_of_a_file_is_read_and_then_what_is_new(served: Served) -> None:
    log = served.root / "log"
    log.write_bytes(b"one\ntwo\nthree\n")
    answer, data = served.read("log", lines=2)
    assert data == b"two\nthree\n"
    with log.open("ab") as file:
        file.write(b"\0\xfffour")
    answer, data = served.read("log", since=answer.place)
    assert data == b"\0\xfffour"
    assert answer.anew is None
    answer, data = served.read("log", since=answer.place)
    assert (data, answer.anew) == (b"", None)


def test_a_file_that_is_another_one_is_read_from_its_start(served: Served) -> None:
    log = served.root / "log"
    log.write_bytes(b"0123456789")
    place = served.read("log")[0].place
    log.write_bytes(b"0123")
    answer, data = served.read("log", since=place)
    assert (answer.anew, data) == ("truncated", b"0123")
    log.write_bytes(b"abcd and more than there was")  # the same inode, and longer
    answer, data = served.read("log", since=place)
    assert (answer.anew, data) == ("replaced", b"abcd and more than there was")
    place = answer.place
    other = served.root / "other"
    other.write_bytes(b"abcd and more than there was, of another file")
    other.replace(log)
    answer, data = served.read("log", since=place)
    assert answer.anew == "replaced"
    assert data == b"abcd and more than there was, of another file"


def test_a_large_file_comes_in_pieces(served: Served) -> None:
    content = b"".join(b"%08d\n" % n for n in range(250_000))
    (served.root / "log").write_bytes(content)
    answer, data = served.read("log", lines=1_000_000)
    assert answer.cut
    assert content.endswith(data)
    assert len(data) == MAX_DATA
    answer, data = served.read(
        "log", since={"file": answer.place and answer.place.file, "offset": 0}
    )
    assert data == content[:MAX_DATA]
    assert not served.read("log", lines=3)[0].cut


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("nope", "missing"),
        ("file/x", "missing"),
        ("dangling", "missing"),
        ("../outside", "refused"),
        ("a/../../outside", "refused"),
        ("/etc/passwd", "refused"),
        ("out", "refused"),
        ("up", "refused"),
        ("sub/out/etc/passwd", "refused"),
        ("loop", "refused"),
        ("pipe", "refused"),
        ("socket-like", "refused"),
        ("sub", "refused"),
        ("", "refused"),
        ("x" * 300, "failed"),
    ],
)
def test_what_is_not_to_be_shown_is_not_opened(served: Served, path: str, error: str) -> None:
    root = served.root
    (root.parent / "outside").write_text("secret")
    (root / "sub").mkdir()
    (root / "file").write_text("x")
    (root / "out").symlink_to("/etc/passwd")
    (root / "up").symlink_to("sub/../../outside")
    (root / "sub" / "out").symlink_to("/")
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    (root / "socket-like").symlink_to("pipe")
    answer, data = served.read(path)
    assert (answer.error, data) == (error, b"")
    assert answer.message


@pytest.mark.parametrize("path", ["in", "far", "whole", "folder/in.txt"])
def test_links_that_stay_in_the_folder_are_followed(served: Served, path: str) -> None:
    root = served.root
    (root / "sub").mkdir()
    (root / "sub" / "in.txt").write_text("inside")
    (root / "in").symlink_to("sub/in.txt")
    (root / "folder").symlink_to("sub")
    (root / "far").symlink_to("folder/../sub/./in.txt")
    (root / "whole").symlink_to(root / "sub" / "in.txt")
    assert served.read(path) == (served.read("sub/in.txt")[0], b"inside")


def test_a_link_in_the_place_of_the_folder_is_not_followed(served: Served, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    served.root.rmdir()
    served.root.symlink_to("outside")
    assert served.read("secret")[0].error == "missing"
    assert served.ask(Request(op="list", path=""))[0].error == "missing"


def test_a_writer_that_puts_links_in_place_of_files_gets_nothing_shown(served: Served) -> None:
    secret = served.root.parent / "secret"
    secret.write_text("secret")
    file, link = served.root / "file", served.root / "link"
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            link.symlink_to(secret)
            link.replace(file)
            link.write_text("open")
            link.replace(file)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(200):
            assert served.read("file")[1] in (b"", b"open")
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("raw", [b"", b'{"op": "list", "format": 9}', b"x" * (MAX_REQUEST + 1)])
def test_a_request_that_cannot_be_read_is_answered_all_the_same(served: Served, raw: bytes) -> None:
    assert served.ask(raw)[0].error == "unsupported"


def test_an_answer_is_put_off_while_there_is_nothing_new(served: Served) -> None:
    name = served.put(Request(op="read", path="later", wait=10.0))
    served.live.serve()
    served.clock.advance(9.0)
    served.live.serve()
    assert served.answered(name) is None
    (served.root / "later").write_text("now")
    served.live.serve()
    answered = served.answered(name)
    assert answered is not None
    assert answered[1] == b"now"
    again = served.put(Request(op="read", path="later", since=answered[0].place, wait=10.0))
    served.live.serve()
    assert served.answered(again) is None
    served.clock.advance(10.0)
    served.live.serve()
    answered = served.answered(again)
    assert answered is not None
    assert (answered[0].error, answered[1]) == (None, b"")


def test_many_requests_are_served_a_few_at_a_time(served: Served) -> None:
    names = [served.put(Request(op="list")) for _ in range(20)]
    served.live.serve()
    assert 0 < sum(served.answered(name) is not None for name in names) < 20
    for _ in range(5):
        served.live.serve()
    assert all(served.answered(name) is not None for name in names)


def test_what_clients_leave_behind_is_removed(served: Served) -> None:
    served.put(Request(op="list"))
    served.store.put(TASK.request("strange.thing"), b"")
    served.live.serve()
    served.clock.advance(30.0)
    served.live.serve()
    fresh = served.put(Request(op="list"))
    served.live.serve()
    served.clock.advance(31.0)
    served.live.serve()
    assert served.keys() == [TASK.request(fresh), TASK.answer(fresh)]
    served.live.clear()
    assert served.keys() == []


def test_nothing_is_served_twice(served: Served) -> None:
    name = served.put(Request(op="list"))
    served.live.serve()
    before = served.store.get(TASK.answer(name)).etag
    served.live.serve()
    assert served.store.get(TASK.answer(name)).etag == before
    assert json.loads(served.store.get(TASK.answer(name)).data)["format"] == 1
