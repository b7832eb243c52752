"""What an agent does while no file descriptor is left to it."""

import socket
from pathlib import Path

import pytest

from fakes.descriptors import no_files_left
from fakes.steps import LIMIT, Folder, alive
from simagent.runtimes.process import ProcessRuntime
from simagent.worker.notify import Notifier


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
