"""What an agent does while no file descriptor is left to it."""

import socket
from pathlib import Path

import pytest

from fakes.descriptors import none_left
from simagent.worker.notify import Notifier


def test_what_systemd_cannot_be_told_just_now_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notifier = Notifier()
        with none_left():
            notifier.alive()
        notifier.ready()
        assert systemd.recv(100) == b"READY=1"
