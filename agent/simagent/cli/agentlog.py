"""Where the agent's own log goes, and in which form."""

import logging
import sys
from pathlib import Path
from typing import TextIO

import structlog

from simagent.config import Config


def warnings_to_stderr() -> None:
    """Log for a client command: nothing but warnings, for a person to read."""
    _configure(sys.stderr, level="warning", json=False)


def to_stderr(config: Config) -> None:
    """Log for the daemon: JSON, one event a line, unless a person watches."""
    auto = config.log_format == "auto"
    _configure(
        sys.stderr,
        level=config.log_level,
        json=not sys.stderr.isatty() if auto else config.log_format == "json",
    )


def to_file(config: Config) -> Path:
    """Log into the state folder, for a run whose terminal belongs to the simulation."""
    path = config.state_dir / "agent.log"
    _configure(
        path.open("a", buffering=1), level=config.log_level, json=config.log_format != "pretty"
    )
    return path


def _configure(file: TextIO, *, level: str, json: bool) -> None:
    processors: list[structlog.typing.Processor] = [
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
                colors=file.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file),
        cache_logger_on_first_use=False,
    )
