"""Drain, detach, Ctrl-C: how an agent is told to stop, with real processes and signals."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from fakes.rig import Rig, kill9
from fakes.service import Service
from fakes.steps import end_commands
from simagent.domain import bell
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Spec
from simagent.engines import open_queue
from simagent.worker.drain import DrainFile


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


class Agent:
    """An agent as a process whose standard error is read."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.process = subprocess.Popen(
            [sys.executable, "-m", "simagent", "agent"],
            env=environment(rig),
            stderr=subprocess.PIPE,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr:
            self.lines.extend(line.decode() for line in self.process.stderr)

    def says(self, words: str) -> None:
        self._rig.until(lambda: any(words in line for line in self.lines))

    @property
    def notes(self) -> list[str]:
        return [line for line in self.lines if line.startswith("simagent: ")]

    def ends(self, code: int = 0, within: float = 60.0) -> None:
        assert self.process.wait(within) == code
        self._reader.join(60)


def environment(rig: Rig) -> dict[str, str]:
    config = rig.config()
    return os.environ | {
        "SIMAGENT_STATE_DIR": str(config.state_dir),
        "SIMAGENT_QUEUE": config.queue_url,
        "SIMAGENT_STORE": config.store_url,
        "SIMAGENT_TIMES": config.times.model_dump_json(),
    }


