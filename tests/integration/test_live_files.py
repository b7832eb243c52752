"""A task's files while it runs: seen through the store, by the agent that holds the task."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fakes.rig import Rig, kill9
from simagent.client import ClientError, UsageError
from simagent.client.attention import Attention
from simagent.domain.keys import TaskKeys
from simagent.engines import open_store
from simagent.ports.clock import SystemClock
from simagent.worker.orders import Detached, Preempted


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


class Worker:
    """A task that writes what it is told to, when it is told to."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._script = rig.folder / "script"
        self._script.mkdir()
        self._number = 0
        self.stop = self._script / "stop"

    def submit(self, **fields: object) -> TaskKeys:
        code = (
            "import pathlib, time\n"
            f"script = pathlib.Path({str(self._script)!r})\n"
            "number = 0\n"
            "print('ready', flush=True)\n"
            "while not (script / 'stop').exists():\n"
            "    step = script / str(number)\n"
            "    if step.exists():\n"
            "        exec(step.read_text())\n"
            "        (script / f'{number}.done').touch()\n"
            "        number += 1\n"
            "    time.sleep(0.01)\n"
        )
        return self._rig.submit({"run": [sys.executable, "-c", code]}, **fields)

    def do(self, code: str) -> None:
        """Let the task run a line of Python, in its folder."""
        new = self._script / "new"
        new.write_text(code)
        new.replace(self._script / str(self._number))
        done = self._script / f"{self._number}.done"
        self._rig.until(done.exists)
        self._number += 1


class Tail:
    """`tail -f` in a thread."""

    def __init__(self, rig: Rig, task: TaskKeys, path: str, *, lines: int = 10) -> None:
        self._rig = rig
        self.data = b""
        self.notes: list[str] = []
        self.error: BaseException | None = None
        self._files = rig.client.files(task, timeout=30.0, on_note=self.notes.append)
        self._args = (path, lines)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        path, lines = self._args
        try:
            for data in self._files.tail(path, lines=lines, follow=True):
                self.data += data
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.error = error

    def shows(self, data: bytes) -> None:
        self._rig.until(lambda: self.data == data or self.error)
        assert self.data == data

    def notes_that(self, words: str) -> None:
        self._rig.until(lambda: any(words in note for note in self.notes) or self.error)
        assert self.error is None

    def ends(self) -> None:
        self.thread.join(60)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error


@pytest.fixture
def worker(rig: Rig) -> Worker:
    return Worker(rig)


def names(rig: Rig, task: TaskKeys, path: str = "") -> list[str]:
    return [item.name for item in rig.client.files(task).list(path)[0]]


def tail(rig: Rig, task: TaskKeys, path: str, lines: int = 10) -> bytes:
    return b"".join(rig.client.files(task).tail(path, lines=lines, follow=False))


def requests(rig: Rig, task: TaskKeys) -> list[str]:
    return [entry.key for entry in open_store(rig.config()).scan(task.requests)]


def test_files_of_a_running_task_are_listed_and_read(rig: Rig, worker: Worker) -> None:
    (rig.folder / "in.txt").write_text("an input")
    with rig.agent():
        task = worker.submit(inputs=["in.txt"])
        worker.do("pathlib.Path('made').mkdir(); open('made/log', 'wb').write(b'a\\nb\\n\\0\\xff')")
        assert names(rig, task) == ["in.txt", "made"]
        assert names(rig, task, "made/") == ["log"]
        assert tail(rig, task, "made/log", 2) == b"b\n\0\xff"
        assert tail(rig, task, "in.txt") == b"an input"
        with pytest.raises(ClientError, match="there is no 'nothing'"):
            tail(rig, task, "nothing")
        with pytest.raises(UsageError, match="leads out"):
            tail(rig, task, "made/../../x")
        worker.do("pathlib.Path('out').symlink_to('/etc/hostname')")
        with pytest.raises(ClientError, match="leads out"):
            tail(rig, task, "out")
        worker.stop.touch()
        assert rig.finish(task).status == "succeeded"
    assert requests(rig, task) == []


