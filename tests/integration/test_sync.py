"""`simagent sync`: what a running task has made so far, fetched through real agents."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fakes.cli import Cli
from fakes.rig import Rig, kill9
from simagent.client import ClientError
from simagent.client.asking import Asker
from simagent.domain.keys import TaskKeys
from simagent.domain.live import Request
from simagent.engines import open_store

STEP = """
mkdir -p fields; echo so far > fields/a.vtk; echo two > b.txt; echo printed
while [ ! -e {go} ]; do sleep 0.05; done
echo the end > c.txt
"""


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    (tmp_path / "input.txt").write_text("input")
    return Rig(tmp_path)


@contextmanager
def running(rig: Rig, **fields: object) -> Iterator[TaskKeys]:
    """Run a task that has made some files and waits; at the end let it end."""
    go = rig.folder / "go"
    command = {"run": STEP.format(go=go), "shell": True}
    with rig.agent():
        task = rig.submit(command, inputs=["input.txt"], **fields)
        try:
            rig.until(lambda: b"printed" in rig.log(task))
            yield task
        finally:
            go.touch()
            rig.finish(task)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def left(rig: Rig, task: TaskKeys) -> list[str]:
    store = open_store(rig.config())
    return [e.key for e in store.scan(task.root) if "/sync/" in e.key or "/control/" in e.key]


def asker(rig: Rig, task: TaskKeys) -> Asker:
    return Asker(rig.client._calls, task, timeout=60)


def test_what_was_made_so_far_is_fetched_and_nothing_stays_in_the_store(
    rig: Rig, tmp_path: Path
) -> None:
    with running(rig) as task:
        fetched = rig.client.sync(task, [], tmp_path / "out")
        assert contents(tmp_path / "out") == {
            "fields/a.vtk": "so far\n",
            "b.txt": "two\n",
            "stdout.txt": "printed\n",
            "stderr.txt": "",
        }
        assert (len(fetched.paths), fetched.changed) == (4, 0)
        assert left(rig, task) == []
        assert rig.client.state(task).status == "running"
        rig.client.sync(task, ["fields/**"], tmp_path / "some")
        assert contents(tmp_path / "some") == {"fields/a.vtk": "so far\n"}
    rig.client.download(task, [], tmp_path / "end")
    assert contents(tmp_path / "end")["c.txt"] == "the end\n"


def test_the_command_line_says_what_came_and_what_is_wrong(rig: Rig, tmp_path: Path) -> None:
    cli, config = Cli(tmp_path), rig.config()
    cli.env |= {"SIMAGENT_STORE": config.store_url, "SIMAGENT_QUEUE": config.queue_url}
    early = rig.submit("true")
    said = cli("sync", early.id, code=1).stderr
    assert said == f"simagent: task {early.id} is queued: it has files once an agent runs it\n"
    with running(rig) as task:
        shown = cli("sync", task.id, "*.txt", "-o", tmp_path / "out").stdout
        assert shown.startswith(f"3 outputs so far in {tmp_path / 'out'}:\n")
        assert (tmp_path / "out" / "b.txt").read_text() == "two\n"
        said = cli("sync", task.id, "*.none", code=1).stderr
        assert said == f"simagent: task {task.id} has made nothing yet that matches *.none\n"
    said = cli("sync", task.id, code=1).stderr
    assert said == (
        f"simagent: task {task.id} has ended, as succeeded: `simagent download {task.id}` "
        "fetches what it published\n"
    )


def test_one_at_a_time(rig: Rig, tmp_path: Path) -> None:
    with running(rig) as task:
        one = asker(rig, task)
        answered = one.ask(Request(op="sync", sync="ONE", wait=30.0))
        assert answered is not None
        assert answered[0].sync is not None
        assert answered[0].sync.output is not None
        with pytest.raises(ClientError, match="another sync of it is under way"):
            rig.client.sync(task, [], tmp_path / "out")
        one.ask(Request(op="sync", sync="ONE", over=True))
        assert rig.client.sync(task, [], tmp_path / "out").paths


def test_what_nobody_fetched_is_removed_when_the_commands_are_over(rig: Rig) -> None:
    with running(rig) as task:
        answered = asker(rig, task).ask(Request(op="sync", sync="ONE", wait=30.0))
        assert answered is not None
        assert left(rig, task) != []
    assert rig.finish(task).status == "succeeded"
    rig.until(lambda: left(rig, task) == [])


def test_one_that_takes_long_to_choose_its_files_ends_with_the_commands(rig: Rig) -> None:
    with running(rig) as task:
        (attempt,) = (rig.folder / "state" / "attempts").iterdir()
        for number in range(5000):
            (attempt / "work/output/artifacts" / f"file-{number}").touch()
        asked = Request(op="sync", sync="ONE", patterns=("*b",) * 10_000)
        assert asker(rig, task).ask(asked) is not None
    assert f"sync {task.id}" not in {thread.name for thread in threading.enumerate()}


def test_a_file_that_is_written_without_a_pause_comes_as_it_was_read(
    rig: Rig, tmp_path: Path
) -> None:
    with rig.agent():
        task = rig.submit({"run": "while :; do date +%N >> a.txt; done", "shell": True})
        rig.until(lambda: rig.running(task) and rig.client.files(task).list("")[0])
        rig.client.sync(task, ["a.txt"], tmp_path / "out")
        assert all(line.isdigit() for line in (tmp_path / "out" / "a.txt").read_text().split())
        rig.client.kill(task, by="the test", grace=0.1)
        rig.finish(task)


def test_a_sync_outlives_a_restart_of_the_agent(rig: Rig, tmp_path: Path) -> None:
    go = tmp_path / "go"
    task = rig.submit({"run": STEP.format(go=go), "shell": True})
    first = rig.process()
    rig.until(lambda: b"printed" in rig.log(task))
    kill9(first)
    done: list[object] = []

    def sync() -> None:
        done.append(rig.client.sync(task, [], tmp_path / "out", timeout=60))

    thread = threading.Thread(target=sync, daemon=True)
    thread.start()
    second = rig.process()
    thread.join(70)
    assert done, "it had not ended in time"
    assert contents(tmp_path / "out")["b.txt"] == "two\n"
    go.touch()
    rig.finish(task)
    second.terminate()
    assert second.wait(60) == 0


def test_an_agent_that_is_gone_is_told_of(rig: Rig, tmp_path: Path) -> None:
    task = rig.submit({"run": "sleep 300", "shell": True})
    process = rig.process()
    rig.until(lambda: rig.running(task))
    kill9(process)
    began = time.monotonic()
    with pytest.raises(ClientError, match=r"no agent answered within 0.5 s"):
        rig.client.sync(task, [], tmp_path / "out", timeout=0.5)
    assert time.monotonic() - began < 20
    with rig.agent():
        rig.client.kill(task, by="the test", grace=0.1)
        rig.finish(task)