def drain(rig: Rig, *options: str, code: int = 0) -> str:
    argv = [sys.executable, "-m", "simagent", "drain", *options]
    done = subprocess.run(
        argv, env=environment(rig), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def sleeper(rig: Rig, name: str = "go") -> TaskKeys:
    """Submit a task that says its pid and runs until a file is there."""
    run = f"echo $$; until [ -e {rig.folder}/{name} ]; do sleep 0.05; done; echo went on"
    return rig.submit({"run": run, "shell": True})


def stubborn(rig: Rig, *, grace: float = 20.0) -> TaskKeys:
    """Submit a task that only SIGKILL ends, after a while."""
    run = "trap '' TERM; echo $$; while :; do sleep 0.05; done"
    return rig.submit({"run": run, "shell": True}, grace=grace)


def pid_of(rig: Rig, task: TaskKeys) -> int:
    return int(rig.until(lambda: rig.log(task) or None).split()[0])


def test_a_drained_agent_ends_what_it_runs_and_takes_nothing_else(rig: Rig) -> None:
    agent = Agent(rig)
    task = sleeper(rig)
    pid_of(rig, task)
    assert f"(pid {agent.process.pid}) takes no more tasks" in drain(rig)
    agent.says("no more tasks are taken")
    other = rig.submit("true")
    (rig.folder / "go").touch()
    agent.ends()
    assert rig.client.state(task).status == "succeeded"
    assert rig.client.state(other).status == "queued"
    with rig.agent(until_empty=True):  # a drain ends with the agent it was for
        assert rig.finish(other).status == "succeeded"


def test_draining_can_be_waited_for(rig: Rig) -> None:
    agent = Agent(rig)
    task = sleeper(rig)
    pid_of(rig, task)
    waiting = subprocess.Popen(
        [sys.executable, "-m", "simagent", "drain", "--wait"],
        env=environment(rig),
        stdout=subprocess.PIPE,
        text=True,
    )
    agent.says("no more tasks are taken")
    assert waiting.poll() is None
    (rig.folder / "go").touch()
    out, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    assert "has drained" in out
    agent.ends()
    assert "nothing to drain" in drain(rig, "--wait")


def test_a_drain_is_taken_back(rig: Rig) -> None:
    agent = Agent(rig)
    task = sleeper(rig)
    pid_of(rig, task)
    drain(rig)
    agent.says("no more tasks are taken")
    assert "takes tasks" in drain(rig, "--undo")
    agent.says("tasks are taken again")
    assert "no drain was asked for" in drain(rig, "--undo")
    other = rig.submit("true")
    (rig.folder / "go").touch()
    assert rig.finish(other).status == "succeeded"
    agent.process.terminate()
    agent.ends()


def test_without_an_agent_there_is_nothing_to_drain_but_what_one_left_is_told(rig: Rig) -> None:
    assert "no agent runs" in drain(rig)
    agent = Agent(rig)
    task = sleeper(rig)
    pid_of(rig, task)
    kill9(agent.process)
    assert "left 1 tasks behind" in drain(rig, "--wait", code=1)
    (rig.folder / "go").touch()
    with rig.agent(until_empty=True):
        assert rig.finish(task).status == "succeeded"


def test_a_crash_does_not_end_a_drain_and_a_boot_does(rig: Rig) -> None:
    agent = Agent(rig)
    task = sleeper(rig)
    pid = pid_of(rig, task)
    drain(rig)
    agent.says("no more tasks are taken")
    kill9(agent.process)
    other = rig.submit("true")
    agent = Agent(rig)
    agent.says("task_adopted")
    (rig.folder / "go").touch()
    agent.ends()
    assert rig.log(task) == f"{pid}\nwent on\n".encode()
    assert rig.client.state(other).status == "queued"
    (rig.config().state_dir / "drain").write_text("of another boot of this machine")
    with rig.agent(until_empty=True):
        assert rig.finish(other).status == "succeeded"


def test_tasks_are_given_back_though_they_heed_no_sigterm(rig: Rig) -> None:
    agent = Agent(rig)
    task = stubborn(rig, grace=100.0)
    pid = pid_of(rig, task)
    began = time.monotonic()
    assert "has given its tasks back" in drain(rig, "--give-back", "--wait", "--within", "12")
    assert time.monotonic() - began < 12 + 15, "and the start of a program"
    agent.ends()
    assert not psutil.pid_exists(pid)
    state = rig.client.state(task)
    assert (state.status, state.counters.preemptions) == ("queued", 1)
    agent = Agent(rig)  # the wish is over with the agent it was for
    assert rig.until(lambda: rig.running(task)).epoch == 2
    rig.client.kill(task, by="tester", grace=0.0)
    rig.finish(task)
    agent.process.terminate()
    agent.ends()
    assert "nothing to give back" in drain(rig, "--give-back")


def test_an_agent_that_crashes_while_it_gives_tasks_back_goes_on_with_that(rig: Rig) -> None:
    agent = Agent(rig)
    task = stubborn(rig)
    pid_of(rig, task)
    drain(rig, "--give-back", "--within", "1min")
    agent.says("task_stopping")
    kill9(agent.process)
    Agent(rig).ends()
    state = rig.client.state(task)
    assert (state.status, state.counters.preemptions, state.counters.losses) == ("queued", 1, 0)


def test_systemd_is_asked_for_the_time_that_giving_back_takes(rig: Rig) -> None:
    """Else it kills the agent TimeoutStopSec, 20 s, after it was told that the agent ends."""
    config = rig.config()
    engines = {"STATE_DIR": config.state_dir, "QUEUE": config.queue_url, "STORE": config.store_url}
    with Service(rig.folder, **engines) as service:
        task = stubborn(rig)
        pid_of(rig, task)
        drain(rig, "--give-back", "--within", "40")
        service.until(lambda: "STOPPING=1" in service.told)
        service.until(lambda: _asked_since(service, "STOPPING=1"))
        (asked,) = _asked_since(service, "STOPPING=1")
        assert 30 < asked < 60
    end_commands(task.id)


def _asked_since(service: Service, state: str) -> list[float]:
    """Give the seconds that systemd was asked for since it was told of a state."""
    told = service.told[service.told.index(state) :]
    words = [line.partition("=") for line in told]
    return [int(number) / 1e6 for name, _, number in words if name == "EXTEND_TIMEOUT_USEC"]


def test_draining_is_told_apart_from_giving_back(rig: Rig) -> None:
    for options in (["--within", "5"], ["--give-back", "--undo"]):
        assert "--give-back" in drain(rig, *options, code=2)
    assert "--within" in drain(rig, "--give-back", "--within", "soon", code=2)


def test_an_agent_stopped_while_draining_is_not_reported_as_drained(rig: Rig) -> None:
    agent = Agent(rig)
    task = sleeper(rig)
    pid_of(rig, task)
    waiting = subprocess.Popen(
        [sys.executable, "-m", "simagent", "drain", "--wait"],
        env=environment(rig),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waiting.stderr is not None
    assert "takes no more tasks" in waiting.stderr.readline()  # from now on it waits
    agent.says("no more tasks are taken")
    agent.process.terminate()
    agent.ends()
    _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert "before it had drained" in err
    (rig.folder / "go").touch()
    with rig.agent():
        assert rig.finish(task).status == "succeeded"


def test_sigterm_lets_go_and_the_next_agent_goes_on(rig: Rig) -> None:
    agent = Agent(rig)
    task = sleeper(rig)
    pid = pid_of(rig, task)
    other = rig.submit("true")
    agent.process.terminate()
    agent.ends(within=20)  # the unit's TimeoutStopSec
    assert psutil.pid_exists(pid)
    assert rig.client.state(task).status == "running"
    agent = Agent(rig)
    agent.says("task_adopted")
    (rig.folder / "go").touch()
    state = rig.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1)
    assert rig.log(task) == f"{pid}\nwent on\n".encode()
    assert rig.finish(other).status == "succeeded"
    agent.process.terminate()
    agent.ends()


@contextmanager
def stuck(rig: Rig) -> Iterator[None]:
    """Keep every write to the store waiting, as a slow disk would."""
    locks = rig.folder / "store" / ".simagent" / "locks"
    with ExitStack() as stack:
        for number in range(64):
            file = stack.enter_context((locks / f"{number:02d}").open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_sigterm_is_obeyed_in_time_while_the_store_hangs(rig: Rig) -> None:
    agent = Agent(rig)
    running = sleeper(rig)
    pid = pid_of(rig, running)
    with stuck(rig):
        agent.process.terminate()
        agent.ends(within=18)  # a write gives up after 20 s
    assert psutil.pid_exists(pid)
    agent = Agent(rig)
    agent.says("task_adopted")
    (rig.folder / "go").touch()
    state = rig.finish(running)
    assert (state.status, state.epoch) == ("succeeded", 1)
    task = rig.client.submit(
        Spec.model_validate({"commands": ["true"]}), base=rig.folder, ring=False
    )
    rig.until(lambda: not list((rig.config().state_dir / "attempts").iterdir()))
    with stuck(rig):
        open_queue(rig.config(), "default").send(bell.encode(task))
        attempts = rig.config().state_dir / "attempts"
        rig.until(lambda: list(attempts.iterdir()) or None)  # the main loop hangs in its claim
        agent.process.terminate()
        agent.ends(within=18)  # a write gives up after 20 s
    agent = Agent(rig)
    assert rig.finish(task).status == "succeeded"
    agent.process.terminate()
    agent.ends()


def test_ctrl_c_finishes_first(rig: Rig) -> None:
    agent = Agent(rig)
    task = sleeper(rig)
    pid_of(rig, task)
    other = rig.submit("true")
    agent.process.send_signal(signal.SIGINT)
    agent.says("no more tasks are taken")
    (rig.folder / "go").touch()
    agent.ends()
    assert rig.client.state(task).status == "succeeded"
    assert rig.client.state(other).status == "queued"
    assert len(agent.notes) == 1


def test_a_second_ctrl_c_gives_the_tasks_back(rig: Rig) -> None:
    agent = Agent(rig)
    task = sleeper(rig)
    pid = pid_of(rig, task)
    for words in ("no more tasks are taken", "giving the tasks back"):
        agent.process.send_signal(signal.SIGINT)
        agent.says(words)
    agent.ends()
    assert len(agent.notes) == 2
    assert not psutil.pid_exists(pid)
    state = rig.client.state(task)
    assert (state.status, state.counters.preemptions) == ("queued", 1)
    (rig.folder / "go").touch()
    with rig.agent(until_empty=True):
        assert rig.finish(task).epoch == 2


def test_a_third_ctrl_c_leaves_at_once_and_the_next_agent_goes_on(rig: Rig) -> None:
    agent = Agent(rig)
    task = stubborn(rig)
    pid = pid_of(rig, task)
    for words in ("no more tasks are taken", "giving the tasks back", "leaving"):
        agent.process.send_signal(signal.SIGINT)
        agent.says(words)
    agent.ends(code=130, within=20)  # long before the task's grace is over
    assert len(agent.notes) == 3
    assert psutil.pid_exists(pid)
    with rig.agent():
        rig.client.kill(task, by="tester", grace=0.0)
        rig.finish(task)
    assert not psutil.pid_exists(pid)


def test_several_may_ask_for_a_drain_at_a_time(tmp_path: Path) -> None:
    def ask() -> None:
        try:
            for _ in range(200):
                DrainFile(tmp_path).ask(until=1.0)
        except OSError as error:
            failed.append(error)

    failed: list[OSError] = []
    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(60)
    assert failed == []
    assert DrainFile(tmp_path).asked
    assert [path.name for path in tmp_path.iterdir()] == ["drain"]
