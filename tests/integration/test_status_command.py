"""`simagent status`: what it says of an agent that works, hangs, waits, has ended or never was."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from engines.ports import free_port
from fakes.rig import Rig, kill9
from simagent.domain.keys import TaskKeys
from simagent.worker.statussocket import NoAnswerError, ask


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def status(rig: Rig, *options: str, code: int = 0) -> str:
    """Run the command; tell what it printed, wherever."""
    argv = [sys.executable, "-m", "simagent", "status", "--state-dir", str(folder(rig)), *options]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def folder(rig: Rig) -> Path:
    return rig.config().state_dir


def told(rig: Rig, stage: str) -> dict[str, Any] | None:
    try:
        fields = ask(folder(rig), 5.0)
    except NoAnswerError:
        return None
    return fields if fields["stage"] == stage else None


def sleeper(rig: Rig) -> TaskKeys:
    go = rig.folder / "go"
    wait = {"run": f"until [ -e {go} ]; do sleep 0.05; done", "shell": True}
    task = rig.submit("true", wait)
    rig.until(lambda: (told(rig, "taking_tasks") or {"tasks": [{}]})["tasks"])
    rig.until(lambda: step(rig) == 1)
    return task


def step(rig: Rig) -> int | None:
    fields = told(rig, "taking_tasks")
    return fields["tasks"][0]["step"] if fields and fields["tasks"] else None


def facts(text: str) -> dict[str, str]:
    rows = (re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines() if "  " in line)
    return {row[0]: row[1] for row in rows}


def test_of_an_agent_that_runs_a_task(rig: Rig) -> None:
    process = rig.process()
    try:
        task = sleeper(rig)
        text, fields = status(rig), json.loads(status(rig, "--json"))
        mode = (folder(rig) / "status").stat().st_mode
    finally:
        (rig.folder / "go").touch()
        process.terminate()
        process.wait(60)
    assert re.match(r"agent \S+  takes tasks\n", text)
    found = facts(text)
    assert found["slots"] == "1 of 1 taken"
    assert found["store"].startswith(f"file://{rig.folder}/store")
    assert re.search(r"answered \d+ s ago$", found["queue"])
    assert "are kept free" in found["state folder"]
    assert "Python 3." in found["versions"]
    head, row = text.splitlines()[-2:]
    assert re.split(" +", head)[:6] == ["TASK", "ATTEMPT", "STATUS", "STEP", "SINCE", "SLOT"]
    assert re.match(rf"{task.id} +1 +running +2 of 2 +\d{{4}}-\d\d-\d\d ", row)
    (seen,) = fields["tasks"]
    assert (seen["id"], seen["epoch"], seen["step"], seen["steps"]) == (task.id, 1, 1, 2)
    assert 0 <= seen["beat"] < 30
    assert fields["pid"] == process.pid
    assert {engine["name"] for engine in fields["engines"]} == {"store", "queue"}
    assert all(engine["failing"] is None for engine in fields["engines"])
    assert fields["counts"]
    assert mode & 0o077 == 0


def test_of_one_that_drains(rig: Rig) -> None:
    process = rig.process()
    sleeper(rig)
    process.send_signal(signal.SIGINT)
    rig.until(lambda: told(rig, "draining"))
    assert "drains: takes no more tasks" in status(rig)
    (rig.folder / "go").touch()
    assert process.wait(60) == 0


def test_where_none_has_ever_been(rig: Rig) -> None:
    said = status(rig, code=1)
    assert said == f"simagent: no agent runs on {folder(rig)}\n"


def test_of_one_that_has_ended(rig: Rig) -> None:
    process = rig.process()
    rig.until(lambda: told(rig, "taking_tasks"))
    process.terminate()
    assert process.wait(60) == 0
    said = status(rig, "--json", code=1)
    assert re.fullmatch(r"simagent: no agent runs on \S+; it ended at [\d :-]+\n", said)
    assert not (folder(rig) / "status").exists()


def test_of_one_that_was_cut_off(rig: Rig) -> None:
    process = rig.process()
    sleeper(rig)
    kill9(process)
    said = status(rig, code=1)
    assert "and was cut off" in said
    assert said.endswith("tasks that it left, and that may run on: 1\n")
    (rig.folder / "go").touch()


def test_of_one_that_does_not_answer(rig: Rig) -> None:
    process = rig.process()
    rig.until(lambda: told(rig, "taking_tasks"))
    process.send_signal(signal.SIGSTOP)
    try:
        said = status(rig, code=1)
    finally:
        process.send_signal(signal.SIGCONT)
        rig.until(lambda: told(rig, "taking_tasks"))
        process.terminate()
        process.wait(60)
    assert f"an agent (pid {process.pid}) has {folder(rig)}, but does not tell how it" in said
    assert "within 5 s" in said


def test_of_one_whose_store_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    engines = {
        "store": "s3://bucket/prefix",
        "s3_endpoint": f"http://127.0.0.1:{port}",
        "s3_region": "eu-west-1",
        "allow_process": "true",
    }
    rig = Rig(tmp_path, engines)
    process = rig.process()
    try:
        # Answered while it starts, and while it waits: the one or the other may be long.
        fields = rig.until(lambda: told(rig, "waiting_for_store"), 60)
        text = status(rig)
    finally:
        process.terminate()
        process.wait(60)
    store = next(engine for engine in fields["engines"] if engine["name"] == "store")
    assert store["failing"] is not None
    assert store["answered"] is None
    assert f"127.0.0.1:{port}" in store["error"]
    assert "waits for the store" in text
    assert "does not answer" in facts(text)["store"]


def test_of_a_run(rig: Rig) -> None:
    go = rig.folder / "go"
    spec = rig.folder / "task.json"
    wait = {"run": f"until [ -e {go} ]; do sleep 0.05; done", "shell": True}
    spec.write_text(json.dumps({"commands": [wait]}))
    config = rig.config()
    environment = os.environ | {
        "SIMAGENT_STATE_DIR": str(config.state_dir),
        "SIMAGENT_QUEUE": config.queue_url,
        "SIMAGENT_STORE": config.store_url,
    }
    argv = [sys.executable, "-m", "simagent", "run", "--quiet", str(spec)]
    process = subprocess.Popen(argv, env=environment)
    rig.until(lambda: (told(rig, "taking_tasks") or {}).get("tasks"))
    assert status(rig).startswith("simagent run ")
    go.touch()
    assert process.wait(60) == 0


def told_of_end(port: int) -> str | None:
    """Give what Prometheus is told, as soon as a task has ended there."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text: str = answer.read().decode()
    return text if "\nsimagent_tasks_ended_total{" in text else None


