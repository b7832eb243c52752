"""A cloud takes the machine away: what runs there is given back in time."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fakes import clouds
from fakes.clouds import Metadata
from fakes.faults import UNAVAILABLE, Fault, Faults, FaultyStore
from fakes.rig import Rig, kill9
from fakes.slow import SlowStore
from simagent.clouds.aws import Aws
from simagent.clouds.gcp import Gcp
from simagent.domain.keys import TaskKeys
from simagent.ledger import Ledger
from simagent.ports.clock import SystemClock
from simagent.worker.context import Context
from simagent.worker.journal import ARTIFACTS
from simagent.worker.orders import Preempted

PID = f"first/attempts/*/{ARTIFACTS}/pid"
STUBBORN = "trap '' TERM; echo $$ > new; mv new pid; while :; do sleep 0.2; done"


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def asked(server: Metadata, path: str) -> bool:
    return any(path in question for question in server.asked)


def goes(cloud: str, at: float) -> dict[str, str]:
    match cloud:
        case "aws":
            return clouds.aws_interruption(at)
        case "gcp":
            return clouds.gcp_preempted()
    return clouds.azure_events(clouds.azure_event("Preempt", at, "vm-7"))


class Line:
    """What is between an agent and its store: keys that hold ``fails`` do not get through."""

    def __init__(self) -> None:
        self.fails: str | None = "/output"

    def put_between(self, ctx: Context) -> Context:
        """Put it before the store of an agent that begins."""

        def plan(_call: str, key: str) -> Fault | None:
            fails = self.fails
            return UNAVAILABLE if fails is not None and fails in key else None

        ledger = Ledger(FaultyStore(ctx.ledger.store, Faults(ctx.clock, plan)))
        return replace(ctx, ledger=ledger, lease_ledger=ledger)


def pid_of(rig: Rig) -> int:
    """Tell the process of the command, once it has written that down."""
    return rig.until(lambda: next((int(file.read_text()) for file in rig.folder.glob(PID)), None))


@pytest.mark.parametrize(
    ("cloud", "question"),
    [("gcp", "preempted"), ("aws", "instance-action"), ("azure", "scheduledevents")],
)
def test_a_task_is_given_back_though_its_command_ignores_sigterm(
    rig: Rig, cloud: str, question: str
) -> None:
    facts = {"gcp": clouds.gcp, "aws": clouds.aws, "azure": clouds.azure}[cloud]()
    with (
        Metadata(facts) as server,
        rig.agent("first", cloud=cloud, cloud_endpoint=server.endpoint),
    ):
        task = rig.submit({"run": STUBBORN, "shell": True}, grace=100.0)
        rig.until(lambda: rig.running(task) and asked(server, question))
        pid = pid_of(rig)
        server.answers.update(goes(cloud, time.time() + 30))
        rig.until(lambda: rig.client.state(task).status == "queued", 60.0)
    state = rig.client.state(task)
    assert (state.counters.preemptions, state.lease) == (1, None)
    assert state.attempts[0].reason == "preempted"
    assert state.attempts[0].machine["cloud"] == cloud
    assert state.attempts[0].machine["price"] == "spot"
    assert not psutil.pid_exists(pid)
    with rig.agent("second"):
        rig.until(lambda: rig.running(task))
        rig.client.kill(task, by="tester", grace=0.1)
        assert rig.finish(task).epoch == 2


# Prints without a pause, writes what it is asked for, and heeds neither SIGTERM nor its own end.
SIMULATOR = """
import os, pathlib, random, signal, time
asked = False
def ask(*_):
    global asked
    asked = True
signal.signal(signal.SIGUSR1, ask)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
data = random.Random(1).randbytes(1 << 20)
pathlib.Path("trajectory").write_bytes(data)
pathlib.Path("new").write_text(str(os.getpid()))
os.rename("new", "pid")
while True:
    print("x" * 1000, flush=True)
    if asked:
        asked = False
        for number in range(int(os.environ["PARTS"])):
            pathlib.Path(f"{number}.rst").write_bytes(data)
    time.sleep(0.05)
