"""Inputs that are damaged or gone where they lie: the task fails, for a reason in one line."""

from pathlib import Path

import pytest

from fakes.rig import Rig
from simagent.domain.keys import TaskKeys
from simagent.domain.reasons import Reason
from simagent.domain.state import Status


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "given.txt").write_text("given\n" * 10_000)
    return Rig(tmp_path)


def fails(rig: Rig, task: TaskKeys, reason: Reason) -> str:
    with rig.agent():
        state = rig.finish(task)
    assert (state.status, state.reason) == (Status.FAILED, reason)
    assert len(state.message.splitlines()) == 1
    assert state.message.startswith("inputs[0].source: ")
    return state.message


@pytest.mark.parametrize("left", [0, 10, 0.5, 0.99])
def test_an_uploaded_archive_that_was_cut(rig: Rig, left: float) -> None:
    task = rig.submit("cat given.txt", inputs=["inputs/"])
    file = rig.folder / "store" / task.input(0)
    data = file.read_bytes()
    file.write_bytes(data[: int(left * len(data)) if 0 < left < 1 else int(left)])
    assert "cut off" in fails(rig, task, Reason.INPUT_REJECTED)


def test_an_uploaded_archive_that_was_damaged(rig: Rig) -> None:
    task = rig.submit("cat given.txt", inputs=["inputs/"])
    file = rig.folder / "store" / task.input(0)
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    assert "damaged" in fails(rig, task, Reason.INPUT_REJECTED)


def test_an_uploaded_archive_that_is_gone(rig: Rig) -> None:
    task = rig.submit("cat given.txt", inputs=["inputs/"])
    (rig.folder / "store" / task.input(0)).unlink()
    assert "is not there" in fails(rig, task, Reason.INPUT_MISSING)


@pytest.mark.parametrize("layout", ["archive", "files"])
@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_outputs_of_another_task(rig: Rig, layout: str, harm: str) -> None:
    command = {"run": "seq 10000 > made.txt", "shell": True}
    with rig.agent():
        first = rig.submit(command, outputs={"layout": layout})
        output = rig.finish(first).output
    assert output is not None
    assert output.layout == layout
    file = rig.folder / "store" / (output.archive or f"{output.folder}made.txt")
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        file.unlink()
    second = rig.submit("cat made.txt", inputs=[f"task://{first.id}/made.txt"])
    fails(rig, second, Reason.INPUT_REJECTED if harm == "cut" else Reason.INPUT_MISSING)
