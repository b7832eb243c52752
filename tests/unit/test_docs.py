"""The tables of the documents, held against the code they describe."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from simagent.cli.commands import app
from simagent.cli.options import COMMON
from simagent.domain.events import Event
from simagent.domain.reasons import Reason
from simagent.domain.state import HELD, TERMINAL, TRANSITIONS, Status
from simagent.telemetry.tally import Count
from simagent.worker.exposition import Gauge

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCE = ROOT / "agent" / "simagent"

# https://github.com/ga4gh/task-execution-schemas, version 1.1: tesState
TES = {
    *("UNKNOWN", "QUEUED", "INITIALIZING", "RUNNING", "PAUSED", "COMPLETE", "EXECUTOR_ERROR"),
    *("SYSTEM_ERROR", "CANCELED", "CANCELING", "PREEMPTED"),
}


def tables(text: str) -> dict[str, list[list[str]]]:
    """Give the rows of each table of a document, by the name of its first column."""
    found: dict[str, list[list[str]]] = {}
    rows: list[list[str]] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            rows = []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not rows:
            found[cells[0]] = rows
        rows.append(cells)
    return {name: rows[2:] for name, rows in found.items()}


def table(document: str, first_column: str) -> list[list[str]]:
    return tables((DOCS / document).read_text())[first_column]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


def test_tables_are_found() -> None:
    text = "| a | b |\n|---|---|\n| `x` | 1 |\n| `y` | |\n\n| c |\n|---|\n"
    assert tables(text) == {"a": [["`x`", "1"], ["`y`", ""]], "c": []}


def test_each_status_has_its_row() -> None:
    rows = table("states.md", "status")
    assert [row[0] for row in rows] == [f"`{status.value}`" for status in Status]
    assert all(all(cell for cell in row) and len(row) == 5 for row in rows)


def test_names_of_tes_are_those_of_tes() -> None:
    rows = table("states.md", "status")
    used = {name for row in rows for name in codes(row[4])}
    assert used
    assert used <= TES


def test_the_transitions_are_those_of_the_code() -> None:
    rows = table("states.md", "from")
    documented = {codes(row[0])[0]: set(codes(row[1])) for row in rows}
    assert len(documented) == len(rows)
    assert documented == {
        status.value: {target.value for target in TRANSITIONS[status]} for status in Status
    }


def test_who_holds_and_what_is_final() -> None:
    text = " ".join((DOCS / "states.md").read_text().split())
    held = ", ".join(f"`{status.value}`" for status in Status if status in HELD)
    assert held.replace(", `finalizing`", " and `finalizing` are held") in text
    assert {status for status in Status if not TRANSITIONS[status] - {Status.DELETED}} == TERMINAL


def test_each_reason_has_its_row() -> None:
    rows = table("states.md", "reason")
    documented = [(codes(row[0])[0], row[1]) for row in rows]
    assert documented == [(reason.value, reason.explanation) for reason in Reason]


def test_each_reason_leads_somewhere() -> None:
    outcomes = {f"`{status.value}`" for status in TERMINAL - {Status.DELETED, Status.SUCCEEDED}}
    for row in table("states.md", "reason"):
        start = row[2].split(",")[0].split(":")[0]
        assert start in outcomes | {"again", "nothing"}, row


def test_each_event_has_its_row() -> None:
    rows = table("events.md", "event")
    documented = [(codes(row[0])[0], row[1], tuple(codes(row[2]))) for row in rows]
    assert documented == [(event.value, event.explanation, event.fields) for event in Event]


def test_each_metric_has_its_row() -> None:
    for kind, ending, known in (("gauge", "", Gauge), ("counter", "_total", Count)):
        rows = table("metrics.md", kind)
        documented = [(codes(row[0])[0], tuple(codes(row[1])), row[2]) for row in rows]
        assert documented == [
            (f"simagent_{it.value}{ending}", it.labels, it.explanation) for it in known
        ]


def logged(source: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the names of the events that are logged where they are named, with their fields."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and node.args):
            continue
        first, called = node.args[0], node.func
        if not (isinstance(first, ast.Attribute) and isinstance(called, ast.Attribute)):
            continue
        if isinstance(first.value, ast.Name) and first.value.id == "Event":
            fields = {keyword.arg for keyword in node.keywords if keyword.arg}
            # The holder's own `_log` adds what is the same for all events of an attempt.
            yield first.attr, fields | ({"task", "epoch"} if called.attr == "_log" else set())


def test_logged_events_are_found() -> None:
    source = "log.info(Event.A, x=1)\nself._log(Event.B, y=2)\nf(Event.C)\nlog.info('text', z=3)"
    assert list(logged(source)) == [("A", {"x"}), ("B", {"task", "epoch", "y"})]


def test_events_are_logged_with_their_fields() -> None:
    missing = {
        (path.name, name): lacking
        for path in SOURCE.rglob("*.py")
        for name, fields in logged(path.read_text())
        if (lacking := set(Event[name].fields) - fields)
    }
    assert missing == {}


def test_every_event_is_used() -> None:
    sources = [p for p in SOURCE.rglob("*.py") if p.name != "events.py"]
    text = "\n".join(path.read_text() for path in sources)
    assert [event.name for event in Event if f"Event.{event.name}" not in text] == []


def test_each_command_has_its_section_and_each_option_its_line() -> None:
    sections = re.split(r"^## simagent ", (DOCS / "cli.md").read_text(), flags=re.MULTILINE)[1:]
    documented = {section.split()[0]: section for section in sections}
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert list(documented) == list(commands)
    lacking = {
        (name, option)
        for name, command in commands.items()
        for parameter in command.params
        if parameter.name not in COMMON and parameter.param_type_name == "option"
        for option in parameter.opts
        if f"`{option}`" not in documented[name]
    }
    assert lacking == set()


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert [target for target in targets if not (DOCS / target).exists()] == []
