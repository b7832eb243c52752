"""The whole agent on the embedded engines, with real commands."""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from fakes.rig import Rig, kill9
from simagent.domain import bell
from simagent.domain.keys import TaskKeys
from simagent.engines import open_queue, open_store
from simagent.ports.clock import Wake
from simagent.queues.sqlite import SqliteQueue
from simagent.worker.orders import Detached, Preempted


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def waits_for(path: Path) -> str:
    """A command that says its pid and runs until a file is there."""
    code = (
        "import os, pathlib, time; print(os.getpid(), flush=True)\n"
        f"while not pathlib.Path({str(path)!r}).exists(): time.sleep(0.02)\n"
        "print('went on', flush=True)"
    )
    return f'{sys.executable} -c "{code}"'


def pid_of(rig: Rig, task: TaskKeys) -> int:
    first = rig.until(lambda: rig.log(task) or None)
    return int(first.split()[0])


def test_a_task_runs_and_publishes_logs_outputs_and_records(rig: Rig, tmp_path: Path) -> None:
    with rig.agent():
        task = rig.submit(
            {"run": "echo out; echo err >&2; echo made > made.txt", "shell": True},
            {"run": "cat", "stdin": ["first answer", "second answer"]},
        )
        state = rig.finish(task)
    assert (state.status, state.reason, state.epoch) == ("succeeded", None, 1)
    assert state.lease is None
    (attempt,) = state.attempts
    assert [step.exit_code for step in attempt.steps] == [0, 0]
    assert attempt.ran_seconds is not None
    assert attempt.ended is not None
    assert {"queue_wait", "pack"} <= set(attempt.timings)
    assert rig.log(task) == b"out\nfirst answer\nsecond answer\n"
    assert rig.log(task, "stderr") == b"err\n"
    rig.client.download(task, [], tmp_path / "got")
    assert (tmp_path / "got" / "made.txt").read_text() == "made\n"
    assert (tmp_path / "got" / "stdout.txt").read_bytes() == rig.log(task)
    assert (tmp_path / "got" / "system_metrics.csv").read_text().count("\n") >= 1


def test_nothing_is_left_behind_after_a_task(rig: Rig) -> None:
    with rig.agent():
        task = rig.submit("true")
        rig.finish(task)
        rig.until(lambda: not list((rig.folder / "state" / "attempts").iterdir()))
        store = open_store(rig.config())
        rig.until(lambda: not list(store.scan("open/")))
    queue = open_queue(rig.config(), "default")
    assert queue.receive(visibility=1, wait=0, wake=Wake()) is None


@pytest.mark.parametrize(
    ("command", "reason", "words"),
    [
        ("false", "exit_code", "exited with code 1"),
        ("no-such-program-here", "command_not_found", "no-such-program-here"),
        ({"run": "kill -SEGV $$", "shell": True}, "signal", "signal 11"),
    ],
)
def test_the_first_command_that_fails_ends_the_task_with_its_reason(
    rig: Rig, command: object, reason: str, words: str
) -> None:
    with rig.agent():
        task = rig.submit({"run": "echo kept > kept.txt", "shell": True}, command, "touch never")
        state = rig.finish(task)
    assert (state.status, state.reason) == ("failed", reason)
    assert words in state.message
    assert state.output is not None
    rig.client.download(task, [], rig.folder / "got")
    assert (rig.folder / "got" / "kept.txt").exists()
    assert not (rig.folder / "got" / "never").exists()


def test_a_running_task_is_killed_with_its_outputs_kept(rig: Rig) -> None:
    with rig.agent():
        task = rig.submit({"run": "echo begun > begun.txt; exec sleep 1000", "shell": True})
        rig.until(lambda: rig.running(task))
        (attempt,) = rig.client.state(task).attempts
        assert (attempt.ran_seconds, "step-0" in attempt.timings) == (None, False)
        assert not rig.client.kill(task, by="tester", grace=1.0).terminal
        state = rig.finish(task)
    assert (state.status, state.reason) == ("killed", "killed")
    assert "tester" in state.message
    assert state.output is not None


