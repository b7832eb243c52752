"""What the SQLite queue does with its files, beyond the contract of all queues."""

import resource
import sqlite3
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from fakes.actors import Actor, send_limited, together
from fakes.clock import FakeClock
from simagent.ports.clock import SystemClock, Waitable, Wake
from simagent.ports.queue import Message, QueueRefusedError, QueueUnavailableError
from simagent.queues.sqlite import SqliteQueue


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "queue.db"


def receive(queue: SqliteQueue, *, visibility: float = 600, wait: float = 0) -> Message | None:
    return queue.receive(visibility=visibility, wait=wait, wake=Wake())


def body(queue: SqliteQueue, *, wait: float = 0) -> str | None:
    message = receive(queue, wait=wait)
    return message.body if message else None


def damage(path: Path) -> None:
    """Overwrite the database in place, as a bad disk would; what was only in its log is lost."""
    for part in ("-wal", "-shm"):
        path.with_name(path.name + part).unlink(missing_ok=True)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"garbage " * (size // 8))


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(statement)


def set_aside(path: Path) -> list[Path]:
    return list(path.parent.glob("queue.db.damaged-*"))


def test_making_a_queue_writes_nothing(path: Path) -> None:
    SqliteQueue(path, "default", SystemClock())
    assert not path.parent.exists()


@pytest.mark.parametrize("group", ["", "a/b", "..", "-x"])
def test_a_group_that_is_no_name_is_refused(path: Path, group: str) -> None:
    with pytest.raises(ValueError, match="no valid name"):
        SqliteQueue(path, group, SystemClock())


def test_messages_outlive_the_process(path: Path) -> None:
    queue = SqliteQueue(path, "default", SystemClock())
    queue.send("x")
    queue.close()
    assert body(SqliteQueue(path, "default", SystemClock())) == "x"


def test_a_closed_queue_opens_again(path: Path) -> None:
    queue = SqliteQueue(path, "default", SystemClock())
    queue.send("x")
    assert body(queue, wait=1) == "x"
    queue.close()
    assert receive(queue, wait=0.01) is None
    queue.send("y")
    assert body(queue) == "y"


@pytest.mark.parametrize("was", ["nothing", "text"])
def test_a_damaged_database_is_set_aside(path: Path, was: str) -> None:
    path.parent.mkdir()
    if was == "text":
        path.write_text("no database " * 1000)
    else:
        queue = SqliteQueue(path, "default", SystemClock())
        queue.send("lost")
        queue.close()
        damage(path)
    queue = SqliteQueue(path, "default", SystemClock())
    queue.send("new")
    assert body(queue) == "new"
    assert receive(queue) is None
    assert len(set_aside(path)) == 1


def test_all_who_have_it_open_go_on_with_the_same_new_database(path: Path) -> None:
    queues = [SqliteQueue(path, "default", SystemClock()) for _ in range(3)]
    for queue in queues:
        assert receive(queue, wait=0.01) is None
    damage(path)
    SqliteQueue(path, "default", SystemClock()).send("a")
    assert body(queues[0]) == "a"
    queues[1].send("b")
    assert body(queues[2]) == "b"
    assert len(set_aside(path)) == 1


def test_a_waiting_receiver_survives_the_loss_of_all_files(path: Path) -> None:
    queue, clock = SqliteQueue(path, "default", SystemClock()), SystemClock()
    waits = threading.Event()

    class Watched(SystemClock):
        def wait(self, timeout: float | None, *sources: Waitable) -> bool:
            if timeout:
                waits.set()
            return super().wait(timeout, *sources)

    def lose_and_send() -> None:
        assert waits.wait(30)
        for each in path.parent.iterdir():
            each.unlink()
        queue.send("x")

    sender = threading.Thread(target=lose_and_send)
    sender.start()
    began = clock.now()
    assert body(SqliteQueue(path, "default", Watched()), wait=60) == "x"
    assert clock.now() - began < 30
    sender.join()


def test_the_database_of_another_program_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    execute(path, "CREATE TABLE messages (precious TEXT)")
    before = path.read_bytes()
    with pytest.raises(QueueRefusedError, match="another program"):
        SqliteQueue(path, "default", SystemClock()).send("x")
    assert path.read_bytes() == before


def test_the_database_of_a_newer_version_is_left_alone(path: Path) -> None:
    SqliteQueue(path, "default", SystemClock()).send("x")
    execute(path, "PRAGMA user_version = 2")
    with pytest.raises(QueueRefusedError, match="newer version"):
        receive(SqliteQueue(path, "default", SystemClock()))


def test_after_a_reboot_hidden_messages_come_back(path: Path) -> None:
    # Before: up for a million seconds. After: for ten, and the old times mean nothing.
    queue = SqliteQueue(path, "default", FakeClock(now=1_000_000))
    queue.send("x")
    assert receive(queue, visibility=30) is not None
    queue.close()
    assert receive(SqliteQueue(path, "default", FakeClock(now=10))) is None
    execute(path, "UPDATE boot SET id = 'an earlier one'")
    assert body(SqliteQueue(path, "default", FakeClock(now=10))) == "x"


def test_a_database_that_stays_locked_is_unavailable(path: Path) -> None:
    queue = SqliteQueue(path, "default", SystemClock(), busy=0.01)
    queue.send("x")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(QueueUnavailableError):
            queue.send("y")
    queue.send("z")
    assert [body(queue), body(queue), body(queue)] == ["x", "z", None]


def test_no_room_is_unavailable_and_harms_nothing(path: Path) -> None:
    opener = partial(SqliteQueue, path, clock=SystemClock())
    actor = Actor(send_limited, opener, "default", resource.RLIMIT_FSIZE, 500_000)
    assert together(actor) == [["QueueUnavailableError"]]
    assert body(SqliteQueue(path, "default", SystemClock())) == "before"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QueueRefusedError):
        SqliteQueue(tmp_path / "file" / "queue.db", "default", SystemClock()).send("x")


