"""Each example of docs/python.md runs as it is, beside an agent, and prints what it says."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.cli import Cli
from simagent import Client

DOCUMENT = Path(__file__).parents[2] / "docs" / "python.md"
BLOCK = re.compile(r"^```(\S+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield each example that is to run, and what it prints, where that is told."""
    blocks = [(m[1], m[2].strip(), m[3]) for m in BLOCK.finditer(text)]
    for (kind, note, code), after in zip(blocks, [*blocks[1:], ("", "", "")], strict=True):
        if kind == "python" and note != "no-run":
            yield code, after[2] if after[0] == "text" else None


EXAMPLES = list(examples(DOCUMENT.read_text()))


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    cli = Cli(tmp_path_factory.mktemp("docs"))
    (cli.folder / "case").mkdir()
    (cli.folder / "case" / "run.sh").write_text("echo mean of 3 numbers: 2 | tee mean.txt\n")
    (cli.folder / "task.toml").write_text('name = "of the file"\ncommands = ["true"]\n')
    with cli.agent():
        yield cli


def idle(cli: Cli) -> None:
    """Wait until the agent has shown itself, and the tasks of earlier examples have ended."""
    client = Client(store=f"file://{cli.state}/store", queue=f"sqlite://{cli.state}/queue.db")
    deadline = time.monotonic() + 60
    while [agent.state for agent in client.agents()] != ["idle"]:
        assert time.monotonic() < deadline, "the agent does not become idle"
        time.sleep(0.1)


def test_examples_are_found() -> None:
    text = "```python\na\n```\n\n```text\nb\n```\n```python no-run\nc\n```\n```python\nd\n```\n"
    assert list(examples(text)) == [("a\n", "b\n"), ("d\n", None)]
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_example_prints_what_is_told(cli: Cli, number: int) -> None:
    code, told = EXAMPLES[number]
    idle(cli)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=cli.folder,
        env=cli.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert told is None or done.stdout == told