def test_a_queued_task_is_killed_without_any_agent_and_never_starts(rig: Rig) -> None:
    task = rig.submit({"run": "touch /tmp/never", "shell": True})
    assert rig.client.kill(task, by="tester").status == "killed"
    with rig.agent(until_empty=True):
        state = rig.finish(task)
    assert (state.epoch, state.attempts) == (0, ())


def test_a_task_ends_at_its_time_limit(rig: Rig) -> None:
    with rig.agent():
        task = rig.submit("sleep 1000", time_limit=0.5, grace=1.0)
        state = rig.finish(task)
    assert (state.status, state.reason) == ("timed_out", "time_limit")


def test_preemption_gives_the_task_back_and_another_agent_ends_it(rig: Rig, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with rig.agent("first") as first:
        task = rig.submit(waits_for(go))
        rig.until(lambda: rig.running(task))
        first.interrupt(Preempted("the machine goes away"))
    state = rig.client.state(task)
    assert (state.status, state.counters.preemptions, state.lease) == ("queued", 1, None)
    assert state.attempts[0].reason == "preempted"
    go.touch()
    with rig.agent("second"):
        state = rig.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 2)


def test_a_detached_agent_leaves_the_command_running_and_the_next_goes_on(
    rig: Rig, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    with rig.agent() as agent:
        task = rig.submit(waits_for(go))
        pid = pid_of(rig, task)
        agent.interrupt(Detached("restart"))
    assert psutil.pid_exists(pid)
    with rig.agent():
        rig.until(lambda: (s := rig.client.state(task)).lease and s.lease.beat >= 1)
        assert psutil.pid_exists(pid)
        go.touch()
        state = rig.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1)
    assert rig.log(task) == f"{pid}\nwent on\n".encode()


def test_kill_9_of_the_agent_costs_nothing(rig: Rig, tmp_path: Path) -> None:
    go = tmp_path / "go"
    task = rig.submit(waits_for(go), "echo second")
    process = rig.process()
    pid = pid_of(rig, task)
    kill9(process)
    process = rig.process()
    rig.until(lambda: (s := rig.client.state(task)).lease and s.lease.beat >= 1)
    assert psutil.pid_exists(pid)
    go.touch()
    state = rig.finish(task)
    process.terminate()
    assert process.wait(60) == 0
    assert (state.status, state.epoch, state.counters.losses) == ("succeeded", 1, 0)
    assert rig.log(task) == f"{pid}\nwent on\nsecond\n".encode()