def test_files_of_an_ended_task_are_those_it_published(rig: Rig) -> None:
    (rig.folder / "in.txt").write_text("an input")
    with rig.agent(until_empty=True):
        task = rig.submit(
            {"run": "mkdir d; seq 100000 > d/log; echo x > d/x; seq 3", "shell": True},
            inputs=["in.txt"],
        )
        rig.finish(task)
    assert names(rig, task)[0] == "d"
    assert "stdout.txt" in names(rig, task)
    assert names(rig, task, "d") == ["log", "x"]
    assert names(rig, task, "d/x") == ["x"]
    assert tail(rig, task, "d/log", 2) == b"99999\n100000\n"
    assert tail(rig, task, "stdout.txt") == b"1\n2\n3\n"
    for missing in ("in.txt", "d", "dd"):
        with pytest.raises(ClientError, match="among the published files"):
            tail(rig, task, missing)
    with pytest.raises(ClientError, match="among the published files"):
        names(rig, task, "dd")


def test_a_follower_sees_a_file_appear_grow_change_and_end(rig: Rig, worker: Worker) -> None:
    with rig.agent():
        task = worker.submit()
        follower = Tail(rig, task, "log", lines=1)
        follower.notes_that("waiting for log")
        worker.do("log = open('log', 'wb', 0); log.write(b'one\\ntwo\\n')")
        follower.shows(b"two\n")
        worker.do("log.write(bytes(range(256)))")
        shown = b"two\n" + bytes(range(256))
        follower.shows(shown)
        worker.do("log.truncate(0); log.seek(0); log.write(b'anew\\n')")
        follower.notes_that("truncated")
        follower.shows(shown + b"anew\n")
        worker.do("open('l2', 'wb').write(b'another file\\n'); pathlib.Path('l2').rename('log')")
        follower.notes_that("replaced")
        follower.shows(shown + b"anew\nanother file\n")
        worker.do("open('log', 'ab').write(b'the end\\n'); (script / 'stop').touch()")
        follower.ends()
        assert follower.data == shown + b"anew\nanother file\nthe end\n"
        assert rig.finish(task).status == "succeeded"
    assert requests(rig, task) == []


def test_a_large_file_is_followed_from_its_place_on(rig: Rig, worker: Worker) -> None:
    with rig.agent():
        task = worker.submit()
        worker.do("log = open('log', 'wb', 0); log.write(b'x' * 99 + b'\\n')")
        follower = Tail(rig, task, "log")
        follower.shows(b"x" * 99 + b"\n")
        worker.do("log.write(b''.join(b'%09d\\n' % n for n in range(350_000)))")
        expected = b"x" * 99 + b"\n" + b"".join(b"%09d\n" % n for n in range(350_000))
        follower.shows(expected)
        worker.stop.touch()
        follower.ends()
        assert follower.data == expected


def test_a_queued_task_has_no_files_and_a_follower_waits_for_an_agent(
    rig: Rig, worker: Worker
) -> None:
    task = worker.submit()
    for look in (lambda: names(rig, task), lambda: tail(rig, task, "log")):
        with pytest.raises(ClientError, match="is queued: it has files once an agent runs it"):
            look()
    assert requests(rig, task) == []
    follower = Tail(rig, task, "log")
    follower.notes_that("is queued: waiting for an agent")
    with rig.agent():
        worker.do("open('log', 'w').write('hello')")
        follower.shows(b"hello")
        worker.stop.touch()
        follower.ends()


def test_a_task_that_was_killed_early_has_no_files(rig: Rig) -> None:
    task = rig.submit("true")
    rig.client.kill(task, by="tester")
    with pytest.raises(ClientError, match="is killed and published no files"):
        names(rig, task)


def test_where_no_agent_answers_that_is_said_and_nothing_is_left(rig: Rig, worker: Worker) -> None:
    task = worker.submit()
    process = rig.process()
    rig.until(lambda: rig.log(task) or None)
    process.send_signal(signal.SIGSTOP)
    try:
        files = rig.client.files(task, timeout=0.5)
        with pytest.raises(ClientError, match=r"no agent answered within 0\.5 s"):
            files.list("")
        with pytest.raises(ClientError, match="no agent answered"):
            list(files.tail("log", lines=1, follow=True))
        assert requests(rig, task) == []
    finally:
        process.send_signal(signal.SIGCONT)
    assert names(rig, task) == []
    worker.stop.touch()
    rig.finish(task)
    process.terminate()
    assert process.wait(60) == 0