def test_prometheus_is_told_the_same(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("SIMAGENT_METRICS_LISTEN", str(port))
    process = rig.process()
    try:
        task = rig.submit("true")
        assert rig.finish(task).status == "succeeded"
        text = rig.until(lambda: told_of_end(port))  # the agent counts it once it has read it back
    finally:
        process.terminate()
        process.wait(60)
    lines = set(text.splitlines())
    assert "simagent_attempts_claimed_total 1.0" in lines
    assert 'simagent_tasks_ended_total{outcome="succeeded",reason=""} 1.0' in lines
    assert "simagent_store_up 1.0" in lines
    assert "simagent_slots 1.0" in lines
    sent = next(line for line in lines if line.startswith("simagent_store_sent_bytes_total "))
    assert float(sent.split()[1]) > 1000


def test_an_agent_works_whose_port_is_taken(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("SIMAGENT_METRICS_LISTEN", str(port))
        process = rig.process()
        try:
            assert rig.finish(rig.submit("true")).status == "succeeded"
            fields = rig.until(lambda: told(rig, "taking_tasks"))
        finally:
            process.terminate()
            assert process.wait(60) == 0
    url = f"http://127.0.0.1:{port}/metrics"
    assert fields["notices"] == [f"metrics_listen: {url}: Address already in use"]