def test_a_dead_agents_task_is_taken_over_after_the_ttl(rig: Rig, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.touch()
    task = rig.submit({"run": "echo $SIMAGENT_EPOCH; sleep 1000", "shell": True}, max_attempts=3)
    process = rig.process("first")
    rig.until(lambda: rig.log(task) or None)
    kill9(process)
    second = rig.process("second")
    state = rig.until(lambda: s if (s := rig.client.state(task)).epoch == 2 else None)
    assert state.counters.losses == 1
    assert state.attempts[0].reason == "agent_lost"
    rig.client.kill(task, by="tester", grace=0.5)
    assert rig.finish(task).status == "killed"
    third = rig.process("first")  # the first agent's machine is back: it ends its leftovers
    rig.until(lambda: not _sleepers(task) or None)
    for process in (second, third):
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def _sleepers(task: TaskKeys) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SIMAGENT_TASK_ID") == task.id:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_malformed_bells_and_corrupt_specs_do_not_stop_the_agent(rig: Rig) -> None:
    queue = open_queue(rig.config(), "default")
    queue.send("not a bell")
    queue.send(json.dumps({"project": "../..", "task": "x"}))
    broken = rig.submit("true")
    store = open_store(rig.config())
    store.put(broken.spec, b'{"commands": []}')
    with rig.agent():
        state = rig.finish(broken)
        assert (state.status, state.reason) == ("error", "invalid_spec")
        assert rig.finish(rig.submit("true")).status == "succeeded"


def test_an_agent_of_a_newer_format_s_task_leaves_it_alone(rig: Rig) -> None:
    task = rig.submit("true")
    store = open_store(rig.config())
    fields = json.loads(store.get(task.state).data) | {"format": 99}
    store.put(task.state, json.dumps(fields).encode())
    queue = open_queue(rig.config(), "default")
    with rig.agent():
        assert rig.finish(rig.submit("true")).status == "succeeded"
    assert json.loads(store.get(task.state).data) == fields
    queue.send(bell.encode(task))


def test_a_newer_versions_bell_is_left_for_others(rig: Rig) -> None:
    queue = open_queue(rig.config(), "default")
    queue.send(json.dumps({"format": 99, "for": "somebody newer"}))
    with rig.agent():
        assert rig.finish(rig.submit("true")).status == "succeeded"
    assert isinstance(queue, SqliteQueue)
    assert queue.dead_letters() == []


def test_a_marker_without_a_task_does_not_keep_an_agent_from_ending(rig: Rig) -> None:
    open_store(rig.config()).put("open/default/nobody.default", b"{}")
    process = rig.process("state", "--until-empty")
    assert process.wait(60) == 0


def test_many_agents_publish_each_task_exactly_once(tmp_path: Path) -> None:
    # None of them is to be taken for dead while it waits for a core.
    rig = Rig(tmp_path, lease_ttl=60.0, bell_visibility=60.0, hide_alive=10.0)
    command = {"run": "echo $SIMAGENT_TASK_ID", "shell": True}
    tasks = [rig.submit(command) for _ in range(40)]
    processes = [rig.process(f"agent-{number}", "--until-empty") for number in range(4)]
    for process in processes:
        assert process.wait(100) == 0
    for task in tasks:
        state = rig.client.state(task)
        assert (state.status, state.epoch, len(state.attempts)) == ("succeeded", 1, 1)
        assert rig.log(task) == f"{task.id}\n".encode()


def test_the_command_sees_only_the_allowed_environment(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SECRET_ACCESS_KEY", "SESSION_TOKEN", "CONTAINER_CREDENTIALS_FULL_URI", "PROFILE"):
        monkeypatch.setenv(f"AWS_{name}", "secret")
    with rig.agent():
        task = rig.submit({"run": "env", "env": {"MINE": "1"}}, env={"BOTH": "2"})
        rig.finish(task)
    names = {line.split("=")[0] for line in rig.log(task).decode().splitlines()}
    assert {"MINE", "BOTH", "PATH", "SIMAGENT_TASK_ID", "SIMAGENT_EPOCH"} <= names
    assert [name for name in names if name.startswith("AWS_")] == []
    assert b"secret" not in rig.log(task)
    assert os.environ["AWS_SECRET_ACCESS_KEY"]


def test_a_link_in_place_of_the_tasks_folder_publishes_nothing_of_others(
    rig: Rig, tmp_path: Path
) -> None:
    secret = tmp_path / "others"
    secret.mkdir()
    (secret / "secret.txt").write_text("not the task's")
    swap = f"cd .. && mv artifacts gone && ln -s {secret} artifacts"
    with rig.agent():
        state = rig.finish(rig.submit({"run": swap, "shell": True}))
    assert (state.status, state.reason, state.output) == ("error", "output_failed", None)


def test_a_signal_that_another_thread_than_the_main_one_gets_is_obeyed(rig: Rig) -> None:
    process = rig.process("agent")
    task = rig.submit(["sleep", "300"])
    rig.until(lambda: rig.client.state(task).status == "running" or None)
    other = next(it.id for it in psutil.Process(process.pid).threads() if it.id != process.pid)
    assert _tgkill(process.pid, other, signal.SIGTERM) == 0
    assert process.wait(60) == 0
    rig.client.kill(task, by="tester", grace=0.5)
    last = rig.process("agent")
    assert rig.finish(task).status == "killed"
    last.send_signal(signal.SIGTERM)
    assert last.wait(60) == 0


def _tgkill(pid: int, thread: int, number: int) -> int:
    """Send a signal to one thread of another process, as Linux may do on its own."""
    return int(ctypes.CDLL(None).tgkill(pid, thread, number))
