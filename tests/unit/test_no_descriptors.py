"""What an agent does while no file descriptor is left to it."""

import errno
import gc
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fakes.clock import FakeClock
from fakes.descriptors import no_files_left
from fakes.steps import LIMIT, Folder, alive
from simagent.ports.clock import Wake
from simagent.ports.runtime import StepPlan
from simagent.runtimes.process import ProcessRuntime, ProcessStep
from simagent.transfer.tree import Tree
from simagent.worker import entry_records
from simagent.worker.diskwatch import DiskWatch
from simagent.worker.drain import DrainFile
from simagent.worker.identity import StateFolderError, identify
from simagent.worker.journal import Journals
from simagent.worker.notify import Notifier
from simagent.worker.span import keep_folder_alive
from simagent.worker.steps import StepRunner


def test_an_event_that_cannot_be_made_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: ignored.append(told.exc_value))
    with no_files_left(), pytest.raises(OSError, match="open files"):
        Wake()
    gc.collect()
    assert ignored == []


def test_what_systemd_cannot_be_told_just_now_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notifier = Notifier()
        with no_files_left():
            notifier.alive()
        notifier.ready()
        assert systemd.recv(100) == b"READY=1"


def test_a_step_that_cannot_be_looked_at_is_not_taken_for_one_that_ended(tmp_path: Path) -> None:
    folder = Folder(tmp_path, ProcessRuntime())
    plan = folder.plan("sleep", "600")
    folder.runtime.start(plan)
    (pid,) = folder.marked()
    for but in range(4):  # the next agent's looks
        with no_files_left(but=but):
            try:
                step = ProcessRuntime().attach(plan)
            except OSError:
                continue
            assert step is not None
            assert step.wait(0.0) is None
    step = ProcessRuntime().attach(plan)
    assert step is not None
    assert alive(pid)
    step.stop(5.0)
    exit_ = step.wait(LIMIT)
    assert exit_ is not None
    assert exit_.stopped


def test_the_end_of_a_step_is_read_once_that_can_be(tmp_path: Path) -> None:
    folder = Folder(tmp_path, ProcessRuntime())
    step = folder.runtime.start(folder.plan("sh", "-c", "sleep 0.2; exit 7"))
    with no_files_left():
        assert step.wait(LIMIT) is None
    exit_ = step.wait(LIMIT)
    assert exit_ is not None
    assert exit_.exit_code == 7


def test_a_step_that_cannot_be_looked_at_when_it_has_started_goes_on(tmp_path: Path) -> None:
    class Short(ProcessRuntime):
        looks = 0

        def attach(self, plan: StepPlan) -> ProcessStep | None:
            self.looks += 1
            if self.looks == 2:  # the first finds that it was never started
                raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
            return super().attach(plan)

    folder = Folder(tmp_path, Short())
    runner = StepRunner.__new__(StepRunner)
    runner._runtime = folder.runtime
    step = runner._start(folder.plan("sh", "-c", "exit 7"), None)
    exit_ = step.wait(LIMIT)
    assert exit_ is not None
    assert exit_.exit_code == 7


@pytest.mark.parametrize("name", ["agent.json", "machine-id", "boot_id"])
def test_an_agent_that_cannot_read_who_it_is_becomes_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    me = identify(tmp_path)
    read = Path.read_text

    def short(path: Path, *how: Any, **more: Any) -> str:
        if path.name == name:  # at this moment alone: the next file can be opened
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        return read(path, *how, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", short)
        with pytest.raises(StateFolderError, match="open files"):
            identify(tmp_path)
    assert identify(tmp_path).agent == me.agent


def test_what_an_earlier_agent_left_stays_while_it_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journals, run = Journals(tmp_path), tmp_path / "run"
    attempt, ended = journals.root / "p.T1.1", list[Path]()
    for folder, name in ((attempt, "journal.json"), (run, "entry.json")):
        folder.mkdir()
        (folder / name).write_text("{}")

    def short(path: Path) -> bytes:
        if not path.exists():
            raise FileNotFoundError(path)
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    monkeypatch.setattr(Path, "read_bytes", short)
    with pytest.raises(OSError, match="open files"):
        list(journals.all(end=ended.append))
    with pytest.raises(OSError, match="open files"):
        entry_records.read(run, FakeClock())
    assert attempt.exists()
    assert ended == []
    assert run.exists()


def test_what_an_attempt_runs_is_kept_alive_as_far_as_it_is_found(tmp_path: Path) -> None:
    ctx, runtime = SimpleNamespace(runtimes={}), ProcessRuntime()
    ctx.runtimes["process"] = runtime
    (tmp_path / "doors").mkdir()
    with no_files_left():
        keep_folder_alive(ctx, tmp_path)  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_opened_takes_no_file_descriptor_away(tmp_path: Path) -> None:
    with no_files_left(but=1):  # it takes two
        for _ in range(3):
            with pytest.raises(OSError, match="open files"):
                Tree(tmp_path)
        os.close(os.open(tmp_path, os.O_RDONLY))


def test_a_drain_stands_while_the_wish_for_it_cannot_be_read(tmp_path: Path) -> None:
    drain = DrainFile(tmp_path)
    drain.ask(until=7.0)
    assert drain.asked
    with no_files_left():
        assert drain.asked
    drain.withdraw()
    assert not drain.asked


def test_what_was_set_aside_expires_when_it_can_be_looked_at(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    stray = tmp_path / "set-aside" / "stray"
    stray.mkdir(parents=True)
    with no_files_left():
        journals.expire(before=1e12, agent="a")
    journals.expire(before=1e12, agent="a")
    assert not stray.exists()


def test_logs_are_trimmed_again_once_they_can_be_opened(tmp_path: Path) -> None:
    path, printed = tmp_path / "stdout", b"a" * (8 << 20)
    path.write_bytes(printed)
    journal = SimpleNamespace(entry=SimpleNamespace(max_log_bytes=1 << 20), logs=tmp_path)
    watch = DiskWatch(SimpleNamespace(), journal, SimpleNamespace())  # type: ignore[arg-type]
    with no_files_left():
        watch._trim()
    assert path.read_bytes() == printed
    watch._trim()
    assert path.read_bytes().count(b"a") < len(printed)
