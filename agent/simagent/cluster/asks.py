"""The broker's side of `simagent.cluster.launch`: reads what the task wrote, and trusts none of it.

All is done beneath one open folder, by plain names: no link is followed out of it.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from simagent.cluster.launch import ASK_SUFFIX, ASKS, BELL, END_SUFFIX

MOST_COMMAND_BYTES: Final = (1 << 17) - 1
"""Linux takes no longer argument, and the daemon's line is one for the shell."""

_MOST_ADDRESS_BYTES = 300
_MOST_AT_ONCE = 1000
_NAME = re.compile(r"([0-9]{1,10}(?:\.[0-9]{1,4})?)" + re.escape(ASK_SUFFIX))
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


@dataclass(frozen=True, slots=True)
class Ask:
    """An ask by the number of its files; with ``trouble`` it is none that can be done."""

    name: str
    address: str = ""
    command: str = ""
    trouble: str = ""


class Reply:
    """The FIFO in which the script of an ask awaits its answers; readable when it went away."""

    def __init__(self, folder: int, name: str, owner: int) -> None:
        self._folder = folder
        self._name = name + END_SUFFIX
        self._owner = owner
        self._fd = -1

    def fileno(self) -> int:
        """Give the file descriptor: something is reported of it when nobody reads any more."""
        return self._fd

    def open(self) -> bool:
        """Open it; False while nobody reads there. Raises OSError where it is no such FIFO."""
        if self._fd >= 0:
            return True
        try:
            fd = os.open(self._name, os.O_WRONLY | _SAFELY, dir_fd=self._folder)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or error.errno != 6:  # ENXIO
                raise
            return False
        found = os.fstat(fd)
        if not stat.S_ISFIFO(found.st_mode) or found.st_uid != self._owner:
            os.close(fd)
            raise OSError(f"{self._name} is not a FIFO of the task's")
        self._fd = fd
        return True

    def say(self, line: str) -> None:
        """Write a line; nothing, where nobody reads."""
        text = "".join(c if c.isprintable() else " " for c in line)[:1000] + "\n"
        if self._fd >= 0:
            with suppress(OSError):
                os.write(self._fd, text.encode())

    def close(self) -> None:
        """Say no more, and remove it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with suppress(OSError):
            os.unlink(self._name, dir_fd=self._folder)


class Asks:
    """The asks in a folder that was laid for a task. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._folder = os.open(ASKS, flags, dir_fd=top)
            # Open for writing, too: so that it never ends, and whoever rings never waits.
            self._bell = os.open(BELL, os.O_RDWR | _SAFELY, dir_fd=top)
        finally:
            os.close(top)
        if not stat.S_ISFIFO(os.fstat(self._bell).st_mode):
            raise OSError(f"{folder / BELL} is no FIFO")
        self._owner = os.fstat(self._folder).st_uid

    def fileno(self) -> int:
        """Give the file descriptor: readable when somebody rang."""
        return self._bell

    def take(self) -> Iterator[Ask]:
        """Take the asks there are, some of them where there are very many."""
        with suppress(BlockingIOError):
            os.read(self._bell, 1 << 16)
        with os.scandir(self._folder) as entries:
            names = [entry.name for entry in islice(entries, _MOST_AT_ONCE)]
        for name in names:
            match = _NAME.fullmatch(name)
            if match:
                ask = self._take(name, match[1])
                if ask is not None:
                    yield ask

    def reply(self, ask: Ask) -> Reply:
        """Give the way to answer an ask."""
        return Reply(self._folder, ask.name, self._owner)

    def _take(self, name: str, number: str) -> Ask | None:
        try:
            fd = os.open(name, os.O_RDONLY | _SAFELY, dir_fd=self._folder)
        except OSError:
            self._remove(name)
            return None
        most = MOST_COMMAND_BYTES + _MOST_ADDRESS_BYTES
        try:
            found = os.fstat(fd)
            if not self._remove(name) or not stat.S_ISREG(found.st_mode):
                return None
            # A link to somebody else's file would be read, and told of, in his stead.
            if found.st_nlink != 1 or found.st_uid != self._owner:
                return None
            data = b""
            while len(data) <= most and (chunk := os.read(fd, most + 1 - len(data))):
                data += chunk
        finally:
            os.close(fd)
        address, _, command = data.partition(b"\n")
        if len(data) > most or len(command) > MOST_COMMAND_BYTES:
            return Ask(number, trouble=f"more than {MOST_COMMAND_BYTES} bytes to run")
        try:
            ask = Ask(number, address.decode("ascii"), command.decode())
        except UnicodeDecodeError:
            return Ask(number, trouble="what is to be run is not UTF-8")
        if "\0" in ask.command or not ask.command.strip():
            return Ask(number, trouble="there is nothing to run")
        return ask

    def _remove(self, name: str) -> bool:
        try:
            os.unlink(name, dir_fd=self._folder)
        except OSError:  # a folder, say
            return False
        return True
