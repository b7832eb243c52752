"""What `simagent status` makes of what an agent tells, which may be older or newer than it."""

from pathlib import Path
from typing import Any

import pytest

from simagent import __version__
from simagent.cli import status
from simagent.cli.status import show_status
from simagent.config import Config
from simagent.worker.snapshot import DiskView, EngineView, RunView, Snapshot, Stage, TaskView

PLAIN = Snapshot(
    role="agent",
    stage=Stage.TAKING_TASKS,
    agent="vm1-a",
    incarnation="i1",
    group="g",
    text="0 of 1 slots busy",
    pid=7,
    at=1e9,
    started=9e8,
    uptime=60.0,
    turned=2.0,
    slots=1,
    versions={"simagent": __version__, "python": "3.12.1", "journal": "1"},
)


@pytest.fixture
def shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Any:
    def show(**changes: Any) -> list[str]:
        fields = PLAIN.as_dict() | changes
        monkeypatch.setattr(status, "ask", lambda _folder, _within: fields)
        show_status(Config(state_dir=tmp_path), as_json=False)
        return capsys.readouterr().out.splitlines()

    return show


def test_of_an_idle_agent(shown: Any) -> None:
    lines = shown()
    assert lines[0] == "agent vm1-a  takes tasks"
    assert not any(line.startswith("!") for line in lines)
    assert "tells systemd  0 of 1 slots busy" in lines


def test_a_loop_that_hangs_comes_first(shown: Any) -> None:
    lines = shown(turned=130.0, hangs=True, notices=["the disk is full"])
    assert lines[1] == "! the main loop has not turned for 2 min 10 s: it hangs"
    assert lines[2] == "! the disk is full"


def test_what_fails_is_told_with_its_words(shown: Any) -> None:
    queue = EngineView(name="queue", url="sqs://q", answered=90.0, failing=61.0, error="no route")
    lines = shown(engines=[vars_of(queue)])
    (line,) = [line for line in lines if line.startswith("queue")]
    assert line.endswith("sqs://q  fails for 1 min 01 s: no route, answered 1 min 30 s ago")


def test_of_a_member(shown: Any) -> None:
    run = RunView(project="p", task="T1", epoch=2, entry="p.T1.2.0.1", age=5.0)
    lines = shown(role="member", runs=[vars_of(run)], slots=0)
    assert lines[0].startswith("member vm1-a")
    assert lines[-1].split() == ["T1", "2", "p.T1.2.0.1", "5", "s"]


def test_of_a_task_that_begins(shown: Any) -> None:
    task = TaskView(
        project="p", id="T1", epoch=1, status="preparing", since=9e8, beat=70, late=True
    )
    lines = shown(tasks=[vars_of(task)])
    assert lines[-1].startswith("T1    1        preparing  -")
    assert "1 min 10 s ago, late" in lines[-1]


def test_another_version_is_installed(shown: Any) -> None:
    lines = shown(versions={"simagent": "9.9", "python": "3.12.1", "journal": "2"})
    (line,) = [line for line in lines if line.startswith("versions")]
    assert f"simagent 9.9, Python 3.12.1; {__version__} is installed" in line


def test_of_an_agent_of_another_version(shown: Any) -> None:
    assert shown(stage="dreaming", engines=None, tasks=None, disk=None, turned=None)[0] == (
        "agent vm1-a  dreaming"
    )


def test_what_others_wrote_does_not_reach_the_terminal_as_it_is(shown: Any) -> None:
    disk = DiskView(path="/s", free=1, total=2)
    text = "\n".join(shown(notices=["\x1b[2Jgone"], agent="\x1b]0;x", disk=vars_of(disk)))
    assert "\x1b" not in text


def vars_of(view: Any) -> dict[str, Any]:
    return {name: getattr(view, name) for name in view.__dataclass_fields__}
