"""The import rule of the design, read off the source by a parser: nothing is imported to check it.

domain <- ports <- adapters, cluster, ledger, transfer, telemetry <- worker, client
<- engines <- wiring <- api <- cli.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import simagent
from simagent import api

PACKAGE = "simagent"
ROOT = Path(__file__).parents[2] / "agent" / PACKAGE

BASE = frozenset({"domain", "ports"})
CORE = BASE | {"cluster", "ledger", "transfer", "telemetry"}
ADAPTERS = frozenset({"queues", "stores", "runtimes", "launchers", "clouds"})

# What each part of the package may import of the others; "" is the package's own __init__.
ALLOWED: Mapping[str, frozenset[str]] = {
    "": frozenset({"api"}),  # when it is asked for what it hands out
    "domain": frozenset(),
    "shim": frozenset(),
    "mpi_probe": frozenset(),
    "ports": frozenset({"domain"}),
    "queues": BASE,
    "stores": BASE,
    "runtimes": BASE | {"shim"},
    "launchers": BASE,
    "clouds": BASE,
    "ledger": BASE,
    "cluster": BASE,
    "transfer": BASE,
    "telemetry": BASE,
    "worker": CORE,
    "client": CORE,
    "config": BASE | {"config_mpi", "config_sources", "config_urls"},
    "config_load": BASE | {"config", "config_mpi", "config_origins", "config_sources"},
    "config_mpi": frozenset({"domain"}),
    "config_origins": frozenset({"config", "config_sources"}),
    "config_sources": frozenset(),
    "config_urls": frozenset(),
    "engines": BASE | {"queues", "stores", "config"},
    "wiring": CORE | ADAPTERS | {"worker", "client", "config", "engines"},
    "api": CORE | {"client", "config", "config_load", "wiring"},
    "cli": CORE
    | {
        "worker",
        "client",
        "config",
        "config_load",
        "config_origins",
        "config_sources",
        "engines",
        "wiring",
        "api",
        "mpi_probe",
    },
    "__main__": frozenset({"cli"}),
}

# Commands about tasks stand on the Python client alone, as other programs do. These are about the
# agent of this machine, what it needs, and the group that it looks after.
OF_THE_MACHINE = frozenset(
    {
        "cluster_check",
        "config_check",
        "daemon",
        "doctor",
        "doctor_engines",
        "doctor_mpi",
        "doctor_users",
        "draining",
        "images",
        "mpi_check",
        "policies",
        "running",
        "setup",
        "setup_command",
        "status",
        "sweeping",
    }
)
BEHIND_THE_CLIENT = ADAPTERS | frozenset(
    {"client", "engines", "ledger", "ports", "transfer", "telemetry", "wiring", "worker"}
)
ERRORS_FOR_PEOPLE = "failures"
"""The module that knows all errors, to say them."""

# The domain is pure: it computes, and leaves reading, writing and waiting to others.
DOMAIN_MAY_NOT = frozenset(
    {"asyncio", "http", "io", "logging", "multiprocessing", "os", "psutil", "select", "shutil"}
    | {"signal", "socket", "sqlite3", "structlog", "subprocess", "sys", "tempfile", "threading"}
    | {"time", "urllib", "urllib3", "yaml"}
)

# Heavy or dangerous libraries, and the only parts that may import them.
ONLY_IN: Mapping[str, frozenset[str]] = {
    "boto3": frozenset({"queues", "stores", "clouds"}),
    "botocore": frozenset({"queues", "stores", "clouds"}),
    "docker": frozenset({"runtimes"}),
    "spython": frozenset({"runtimes"}),
    "mpi4py": frozenset({"mpi_probe"}),  # importing it initialises MPI; ranks alone run the probe
    "typer": frozenset({"cli"}),
    "rich": frozenset({"cli"}),
    "prometheus_client": frozenset({"worker"}),
}


@dataclass(frozen=True)
class Import:
    """One imported name: ``module`` in full, ``name`` where it is a `from` import."""

    line: int
    module: str
    name: str | None = None


def imports(source: str) -> Iterator[Import]:
    """Yield all imports of a module, wherever they stand in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (Import(node.lineno, module, alias.name) for alias in node.names)


def part_of(path: Path) -> str:
    """Tell which part of the package a file belongs to."""
    return (
        ""
        if path.name == "__init__.py" and len(path.parts) == 1
        else path.parts[0].removesuffix(".py")
    )


def objection(part: str, found: Import) -> str | None:
    """Say what is wrong with an import in this part, if anything is."""
    top, *rest = found.module.split(".")
    if top == "":
        return "relative imports hide which part is meant: write the name in full"
    if top == PACKAGE:
        other = rest[0] if rest else found.name or ""
        if other in ALLOWED and other not in ALLOWED[part] | {part, ""}:
            return f"{part} may not import {other}"
        return None
    if part == "shim" and top not in sys.stdlib_module_names:
        return f"the shim runs without any installed package, and {top} is one"
    if part == "domain" and top in DOMAIN_MAY_NOT:
        return f"the domain is pure, and {top} is not"
    if part == "domain" and top == "pathlib" and not (found.name or "").startswith("Pure"):
        return "the domain is pure: of pathlib it may import the Pure… classes alone"
    if top in ONLY_IN and part not in ONLY_IN[top]:
        return f"{part} may not import {top}"
    return None


def violations(root: Path) -> list[str]:
    """List what breaks the rule beneath a package's folder, as ``file:line: why``."""
    found = []
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root)
        part = part_of(path)
        if part not in ALLOWED:
            found.append(f"{path}:1: {part} is in no layer: name what it may import")
            continue
        for imported in imports(file.read_text()):
            why = objection(part, imported)
            if why:
                found.append(f"{path}:{imported.line}: {why}")
    return found


