"""Tells of each setting where it comes from."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic_settings import (
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsError,
    TomlConfigSettingsSource,
)

from simagent.config import PREFIX, Config
from simagent.config_sources import CONFIG_CREDENTIAL

DEFAULT = "default"


def origins(model: type[Config], flags: Mapping[str, Any]) -> dict[str, str]:
    """Name the source of each setting that has one, by the setting's dotted name.

    ``model`` is the one that knows the files. A source that cannot be read names nothing.
    """
    init, env = InitSettingsSource(model, dict(flags)), EnvSettingsSource(model)
    found: dict[str, str] = {}
    try:
        sources = model.settings_customise_sources(model, init, env, env, init)
    except (OSError, ValueError):
        sources = (init, env)
    for source in sources:
        try:
            fields = source()
        except (SettingsError, OSError, ValueError):
            continue
        for name in _names(fields):
            found.setdefault(name, _label(source, name))
    return found


def origin_of(name: str, known: Mapping[str, str]) -> str:
    """Tell where a setting comes from: itself, or the table or list that it is in."""
    while name:
        if name in known:
            return known[name]
        name = name.rpartition(".")[0]
    return DEFAULT


def _names(fields: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _names(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def _label(source: PydanticBaseSettingsSource, name: str) -> str:
    if isinstance(source, InitSettingsSource) and not isinstance(source, TomlConfigSettingsSource):
        return f"--{name.replace('_', '-')}"
    if isinstance(source, TomlConfigSettingsSource):
        return _file(source.toml_file_path)
    return f"{PREFIX}{name.partition('.')[0].upper()}"


def _file(path: object) -> str:
    if isinstance(path, Path) and path.name == CONFIG_CREDENTIAL:
        return f"credential {CONFIG_CREDENTIAL}"
    return str(path)
