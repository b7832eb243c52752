"""Where settings come from, beside flags and the environment."""

from pathlib import Path
from typing import Any

from pydantic_settings import TomlConfigSettingsSource


def at_home(path: Path) -> Path:
    """Put the home folder in the place of `~`. Raises ValueError."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{str(path)!r}: {error}") from None


class TomlFile(TomlConfigSettingsSource):
    """A file of settings: the paths in it are relative to its folder."""

    def __call__(self) -> dict[str, Any]:
        """Give the settings of the file."""
        fields = super().__call__()
        folder, file = fields.get("state_dir"), self.toml_file_path
        if isinstance(folder, str) and isinstance(file, Path):
            fields["state_dir"] = file.absolute().parent / at_home(Path(folder))
        return fields