def past_the_client(root: Path) -> list[str]:
    """List what commands about tasks import that is not the client's to give."""
    found = []
    for file in sorted((root / "cli").glob("*.py")):
        if file.stem in OF_THE_MACHINE | {ERRORS_FOR_PEOPLE}:
            continue
        for imported in imports(file.read_text()):
            top, *rest = imported.module.split(".")
            other = rest[0] if rest else imported.name or ""
            if top == PACKAGE and other in BEHIND_THE_CLIENT:
                found.append(f"cli/{file.name}:{imported.line}: {other} is behind the client")
    return found


def module_graph(root: Path) -> dict[str, set[str]]:
    """Map each module to those of the package that it imports.

    Without the package's own __init__: it hands the client out to who asks for it, later.
    """
    names = {}
    for file in root.rglob("*.py"):
        parts = (PACKAGE, *file.relative_to(root).with_suffix("").parts)
        names[".".join(parts).removesuffix(".__init__")] = file
    names.pop(PACKAGE, None)
    graph = {}
    for name, file in names.items():
        targets = set()
        for found in imports(file.read_text()):
            submodule = f"{found.module}.{found.name}"
            targets.add(submodule if submodule in names else found.module)
        graph[name] = (targets & names.keys()) - {name}
    return graph


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Give the modules that are left when all that import nothing of the rest are taken away."""
    left = {name: set(targets) for name, targets in graph.items()}
    while free := {name for name, targets in left.items() if not targets}:
        left = {name: targets - free for name, targets in left.items() if name not in free}
    return sorted(left)


def write(root: Path, path: str, source: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(source)


def test_the_import_rule_holds() -> None:
    assert violations(ROOT) == []


def test_commands_about_tasks_stand_on_the_client_alone() -> None:
    assert past_the_client(ROOT) == []


def test_a_command_that_goes_past_the_client_is_named(tmp_path: Path) -> None:
    write(tmp_path, "cli/x.py", "from simagent.api import Client\nimport simagent.wiring")
    write(tmp_path, "cli/doctor.py", "import simagent.wiring")
    assert past_the_client(tmp_path) == ["cli/x.py:2: wiring is behind the client"]


def test_the_package_is_imported_without_the_client() -> None:
    code = "import simagent, sys; print(*(m for m in sys.modules if m.startswith('simagent')))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert loaded == ["simagent"]


def test_what_the_package_names_is_what_the_client_gives() -> None:
    assert set(simagent.__all__) == {*api.__all__, "__version__"}
    for name in api.__all__:
        assert getattr(simagent, name) is getattr(api, name)
        assert getattr(simagent, name).__doc__
    with pytest.raises(AttributeError, match="Cleint"):
        simagent.Cleint  # noqa: B018


def test_no_module_imports_itself_through_others() -> None:
    assert cycle(module_graph(ROOT)) == []


def test_the_check_sees_the_whole_package() -> None:
    assert "simagent.domain.spec" in module_graph(ROOT)["simagent.ledger"]


@pytest.mark.parametrize(
    ("path", "source", "why"),
    [
        ("domain/x.py", "import os", "os"),
        ("domain/x.py", "from pathlib import Path", "pathlib"),
        ("domain/x.py", "from simagent.ports.store import Store", "may not import ports"),
        ("ports/x.py", "from simagent import ledger", "may not import ledger"),
        ("stores/x.py", "from simagent.queues.sqlite import X", "may not import queues"),
        ("stores/x.py", "from ..queues import sqlite", "relative"),
        ("stores/x.py", "import simagent.config", "may not import config"),
        ("transfer/x.py", "from simagent.stores.directory import X", "may not import stores"),
        ("telemetry/x.py", "import boto3", "may not import boto3"),
        ("worker/x.py", "def f():\n    from simagent.stores import X", "may not import stores"),
        ("worker/x.py", "from mpi4py import MPI", "may not import mpi4py"),
        ("worker/x.py", "import typer", "may not import typer"),
        ("client.py", "import simagent.wiring", "may not import wiring"),
        ("wiring.py", "from simagent.cli import main", "may not import cli"),
        ("cli/x.py", "from simagent.stores.directory import X", "may not import stores"),
        ("shim.py", "from simagent import __version__, domain", "may not import domain"),
        ("shim.py", "import psutil", "installed package"),
        ("helpers.py", "", "in no layer"),
    ],
)
def test_a_violation_is_named_with_its_place(
    tmp_path: Path, path: str, source: str, why: str
) -> None:
    write(tmp_path, path, source)
    (line,) = violations(tmp_path)
    assert line.startswith(f"{path}:")
    assert why in line


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("__init__.py", "import importlib.metadata"),
        ("domain/x.py", "from pathlib import PurePosixPath\nfrom simagent.domain import keys"),
        ("queues/sqs.py", "import boto3\nfrom simagent.ports.queue import Queue"),
        ("worker/x.py", "from simagent import __version__\nfrom simagent.ledger import Ledger"),
        ("wiring.py", "from simagent.stores.directory import X"),
    ],
)
def test_what_the_rule_allows_passes(tmp_path: Path, path: str, source: str) -> None:
    write(tmp_path, path, source)
    assert violations(tmp_path) == []


def test_a_circle_is_found(tmp_path: Path) -> None:
    write(tmp_path, "worker/a.py", "from simagent.worker import b")
    write(tmp_path, "worker/b.py", "from simagent.worker.c import X")
    write(tmp_path, "worker/c.py", "import simagent.worker.a")
    write(tmp_path, "worker/d.py", "import json")
    names = [f"simagent.worker.{letter}" for letter in "abc"]
    assert cycle(module_graph(tmp_path)) == names
