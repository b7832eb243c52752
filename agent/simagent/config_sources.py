"""Where settings come from, beside flags and the environment."""

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, TomlConfigSettingsSource

SYSTEM_CONFIG = Path("/etc/simagent/agent.toml")
CONFIG_CREDENTIAL = "simagent.config"
AWS_CREDENTIAL = "simagent.aws"
OF_SERVICES = tuple(
    Path("/run/credentials", f"{unit}.service") for unit in ("simagent", "simagent-member")
)
"""Where systemd keeps the credentials of the agent's units while they run: for root alone."""


def at_home(path: Path) -> Path:
    """Put the home folder in the place of `~`. Raises ValueError."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{str(path)!r}: {error}") from None


def credential(name: str) -> Path | None:
    """Find a credential of systemd's: one of this process, else, for root, of an agent's unit."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder and os.geteuid() != 0:
        return None
    files = [each / name for each in ([Path(folder)] if folder else OF_SERVICES)]
    return next((file for file in files if file.is_file()), None)


def setting_files(named: Path | None) -> tuple[Path, ...]:
    """Give the files that have settings, the one that outweighs the others first.

    ``named`` stands for the system's file, and outside of the unit for its credential, too.
    """
    given = credential(CONFIG_CREDENTIAL)
    if named is not None:
        return (given, named) if given and os.environ.get("CREDENTIALS_DIRECTORY") else (named,)
    installed = SYSTEM_CONFIG if os.geteuid() == 0 and SYSTEM_CONFIG.is_file() else None
    return tuple(file for file in (given, installed) if file is not None)


def use_aws_keys(environ: MutableMapping[str, str]) -> None:
    """Let boto3 find AWS keys that are a credential of systemd's, unless others are named."""
    file = credential(AWS_CREDENTIAL)
    if file is not None:
        environ.setdefault("AWS_SHARED_CREDENTIALS_FILE", str(file))


class TomlFile(TomlConfigSettingsSource):
    """A file of settings: the paths in it are relative to its folder."""

    def __init__(self, settings_cls: type[BaseSettings], file: Path) -> None:
        """Read it. Raises ValueError, naming it."""
        try:
            super().__init__(settings_cls, file)
        except UnicodeDecodeError:
            raise ValueError(f"{file}: is not text in UTF-8") from None
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            raise ValueError(f"{file}: {why or error}") from error
        self._file = file

    def __call__(self) -> dict[str, Any]:
        """Give the settings of the file. Raises ValueError."""
        fields = super().__call__()
        folder = fields.get("state_dir")
        if isinstance(folder, str):
            try:
                path = at_home(Path(folder))
            except ValueError as error:
                raise ValueError(f"{self._file}: {error}") from None
            if self._file.name == CONFIG_CREDENTIAL and not path.is_absolute():
                raise ValueError(f"{self._file}: state_dir: {folder!r} is to be an absolute path")
            fields["state_dir"] = self._file.absolute().parent / path
        return fields
