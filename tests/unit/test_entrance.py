"""The socket at which relays reach a member's agent."""

import os
import threading
from pathlib import Path
from typing import cast

from simagent.cluster.duties import Duties
from simagent.cluster.entrance import Entrance
from simagent.ports.clock import SystemClock


def test_it_is_its_users_alone_and_files_of_other_threads_are_as_they_would_be(
    tmp_path: Path,
) -> None:
    """A umask that is set for it would be that of all threads: their folders were closed."""
    over, modes = threading.Event(), set[int]()

    def make() -> None:
        while not over.is_set():
            folder = tmp_path / "folder"
            folder.mkdir()
            modes.add(folder.stat().st_mode & 0o777)
            folder.rmdir()

    other = threading.Thread(target=make)
    other.start()
    entrance = Entrance(tmp_path / "s", cast(Duties, None), SystemClock(), users=[os.geteuid()])
    for _ in range(300):
        entrance.listen().close()
    over.set()
    other.join(60)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    assert len(modes) == 1