def test_a_follower_goes_on_when_the_agent_is_restarted(rig: Rig, worker: Worker) -> None:
    with rig.agent() as agent:
        task = worker.submit()
        worker.do("log = open('log', 'wb', 0); log.write(b'before\\n')")
        follower = Tail(rig, task, "log")
        follower.shows(b"before\n")
        agent.interrupt(Detached("an upgrade"))
    worker.do("log.write(b'between\\n')")
    with rig.agent():
        follower.shows(b"before\nbetween\n")
        worker.do("log.write(b'after\\n')")
        worker.stop.touch()
        follower.ends()
    assert follower.data == b"before\nbetween\nafter\n"


def test_a_follower_is_told_of_another_attempt(rig: Rig, worker: Worker) -> None:
    with rig.agent() as agent:
        task = worker.submit()
        worker.do("open('log', 'w').write('first')")
        follower = Tail(rig, task, "log")
        follower.shows(b"first")
        agent.interrupt(Preempted("the machine goes away"))
    follower.notes_that("is queued: waiting")
    for step in (rig.folder / "script").iterdir():
        step.unlink()
    (rig.folder / "script" / "0").write_text("open('log', 'w').write('second')")
    with rig.agent():
        follower.notes_that("attempt 2 begins")
        follower.shows(b"firstsecond")
        worker.stop.touch()
        follower.ends()


def test_a_request_that_cannot_be_served_does_not_hurt_the_task(rig: Rig, worker: Worker) -> None:
    store = open_store(rig.config())
    with rig.agent():
        task = worker.submit()
        worker.do("pass")
        for name, data in {"R1": b"\xff", "R2": b"{}", "a b": b"null", "R3/deep": b"{}"}.items():
            store.put(task.request(name), data)
        Attention(store, SystemClock(), task).call()
        rig.until(lambda: len([k for k in requests(rig, task) if k.endswith(".answer")]) >= 3)
        assert names(rig, task) == []
        worker.stop.touch()
        assert rig.finish(task).status == "succeeded"
    assert requests(rig, task) == []


def test_the_commands_print_for_people_and_for_scripts(rig: Rig, worker: Worker) -> None:
    config = rig.config()
    environment = os.environ | {
        "SIMAGENT_STATE_DIR": str(config.state_dir),
        "SIMAGENT_QUEUE": config.queue_url,
        "SIMAGENT_STORE": config.store_url,
    }

    def run(*args: str, code: int = 0) -> subprocess.CompletedProcess[bytes]:
        argv = [sys.executable, "-m", "simagent", *args]
        done = subprocess.run(argv, env=environment, capture_output=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr
        return done

    agent = rig.process()
    task = worker.submit()
    worker.do("open(b'n\\xff\\n', 'w').close(); open('log', 'wb').write(b'a\\nb\\0\\xff\\n')")
    listed = json.loads(run("ls", task.id, "--json").stdout)
    assert [entry["name"] for entry in listed["entries"]] == ["log", os.fsdecode(b"n\xff\n")]
    assert listed["entries"][0]["size"] == 6
    assert listed["more"] == 0
    assert len(run("ls", task.id).stdout.splitlines()) == 2
    assert run("tail", task.id, "log", "-n", "1").stdout == b"b\0\xff\n"
    assert run("tail", task.id, "../x", code=2).stderr.count(b"\n") == 1
    assert b"there is no 'nope'" in run("tail", task.id, "nope", code=1).stderr
    follower = subprocess.Popen(
        [sys.executable, "-m", "simagent", "tail", "-f", task.id, "log"],
        env=environment,
        stdout=subprocess.PIPE,
    )
    assert follower.stdout is not None
    assert follower.stdout.read(6) == b"a\nb\0\xff\n"
    follower.send_signal(signal.SIGINT)
    assert follower.wait(60) == 130
    follower.stdout.close()
    rig.until(lambda: requests(rig, task) == [])
    kill9(agent)
    worker.stop.touch()
    with rig.agent():
        rig.finish(task)