"""
WORTH = ["state: running, preempted", "logs", "checkpoints", "partial", "state: queued, preempted"]


@pytest.mark.parametrize(("notice", "parts"), [(30.0, 1), (120.0, 8)])
@pytest.mark.timeout(240)
def test_all_is_in_a_slow_store_20_s_before_the_machine_goes_by_its_worth(
    rig: Rig, notice: float, parts: int
) -> None:
    (rig.folder / "sim.py").write_text(SIMULATOR)
    slow: list[SlowStore] = []

    def behind_a_thin_line(ctx: Context) -> Context:
        store = SlowStore(ctx.ledger.store, ctx.clock, rate=1e6, delay=0.1)
        slow.append(store)
        pace = replace(ctx.settings.pace, first=30.0, idle=30.0, followed=30.0)
        settings = replace(ctx.settings, pace=pace)
        ledger = Ledger(store)
        cloud = Gcp(server.endpoint) if notice == 30.0 else Aws(time.time, server.endpoint)
        return replace(ctx, ledger=ledger, lease_ledger=ledger, settings=settings, cloud=cloud)

    with (
        Metadata(clouds.gcp() | clouds.aws()) as server,
        rig.agent("first", change=behind_a_thin_line),
    ):
        task = rig.submit(
            {"run": f"{sys.executable} sim.py; true", "shell": True},
            inputs=["sim.py"],
            env={"PARTS": str(parts)},
            grace=300.0,
            checkpoint={"paths": ["*.rst"], "every": "1h", "signal": "USR1"},
        )
        pid = pid_of(rig)
        given = SystemClock().now()
        happens = clouds.gcp_preempted() if notice == 30.0 else goes("aws", time.time() + notice)
        server.answers.update(happens)
        state = rig.until(
            lambda: s if (s := rig.client.state(task)).status == "queued" else None, notice
        )
    (store,) = slow
    found = [written.what for written in store.since(given) if written.what in WORTH]
    # In half a minute there may be no time for what is worth least.
    assert found in ([WORTH] if notice > 60 else [WORTH, [w for w in WORTH if w != "partial"]])
    for written in store.since(given):
        assert written.at <= given + notice - 20.0, f"{written.what} came too late"
    assert not psutil.pid_exists(pid)
    assert state.checkpoint is not None
    assert (state.checkpoint.files, state.checkpoint.bytes) == (parts, parts << 20)
    if "partial" in found:
        rig.client.download(task, ["trajectory"], rig.folder / "back", attempt=1)
        assert (rig.folder / "back" / "trajectory").stat().st_size == 1 << 20
    rig.client.kill(task, by="tester", grace=0.1)


def test_a_task_that_is_to_fail_does_so_without_the_outputs_that_take_too_long(rig: Rig) -> None:
    def behind_a_thin_line(ctx: Context) -> Context:
        ledger = Ledger(SlowStore(ctx.ledger.store, ctx.clock, rate=1e6))
        return replace(ctx, ledger=ledger, lease_ledger=ledger)

    with rig.agent("first", change=behind_a_thin_line) as agent:
        run = "head -c 40000000 /dev/urandom >large; echo $$ >new; mv new pid; exec sleep 600"
        task = rig.submit({"run": run, "shell": True}, on_preempt="fail")
        pid_of(rig)
        agent.interrupt(Preempted("the machine goes away", SystemClock().now() + 10.0))
        state = rig.finish(task, 25.0)  # the outputs would take 40 s
    assert (state.status, state.reason, state.output) == ("failed", "preempted", None)
    assert "outputs not published: the machine goes away before" in state.message


def test_a_machine_that_goes_too_soon_counts_as_preempted_and_not_as_lost(rig: Rig) -> None:
    with Metadata(clouds.gcp()) as server:
        os.environ |= {"SIMAGENT_CLOUD": "gcp", "SIMAGENT_CLOUD_ENDPOINT": server.endpoint}
        try:
            first = rig.process("first")
        finally:
            del os.environ["SIMAGENT_CLOUD"], os.environ["SIMAGENT_CLOUD_ENDPOINT"]
        task = rig.submit({"run": STUBBORN, "shell": True}, grace=100.0)
        pid = pid_of(rig)
        server.answers.update(clouds.gcp_preempted())
        rig.until(lambda: rig.client.state(task).attempts[0].reason)
        kill9(first)
        psutil.Process(pid).kill()
    with rig.agent("second"):
        state = rig.until(lambda: s if (s := rig.client.state(task)).epoch == 2 else None)
        rig.client.kill(task, by="tester", grace=0.1)
        rig.finish(task)
    assert (state.counters.preemptions, state.counters.losses) == (1, 0)
    assert state.attempts[0].reason == "preempted"
    assert "before it had given the task back" in (state.attempts[0].message or "")


def finalizing(rig: Rig, task: TaskKeys) -> bool:
    return rig.client.state(task).status == "finalizing"


def noted(rig: Rig, task: TaskKeys) -> bool:
    return rig.client.state(task).attempts[0].reason == "preempted"


def test_outputs_that_are_not_stored_before_the_machine_goes_count_as_preempted(rig: Rig) -> None:
    store = Line()
    with rig.agent("first", change=store.put_between) as first:
        task = rig.submit("true")
        rig.until(lambda: finalizing(rig, task))
        first.interrupt(Preempted("the machine goes away", SystemClock().now() + 3.0))
        rig.until(lambda: noted(rig, task))
        store.fails = ""
    with rig.agent("second"):
        state = rig.finish(task)
    assert (state.status, state.epoch, state.reason) == ("succeeded", 2, None)
    assert (state.counters.preemptions, state.counters.losses) == (1, 0)
    assert "before it had given the task back" in (state.attempts[0].message or "")
    store.fails = None  # for the agent that went with its machine: it learns that it is too late


def test_outputs_that_are_stored_before_the_machine_goes_are_the_task_s_end(rig: Rig) -> None:
    store = Line()
    with rig.agent(change=store.put_between) as agent:
        task = rig.submit("true")
        rig.until(lambda: finalizing(rig, task))
        agent.interrupt(Preempted("the machine goes away", SystemClock().now() + 60.0))
        rig.until(lambda: noted(rig, task))
        store.fails = None
        state = rig.finish(task)
    assert (state.status, state.epoch, state.attempts[0].reason) == ("succeeded", 1, None)
    assert (state.counters.preemptions, state.counters.losses) == (0, 0)


def test_a_machine_that_stays_after_all_has_an_agent_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = rig.submit("true")
    with Metadata(clouds.gcp()) as server:
        monkeypatch.setenv("SIMAGENT_CLOUD", "gcp")
        monkeypatch.setenv("SIMAGENT_CLOUD_ENDPOINT", server.endpoint)
        usual = dict(server.answers)
        server.answers.update(goes("gcp", time.time() + 30))
        assert rig.process("agent").wait(60) == 75  # that systemd starts it again for
        assert rig.client.state(task).epoch == 0
        server.answers.update(usual)
        agent = rig.process("agent")
        assert rig.finish(task).status == "succeeded"
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(60) == 0


def test_a_metadata_server_that_hangs_keeps_nothing_from_running(rig: Rig) -> None:
    with Metadata(hangs=True) as server, rig.agent(cloud="aws", cloud_endpoint=server.endpoint):
        task = rig.submit("true")
        state = rig.finish(task)
    assert state.status == "succeeded"
    assert state.attempts[0].machine["cloud"] == "aws"
