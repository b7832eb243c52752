"""Arrays: many tasks from one spec, submitted, waited for, killed, fetched and removed together."""

import json
from functools import partial
from pathlib import Path

import pytest

from fakes.cli import Cli
from fakes.clock import FakeClock
from fakes.faults import UNAVAILABLE, Faults, FaultyQueue, FaultyStore
from fakes.queue import MemoryQueue
from fakes.rig import Rig
from fakes.store import MemoryStore
from simagent.client import ClientError, Tasks, UsageError
from simagent.domain import bell, keys
from simagent.domain.arrays import element, elements
from simagent.domain.keys import ArrayKeys, TaskKeys
from simagent.domain.spec import Spec
from simagent.domain.state import Status
from simagent.ledger import Ledger
from simagent.ports.store import NotFoundError

DAY = 86_400.0
A = ArrayKeys("default", "A")


class _Died(BaseException):
    """The client's process ended here."""


class Desk:
    """A client whose process can end at any call."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.good = Ledger(self.store)
        self.faults = Faults(self.clock)
        self.queue = MemoryQueue(self.clock)
        self.folder = folder
        self.notes: list[str] = []
        ledger = Ledger(FaultyStore(self.store, self.faults))
        queue = FaultyQueue(self.queue, self.faults)
        self.client = Tasks(
            ledger, lambda _: queue, self.clock, project="default", notice=self.notes.append
        )
        (folder / "in").mkdir()
        (folder / "in" / "data").write_text("shared")

    def submit(self, size: int = 25, **fields: object) -> ArrayKeys:
        spec = {"commands": ["true"], "inputs": ["in"], "array": {"size": size}, **fields}
        return self.client.submit_array(Spec.model_validate(spec), base=self.folder, array_id="A")

    def end(self, task: TaskKeys, status: Status = Status.SUCCEEDED) -> None:
        at = self.clock.wall()
        self.good.change(task, lambda s: s.with_(status=status, outcome=status, ended_at=at))
        self.good.remove_marker("default", task)

    def keys(self, prefix: str) -> list[str]:
        return [entry.key for entry in self.store.scan(prefix)]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def told(rig: Rig) -> Cli:
    """Give the command, on the queue and the store of a rig."""
    config, cli = rig.config(), Cli(rig.folder)
    cli.env |= {"SIMAGENT_QUEUE": config.queue_url, "SIMAGENT_STORE": config.store_url}
    return cli


def ok(cli: Cli, *args: str) -> str:
    printed: str = cli(*args).stdout
    return printed


def whole(desk: Desk, size: int = 25) -> None:
    """Check that each task is there once, and has been rung for."""
    tasks = elements(A, size)
    assert [desk.good.state(task).status for task in tasks] == ["queued"] * size
    specs = [desk.good.spec(task) for task in tasks]
    assert [spec.array.index for spec in specs if spec.array] == list(range(size))
    assert len(desk.keys(keys.index_prefix("default"))) == size
    assert len(desk.keys(keys.open_prefix("default"))) == size
    assert set(desk.queue.bodies()) == {bell.encode(task) for task in tasks}


def test_the_inputs_are_stored_once_and_each_task_is_small(desk: Desk) -> None:
    desk.submit()
    whole(desk)
    assert desk.keys(A.root) == sorted([A.record, A.complete, A.input(0)])
    assert sum(call == "upload" for call, _ in desk.faults.calls) == 1
    assert sum(call == "send_many" for call, _ in desk.faults.calls) == 1
    assert [row.task for row in desk.client.list(array="A")] == elements(A, 25)


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 5, 9, 40, 80, 99])
def test_a_submission_that_died_anywhere_is_completed_by_the_next(desk: Desk, after: int) -> None:
    left = after

    def die(call: str, _key: str) -> None:
        nonlocal left
        if call in ("put", "upload", "send_many"):
            left -= 1
            if left < 0:
                raise _Died

    desk.faults.before = die
    with pytest.raises(_Died):
        desk.submit()
    desk.faults.before = lambda _call, _key: None
    desk.submit()
    whole(desk)


def test_a_repeated_submission_leaves_alone_what_has_ended(desk: Desk) -> None:
    desk.submit()
    done, gone = element(A, 3, 25), element(A, 4, 25)
    desk.end(done)
    desk.end(gone)
    desk.client.delete(gone)
    desk.queue.lose_all()
    desk.submit()
    assert desk.good.state(done).status == "succeeded"
    assert desk.keys(gone.root) == [gone.state]
    assert len(desk.queue.bodies()) == 23
    assert desk.keys(keys.open_prefix("default")) == [
        keys.open_marker("default", task) for task in elements(A, 25) if task not in (done, gone)
    ]


def test_the_id_of_an_array_that_was_removed_is_refused(desk: Desk) -> None:
    desk.submit(3)
    for task in elements(A, 3):
        desk.end(task)
        desk.client.delete(task)
    list(desk.client.prune(older_than=DAY))
    before = desk.keys("")
    with pytest.raises(UsageError, match="was deleted: use another --id"):
        desk.submit(3)
    assert desk.keys("") == before


def test_another_array_of_the_same_id_is_refused(desk: Desk) -> None:
    desk.submit()
    with pytest.raises(UsageError, match="another spec"):
        desk.submit(26)
    with pytest.raises(UsageError, match="another spec"):
        desk.submit(commands=["false"])


def test_a_task_and_an_array_have_no_id_in_common(desk: Desk) -> None:
    desk.submit(3)
    alone = Spec.model_validate({"commands": ["true"]})
    with pytest.raises(UsageError, match=f"{A.id} is the id of an array"):
        desk.client.submit(alone, base=Path(), task_id=A.id)
    with pytest.raises(ClientError, match=f"{A.id} is an array: name one of its tasks"):
        desk.client.retry(TaskKeys(A.project, A.id))
    desk.client.submit(alone, base=Path(), task_id="other")
    many = Spec.model_validate({"commands": ["true"], "array": {"size": 3}})
    with pytest.raises(UsageError, match="other is the id of a task"):
        desk.client.submit_array(many, base=Path(), array_id="other")


def test_outputs_of_others_are_fetched_where_one_has_none_that_match(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (tmp_path / "task.toml").write_text(
        "[array]\nsize = 3\n[[commands]]\nshell = true\n"
        'run = "test $SIMAGENT_ARRAY_INDEX = 1 || echo made > out"\n'
    )
    cli = told(rig)
    array = ok(cli, "submit", str(tmp_path / "task.toml")).strip()
    with rig.agent():
        ok(cli, "wait", array)
    got = tmp_path / "got"
    said = cli("download", array, "out", "-o", str(got), code=1).stderr
    assert sorted(file.parent.name for file in got.glob("*/out")) == ["0", "2"]
    assert f"task {array}-1 has no output that matches out" in said
    assert "1 of 3 tasks have no outputs that match" in said


def test_bells_that_cannot_be_rung_are_told_of_once(desk: Desk) -> None:
    desk.faults.plan = lambda call, _key: UNAVAILABLE if call == "send_many" else None
    desk.submit(450)
    assert len(desk.notes) == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"array": {"size": 3, "index": 1}}, "set when it is submitted"),
        ({"array": {"size": 3, "id": "x"}}, "set when it is submitted"),
        ({"watches": [{"name": "w", "regex": "x"}]}, "unsupported"),
    ],
)
def test_what_is_wrong_writes_nothing(desk: Desk, fields: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        desk.submit(**fields)  # type: ignore[arg-type]
    assert desk.keys("") == []


def test_an_id_that_leaves_no_room_for_the_indexes_is_refused(desk: Desk) -> None:
    spec = Spec.model_validate({"commands": ["true"], "array": {"size": 1000}})
    with pytest.raises(UsageError, match="too long"):
        desk.client.submit_array(spec, base=desk.folder, array_id="x" * 61)
    with pytest.raises(UsageError, match="as an array"):
        desk.client.submit(spec, base=desk.folder)
    assert desk.keys("") == []


def test_waiting_yields_each_task_as_it_ends_with_few_reads(desk: Desk) -> None:
    desk.submit()
    for number, task in enumerate(elements(A, 25)):
        desk.clock.after(10 + number, partial(desk.end, task))
    desk.faults.calls.clear()
    ended = [task for task, _ in desk.client.arrays.ended("A")]
    assert ended == elements(A, 25)
    with pytest.raises(ClientError, match="no array B"):
        list(desk.client.arrays.ended("B"))


def test_the_inputs_stay_until_the_last_task_is_gone(desk: Desk) -> None:
    desk.submit(3)
    tasks = elements(A, 3)
    for task in tasks:
        desk.end(task)
    for task in tasks[:2]:
        desk.client.delete(task)
    list(desk.client.prune(older_than=DAY))
    assert A.input(0) in desk.keys(A.root)
    desk.client.delete(tasks[2])
    list(desk.client.prune(older_than=DAY))
    assert desk.keys(A.root) == []


def test_a_prune_leaves_alone_what_is_being_submitted(desk: Desk) -> None:
    def die(call: str, key: str) -> None:
        if call == "put" and key == keys.open_marker("default", element(A, 0, 25)):
            raise _Died

    desk.faults.before = die
    with pytest.raises(_Died):
        desk.submit()
    desk.faults.before = lambda _call, _key: None
    list(desk.client.prune(older_than=0.0))
    desk.submit()
    whole(desk)
    with pytest.raises(NotFoundError):
        desk.store.get(keys.index_entry("default", "B", 0.0))


def test_a_retry_of_one_of_them_stands_by_itself(desk: Desk) -> None:
    desk.submit(3)
    old = element(A, 1, 3)
    desk.end(old, Status.FAILED)
    again = desk.client.retry(old)
    spec = desk.good.spec(again)
    assert spec.array is not None
    assert (spec.array.id, spec.array.index) == (None, 1)
    assert again.input(0) in desk.keys(again.root)


def test_an_array_runs_and_each_task_knows_its_index(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "data").write_text("shared")
    (tmp_path / "task.toml").write_text(
        'name = "many"\ninputs = ["in"]\n[[commands]]\nshell = true\n'
        'run = "cat data > out; echo $SIMAGENT_ARRAY_INDEX of $SIMAGENT_ARRAY_SIZE >> out"\n'
    )
    cli = told(rig)
    said = ok(cli, "submit", "--array", "12", "--id", "many", "--json", str(tmp_path / "task.toml"))
    assert json.loads(said)["tasks"][3] == "many-03"
    assert "12" in ok(cli, "show", "many")
    with rig.agent():
        waited = ok(cli, "wait", "many").splitlines()
    assert sorted(waited) == [f"many-{n:02d} succeeded" for n in range(12)]
    assert json.loads(ok(cli, "show", "many", "--json"))["counts"] == {"succeeded": 12}
    ok(cli, "download", "many", "-o", str(tmp_path / "results"))
    assert (tmp_path / "results" / "7" / "out").read_text() == "shared7 of 12\n"
    assert len(ok(cli, "list", "--array", "many").splitlines()) == 13
    ok(cli, "delete", "many")
    assert rig.client.arrays.find("many") is None


def test_an_array_is_killed_as_a_whole(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (tmp_path / "task.toml").write_text('commands = ["sleep 60"]\n[array]\nsize = 5\n')
    cli = told(rig)
    array = ok(cli, "submit", str(tmp_path / "task.toml")).strip()
    assert ok(cli, "kill", array) == f"{array}: 5 killed\n"
    assert json.loads(ok(cli, "show", array, "--json"))["counts"] == {"killed": 5}