def test_an_idle_receiver_does_not_poll(path: Path) -> None:
    pauses: list[float | None] = []

    class Counting(FakeClock):
        def wait(self, timeout: float | None, *sources: Waitable) -> bool:
            pauses.append(timeout)
            return super().wait(timeout, *sources)

    queue = SqliteQueue(path, "default", Counting())
    queue.send("hidden", delay=1000)
    assert receive(queue, wait=600) is None
    assert [pause for pause in pauses if pause] == [600]


@pytest.mark.parametrize("moment", range(1, 8))
def test_a_message_sent_at_any_moment_ends_the_wait(path: Path, moment: int) -> None:
    sender = SqliteQueue(path, "default", SystemClock())
    assert receive(sender) is None

    class Sending(SystemClock):
        """Sends a message just before it tells the time for the ``moment``-th time."""

        asked = 0

        def now(self) -> float:
            self.asked += 1
            if self.asked == moment:
                sender.send("x")
            return super().now()

        def wait(self, timeout: float | None, *sources: Waitable) -> bool:
            if timeout and self.asked < moment:
                self.asked = moment
                sender.send("x")
            return super().wait(timeout, *sources)

    clock = SystemClock()
    began = clock.now()
    assert body(SqliteQueue(path, "default", Sending()), wait=60) == "x"
    assert clock.now() - began < 30


def test_without_inotify_it_looks_once_a_second(path: Path) -> None:
    path.parent.mkdir()
    # A bell that cannot be listened to.
    (path.parent / "queue.db.bell-default").mkdir()
    clock = FakeClock()
    queue = SqliteQueue(path, "default", clock)
    clock.after(5.5, lambda: queue.send("x"))
    began = clock.now()
    assert body(queue, wait=60) == "x"
    assert clock.now() - began == pytest.approx(6)


def test_only_the_newest_dead_letters_are_kept(path: Path) -> None:
    queue = SqliteQueue(path, "default", SystemClock())
    queue.send("first")
    first = receive(queue)
    assert first is not None
    queue.reject(first, "malformed")
    execute(path, "UPDATE sqlite_sequence SET seq = 10001 WHERE name = 'dead_letters'")
    queue.send("second")
    second = receive(queue)
    assert second is not None
    queue.reject(second, "malformed")
    assert queue.dead_letters() == [("second", "malformed")]
