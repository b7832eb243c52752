"""`simagent config`: what is wrong with settings, and where each comes from."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fakes.certificates import certificate
from fakes.cli import Cli


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def written(cli: Cli, text: str) -> Path:
    file = cli.folder / "agent.toml"
    file.write_text(text)
    return file


def checks(cli: Cli, *args: str | Path, code: int = 0) -> dict[str, dict[str, Any]]:
    found = json.loads(cli("config", "check", "--json", *args, code=code).stdout)
    assert found["ok"] == (code == 0)
    return {check["name"]: check for check in found["checks"]}


def test_good_settings_are_tried(cli: Cli) -> None:
    file = written(cli, "idle_timeout = '10 min'\nidle_action = 'command'\nidle_command = ['true']")
    done = cli("config", "check", file)
    assert done.stderr == ""
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert {line[0] for line in lines} == {"ok"}
    assert "compare-and-swap tried" in done.stdout
    assert "idle_command after 600 s without a task" in done.stdout


def test_mistakes_are_told_a_line_each_with_their_place(cli: Cli) -> None:
    file = written(cli, "grup = 'a'\nidle_timeout = '5 parsecs'\n[mpi]\nslots = 'many'")
    done = cli("config", "check", file, code=2)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("simagent: ") and line.endswith(f"({file})") for line in lines)
    told = json.loads(cli("config", "check", file, "--json", code=2).stdout)
    assert told == {
        "ok": False,
        "mistakes": [line.removeprefix("simagent: ") for line in lines],
        "checks": [],
    }


def test_a_file_that_is_no_toml_is_named(cli: Cli) -> None:
    file = written(cli, "group = ")
    (line,) = cli("config", "check", file, code=2).stderr.splitlines()
    assert line.startswith(f"simagent: {file}: Invalid value (")
    (line,) = cli("config", "check", cli.folder / "no.toml", code=2).stderr.splitlines()
    assert line.endswith("no.toml does not exist")


def test_what_settings_name_has_to_be_there(cli: Cli) -> None:
    empty = cli.folder / "ca.pem"
    empty.write_text("nothing")
    gone = cli.folder / "hosts"
    file = written(
        cli,
        f"s3_ca_bundle = '{empty}'\nsqs_ca_bundle = '{cli.folder}/none.pem'\n"
        "role = 'member'\nidle_timeout = 60\nidle_action = 'command'\n"
        f"idle_command = ['no-such-program']\n[mpi]\nhostfile = '{gone}'",
    )
    found = checks(cli, file, "--offline", code=1)
    assert "has no certificate that can be read" in found["s3_ca_bundle"]["text"]
    assert "No such file" in found["sqs_ca_bundle"]["text"]
    assert "cannot be read" in found["mpi.hostfile"]["text"]
    assert "needs the name of its cluster" in found["role"]["text"]
    assert found["idle_action"]["text"] == "there is no program no-such-program"
    assert "store" not in found


def test_certificates_are_counted(cli: Cli, tmp_path: Path) -> None:
    bundle = certificate(tmp_path, "s3.example")
    found = checks(cli, written(cli, f"s3_ca_bundle = '{bundle}'"), "--offline")
    assert found["s3_ca_bundle"]["text"].endswith(": 1 certificates")


def test_a_store_and_a_queue_that_do_not_answer_are_told(cli: Cli) -> None:
    cli.env |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    text = "store = 's3://bucket/x'\ns3_endpoint = 'http://127.0.0.1:1'\ns3_region = 'eu-west-1'\n"
    text += "queue = 'sqs://q'\nsqs_endpoint = 'http://127.0.0.1:1'\nsqs_region = 'eu-west-1'"
    found = checks(cli, written(cli, text), code=1)
    assert "nothing listens at" in found["store"]["text"]
    assert "nothing listens at" in found["queue"]["text"]
    assert checks(cli, written(cli, text), "--offline").keys() & {"store", "queue"} == set()


def test_a_credentials_file_that_cannot_be_read_is_told(cli: Cli) -> None:
    cli.env["AWS_SHARED_CREDENTIALS_FILE"] = str(cli.folder / "keys")
    found = checks(cli, "--store", "s3://bucket", "--offline", code=1)
    assert found["AWS_SHARED_CREDENTIALS_FILE"]["text"].endswith("keys: No such file or directory")


def test_what_is_shown_can_be_read_again(cli: Cli) -> None:
    text = "group = 'a'\ntags = ['x', 'y=1']\nidle_timeout = 600\n[times]\nsweep_every = 60\n"
    file = written(cli, text)
    cli.env["SIMAGENT_SLOTS"] = "3"
    cli.env["SIMAGENT_TIMES"] = '{"ring_after": 90.5}'
    shown = cli("config", "show", file, "--project", "p")
    lines = {line.partition(" ")[0]: line for line in shown.stdout.splitlines()}
    assert lines["group"].split("  # ")[-1] == str(file)
    assert lines["slots"].split() == ["slots", "=", "3", "#", "SIMAGENT_SLOTS"]
    assert lines["project"].endswith("# --project")
    assert lines["ring_after"].endswith("# SIMAGENT_TIMES")
    assert lines["sweep_every"].endswith(f"# {file}")
    assert lines["role"].endswith("# default")
    again = written(cli, shown.stdout)
    settings = tomllib.loads(shown.stdout)
    assert settings["times"]["ring_after"] == 90.5
    for name in ("SIMAGENT_SLOTS", "SIMAGENT_TIMES", "SIMAGENT_STATE_DIR"):
        del cli.env[name]
    told = json.loads(cli("config", "show", again, "--json").stdout)
    assert told["tags"] == {"value": ["x", "y=1"], "from": str(again)}
    assert {name: one["value"] for name, one in told.items()}["times.ring_after"] == 90.5
