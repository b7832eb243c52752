"""Where the agent's own log goes, and in which form."""

import json as jsonlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import EventDict

from simagent.cli.text import printable, size
from simagent.config import Config
from simagent.domain.events import Event

_STDERR = 2


class LogFile:
    """A log that ends nothing: lines that cannot be written are counted, and told of later.

    It writes past Python's buffers, which would keep a line that failed and fail with it again.
    """

    def __init__(self, fd: int, *, json: bool) -> None:
        self._fd = fd
        self._json = json
        self._lost = 0
        self._torn = False
        self._mutex = threading.Lock()

    def msg(self, line: str) -> None:
        """Write a line, unless the disk is full, the reader gone, or the file broken."""
        with self._mutex:
            data = self._about_lost() + f"{line}\n".encode(errors="backslashreplace")
            written = 0
            try:
                while written < len(data):
                    written += os.write(self._fd, data[written:])
            except OSError:
                self._lost += 1
                self._torn = self._torn or written > 0
            else:
                self._lost, self._torn = 0, False

    debug = info = warning = error = critical = msg

    def _about_lost(self) -> bytes:
        if not self._lost:
            return b""
        line = f"{self._lost} lines of this log could not be written"
        if self._json:
            line = jsonlib.dumps({"level": "warning", "event": line})
        return (b"\n" if self._torn else b"") + f"{line}\n".encode()


def warnings_to_stderr() -> None:
    """Log for a client command: nothing but warnings, for a person to read."""
    _configure(_STDERR, level="warning", json=False)


def to_stderr(config: Config) -> None:
    """Log for the daemon: JSON, one event a line, unless a person watches."""
    auto = config.log_format == "auto"
    _configure(
        _STDERR,
        level=config.log_level,
        json=not os.isatty(_STDERR) if auto else config.log_format == "json",
    )


def to_file(config: Config, tell: Callable[[str], None] | None = None) -> Path:
    """Log into the state folder, for a run whose terminal belongs to the simulation.

    ``tell`` is told what a person who waits there wants to know.
    """
    path = config.state_dir / "agent.log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    notices = [_Notices(tell)] if tell is not None else []
    _configure(fd, level=config.log_level, json=config.log_format != "pretty", also=notices)
    return path


class _Notices:
    """Tells why nothing happens: hosts or an image are not there yet, or cannot be had."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._told = ""

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> EventDict:
        text = ""
        if event.get("event") == Event.IMAGE_AWAITED:
            text = f"{printable(event['error'])}: it is asked for again"
        elif event.get("event") == Event.IMAGE_PULLING:
            of = f" of {size(event['of'])}" if event["of"] else ""
            text = f"fetching {event['image']}: {size(event['bytes'])}{of}"
        elif event.get("event") == Event.TASK_REFUSED:
            text = f"the task waits: {printable(event['reason'])}"
        if text and text != self._told:
            self._told = text
            self._tell(text)
        return event


def _configure(
    fd: int, *, level: str, json: bool, also: Sequence[structlog.typing.Processor] = ()
) -> None:
    file = LogFile(fd, json=json)
    processors: list[structlog.typing.Processor] = [
        *also,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=json),
    ]
    if json:
        processors += [
            structlog.processors.format_exc_info,
            structlog.processors.UnicodeDecoder(),
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        processors += [
            structlog.dev.ConsoleRenderer(
                colors=os.isatty(fd), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *_: file,
        cache_logger_on_first_use=False,
    )
