"""Reads the configuration, and says in words what is wrong with it."""

import os
import stat
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsError

from simagent.config import PREFIX, Config, ConfigError
from simagent.config_mpi import MpiSettings
from simagent.config_origins import DEFAULT, origin_of, origins
from simagent.config_sources import at_home, setting_files
from simagent.domain.times import Times

_NO_SETTINGS = {
    "CONFIG",
    "DEBUG",
    "TASK_ID",
    "EPOCH",
    "ARRAY_INDEX",
    "ARRAY_SIZE",
    "ENTRY",
    "RESTART",
}
"""Of the command line, and of tasks, from within which it may be called."""
_NO_SETTINGS_BEGIN = ("TEST_", "FAULTS_", "CHAOS_")
"""Of the project's own tests."""


_TABLES: Mapping[str, type[BaseModel]] = {"times": Times, "mpi": MpiSettings}


def load_config(path: Path | None = None, **flags: Any) -> Config:
    """Read the configuration; ``flags`` that are None do not count. Raises `ConfigError`."""
    return load_settings(path, **flags)[0]


def load_settings(path: Path | None = None, **flags: Any) -> tuple[Config, dict[str, str]]:
    """Read the configuration, and tell where each setting comes from. Raises `ConfigError`."""
    model = _model(path)
    given = {name: value for name, value in flags.items() if value is not None}
    known = origins(model, given)
    mistakes = list(_unknown_variables())
    try:
        config = model(**given)
    except ValidationError as error:
        mistakes += _explain(error, known)
    except SettingsError as error:
        mistakes.append(_unreadable(error))
    except (OSError, ValueError) as error:
        mistakes.append(str(error))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return config, known


def _model(path: Path | None) -> type[Config]:
    """Give the settings with the files that they are read from. Raises `ConfigError`."""
    try:
        path = path and at_home(path)
        if path is not None and not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"config: {path} is not a file")
    except FileNotFoundError:
        raise ConfigError(f"config: {path} does not exist") from None
    except (OSError, ValueError) as error:
        why = f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise ConfigError(f"config: {why}") from None

    class FromFiles(Config):
        files = setting_files(path)

    return FromFiles


def _unknown_variables() -> Iterator[str]:
    """Yield a line for each SIMAGENT_* variable that would go unheeded."""
    known = {name.upper() for name in Config.model_fields} | _NO_SETTINGS
    for variable in sorted(os.environ):
        if not variable.upper().startswith(PREFIX):
            continue
        name = variable.upper().removeprefix(PREFIX)
        if name not in known and not name.startswith(_NO_SETTINGS_BEGIN):
            similar = get_close_matches(name, known, n=1)
            yield f"{variable}: unknown setting: " + (
                f"did you mean {PREFIX}{similar[0]}?" if similar else "unset it"
            )


def _unreadable(error: SettingsError) -> str:
    """Name the variable that is no JSON, where that is what is wrong."""
    name = str(error).partition('"')[2].partition('"')[0]
    variable = f"{PREFIX}{name.upper()}"
    if variable not in os.environ:
        return str(error)
    return f"{variable}: {os.environ[variable]!r} is not JSON, as lists and tables have to be"


def _explain(error: ValidationError, known: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each mistake: the setting, what is wrong with it, the fix, where it is."""
    for detail in error.errors():
        path = [str(part) for part in detail["loc"]]
        text = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            model = _TABLES.get(path[0], Config) if path[1:] else Config
            similar = get_close_matches(path[-1], model.model_fields, n=1)
            text = f"unknown setting: {f'did you mean {similar[0]}?' if similar else 'remove it'}"
        name = ".".join(path)
        where = origin_of(name, known)
        flag = where in (DEFAULT, f"--{name.replace('_', '-')}")
        yield f"{name}: {text}" + ("" if flag else f" ({where})")
