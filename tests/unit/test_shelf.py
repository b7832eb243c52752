"""What the shelf of simulators says of itself is so, as far as no image is needed to tell."""

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from shelf.images import MPI_OF_DEBIAN
from shelf.model import ROOT, Check, Simulator, load, names
from simagent.domain.spec import Spec
from simagent.domain.support import unsupported

CHECK = {"what": "energy", "file": "log", "regex": r"^E = (\S+)$", "expected": -1.5}
SIMULATOR = {
    "format": 1,
    "name": "thing",
    "version": "1.0",
    "about": "Simulates things.",
    "base": "trixie",
    "commands": ["thing"],
    "licence": "MIT",
    "homepage": "https://example.org",
    "smoke": [CHECK],
}

each_simulator = pytest.mark.parametrize("name", names())


def test_the_shelf_has_what_was_promised() -> None:
    promised = {"lammps", "openfoam", "gromacs", "echo", "mpi-probe"}
    promised |= {"quantum-espresso", "nwchem", "calculix", "code-saturne"}
    assert promised <= set(names())


@each_simulator
def test_each_folder_is_complete(name: str) -> None:
    simulator = load(name)
    dockerfile = (simulator.folder / "Dockerfile").read_text()
    assert f"\nARG VERSION={simulator.version}\n" in dockerfile
    assert (f"FROM simagent/base:{simulator.base}\n" in dockerfile) or simulator.mpi is None
    users = re.findall(r"^USER (\S+)", dockerfile, re.MULTILINE)
    assert users[-1:] in ([], ["simulator"])
    assert "ENTRYPOINT" not in dockerfile
    definition = (simulator.folder / f"{name}.def").read_text()
    assert f"\nFrom: {simulator.image}\n" in definition


@each_simulator
def test_the_mpi_is_that_of_the_base(name: str) -> None:
    simulator = load(name)
    if simulator.mpi is not None:
        assert simulator.mpi.version == MPI_OF_DEBIAN[simulator.base]


@each_simulator
def test_each_smoke_case_is_a_task_for_its_image(name: str) -> None:
    simulator = load(name)
    spec = Spec.model_validate(tomllib.loads(simulator.task.read_text()))
    assert spec.image == simulator.image
    assert list(unsupported(spec)) == []
    for given in spec.inputs:
        assert (simulator.task.parent / given.source).exists()


@pytest.mark.parametrize(
    ("text", "objection"),
    [
        ("E = -1.5", None),
        ("E = 7\nE = -1.4999", None),
        ("E = -1.5\nE = -1.6", "energy: -1.6 instead of -1.5 ± 0.001"),
        ("E =", "energy: log does not say"),
        (None, "energy: there is no log"),
    ],
)
def test_a_number_is_compared(tmp_path: Path, text: str | None, objection: str | None) -> None:
    if text is not None:
        (tmp_path / "log").write_text(text)
    assert Check.model_validate(CHECK | {"tolerance": 1e-3}).objection(tmp_path) == objection


def test_a_text_may_be_enough(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("all is well\n")
    check = Check(what="its end", file="log", regex="^all is well$")
    assert check.objection(tmp_path) is None
    assert Check(what="its end", file="log", regex="no").objection(tmp_path) is not None


@pytest.mark.parametrize(
    ("mistake", "why"),
    [
        ({"smoke": []}, "smoke"),
        ({"licence": ""}, "licence"),
        ({"license": "MIT"}, "license"),
        ({"homepage": "example"}, "homepage"),
        ({"name": "Thing"}, "name"),
        ({"mpi": {"flavour": "openmpi", "version": "5"}}, "version"),
        ({"smoke": [CHECK | {"regex": "("}]}, "not a regular expression"),
        ({"smoke": [CHECK | {"regex": "no group"}]}, "belong together"),
        ({"smoke": [CHECK | {"regex": "(two) (groups)"}]}, "one group at most"),
        ({"smoke": [CHECK | {"expected": None}]}, "belong together"),
        ({"smoke": [CHECK | {"tolerance": -1}]}, "tolerance"),
    ],
)
def test_a_mistake_is_named(mistake: dict[str, object], why: str) -> None:
    assert Simulator.model_validate(SIMULATOR).image == "simagent/thing:1.0"
    with pytest.raises(ValidationError, match=why):
        Simulator.model_validate(SIMULATOR | mistake)


def test_a_simulator_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"lamps: not on the shelf, which has .*lammps"):
        load("lamps")


def test_each_simulator_is_in_the_documentation() -> None:
    text = (ROOT.parent / "docs" / "simulators.md").read_text().split("## Building")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| ([^|]+?) \|", text, re.MULTILINE)
    assert rows == [(name, load(name).version) for name in names()]
