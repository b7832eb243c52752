"""What simulator.yaml says, checked."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl, model_validator

ROOT = Path(__file__).parents[1]
"""The folder in which each simulator has one of its own."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _is_regex(text: str) -> str:
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if groups > 1:
        raise ValueError("one group at most: the number")
    return text


class Check(_Strict):
    """A number, or a text, that a file of the smoke case must hold."""

    what: Annotated[str, Field(min_length=1)]
    file: str
    """Beneath the outputs; stdout.txt and stderr.txt are those of all commands."""
    regex: Annotated[str, AfterValidator(_is_regex)]
    """Its last match counts; its group is the number; ^ and $ are those of a line."""
    expected: float | None = None
    """Without it a match is enough."""
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @model_validator(mode="after")
    def _has_a_group_where_a_number_is_expected(self) -> Self:
        if (re.compile(self.regex).groups == 1) != (self.expected is not None):
            raise ValueError("`expected` and a group in `regex` belong together")
        return self

    def objection(self, outputs: Path) -> str | None:
        """Say what is wrong with the outputs, if anything is."""
        file = outputs / self.file
        if not file.is_file():
            return f"{self.what}: there is no {self.file}"
        text = file.read_text(errors="replace")
        found = list(re.finditer(self.regex, text, re.MULTILINE))
        if not found:
            return f"{self.what}: {self.file} does not say"
        if self.expected is None:
            return None
        value = float(found[-1].group(1))
        if abs(value - self.expected) <= self.tolerance:
            return None
        return f"{self.what}: {value:.12g} instead of {self.expected:.12g} ± {self.tolerance:g}"


class Mpi(_Strict):
    """The MPI that the simulator is linked against, as the image's labels say, too."""

    flavour: Literal["openmpi", "mpich"]
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]


class Simulator(_Strict):
    """One simulator on the shelf."""

    format: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    about: Annotated[str, Field(min_length=1)]
    base: Literal["trixie", "bookworm"]
    """The release of Debian it is from."""
    mpi: Mpi | None = None
    commands: Annotated[list[str], Field(min_length=1)]
    """The programs a task would call."""
    licence: Annotated[str, Field(min_length=1)]
    """By its SPDX name."""
    homepage: HttpUrl
    smoke: Annotated[list[Check], Field(min_length=1)]
    """What must be true after the task in smoke/task.toml."""

    @property
    def image(self) -> str:
        """The image's name and tag."""
        return f"simagent/{self.name}:{self.version}"

    @property
    def folder(self) -> Path:
        """Where all that belongs to it is."""
        return ROOT / self.name

    @property
    def task(self) -> Path:
        """The task of the smoke case."""
        return self.folder / "smoke" / "task.toml"


def load(name: str) -> Simulator:
    """Read a simulator's file.

    Raises:
        ValueError: There is none, or it is wrong.
    """
    file = ROOT / name / "simulator.yaml"
    if not file.is_file():
        raise ValueError(f"{name}: not on the shelf, which has {', '.join(names())}")
    found = Simulator.model_validate(yaml.safe_load(file.read_text()))
    if found.name != name:
        raise ValueError(f"{file}: the name differs from that of its folder")
    return found


def names() -> list[str]:
    """Give the names of all simulators, sorted."""
    return sorted(file.parent.name for file in ROOT.glob("*/simulator.yaml"))
