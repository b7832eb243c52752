"""S3 and SQS that fail, lie, stall and cut: each fault at each step, and the promise holds."""

import os
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product

import pytest

from faults import proxy
from faults.lab import FULL, LONG, PATIENCE, Measured, Stopwatch
from faults.proxy import KINDS, Rule
from fleet.lab import FleetLab, Labs

pytestmark = pytest.mark.timeout(10 * PATIENCE)

SHARDS = 4
AT_ONCE = 5
AWAY = 12.0
"""Seconds without an engine: twice as long as a lease lives."""
STEPS = {
    "claim": "PutObject state.json:preparing",
    "input": "GetObject inputs/N.zip",
    "run": "PutObject state.json:running",
    "log": "PutObject a/N/logs/stdout/H",
    "end": "PutObject state.json:finalizing",
    "upload": "PutObject a/N/output.zip",
    "verify": "GetObject a/N/output.zip",
    "manifest": "PutObject a/N/manifest.json",
    "publish": "PutObject state.json:succeeded",
    "marker": "DeleteObject open/default/ID",
    "bell": "DeleteMessage",
    "receive": "ReceiveMessage",
}
OF_UPLOADS = "*[UDtP]* a/N/output.zip"


def each(labs: Labs, cases: Iterable[tuple[str, ...]], case: Callable[..., None]) -> None:
    """Run a case with each of these arguments, some at a time, and tell of all that fail."""

    def run(arguments: tuple[str, ...]) -> str | None:
        try:
            with labs() as lab:
                case(lab, *arguments)
        except AssertionError as error:
            return f"{arguments}, in {lab.folder}: {error}"
        return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        failures = [failure for failure in pool.map(run, cases) if failure is not None]
    assert not failures, "\n".join(failures)


def harm(lab: FleetLab, rule: Rule) -> None:
    lab.s3.rules.append(rule)
    lab.sqs.rules.append(rule)


def events(lab: FleetLab, name: str = "state") -> list[str]:
    return [entry["event"] for entry in lab.log_of(name)]


# --- One fault alone --------------------------------------------------------------------------


def harmed_once(times: int, lab: FleetLab, kind: str) -> None:
    task = lab.canonical()
    # Each stall takes as long as an agent waits: there, of writes alone, which have to be right.
    stalls = kind in (proxy.STALL, proxy.STALL_AFTER) and not FULL
    rule = Rule(kind, "PutObject*" if stalls else "*", each=times)
    harm(lab, rule)
    lab.start()
    state = lab.finish(task)
    assert state.status == "succeeded", state
    # A claim applied after its agent took it for failed has no holder: it is a lost attempt.
    lab.check(calm=kind != proxy.LATE)
    assert rule.struck.total() > 0


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.full)])
def test_each_operation_of_a_run_is_harmed_at_first(labs: Labs, times: int, shard: int) -> None:
    """From the claim to the last bell: each has to be made again, or its effect looked for."""
    each(labs, [(kind,) for kind in KINDS[shard::SHARDS]], partial(harmed_once, times))


def uploads_harmed(lab: FleetLab, kind: str) -> None:
    task = lab.task(("known", 17_000.0))
    rule = Rule(kind, OF_UPLOADS, each=1)
    lab.s3.rules.append(rule)
    lab.start()
    assert lab.finish(task).status == "succeeded"
    lab.check(calm=True)
    assert "UploadPart a/N/output.zip" in lab.s3.passed
    assert rule.struck.total() > 0


OF_PARTS = (proxy.LOST, proxy.BROKEN_AFTER, proxy.CUT_UP, proxy.BENT_UP, proxy.LATE)


@pytest.mark.parametrize("shard", range(SHARDS if FULL else 1))
def test_uploads_in_parts_are_harmed(labs: Labs, shard: int) -> None:
    kinds = KINDS[shard::SHARDS] if FULL else OF_PARTS
    each(labs, [(kind,) for kind in kinds], uploads_harmed)


def submission_harmed(lab: FleetLab, kind: str) -> None:
    """The client tries by itself, or its user again with the same id."""
    harm(lab, Rule(kind, each=1))
    lab.client = lab.harmed_client()
    task = lab.canonical()
    lab.client = lab.direct_client()
    lab.s3.rules.clear()
    lab.sqs.rules.clear()
    lab.start()
    assert lab.finish(task).status == "succeeded"
    lab.check(calm=True)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_each_operation_of_a_submission_is_harmed(labs: Labs, shard: int) -> None:
    unheard = {proxy.STALL, proxy.STALL_AFTER} if not FULL else set()
    kinds = [kind for kind in KINDS if kind not in unheard]
    each(labs, [(kind,) for kind in kinds[shard::SHARDS]], submission_harmed)


# --- And the agent is killed ------------------------------------------------------------------


def killed_meanwhile(lab: FleetLab, kind: str, step: str) -> None:
    task = lab.canonical()
    agents: list[subprocess.Popen[bytes]] = []
    rule = Rule(kind, STEPS[step], times=1, then=lambda: agents[0].kill())  # noqa: PLW0108
    harm(lab, rule)
    agents.append(lab.start())
    lab.until(lambda: agents[0].poll() is not None or (lab.ended(task) and not rule.struck))
    lab.start()
    state = lab.finish(task)
    assert state.status == "succeeded", state
    late = (kind, step) == (proxy.LATE, "claim")
    lab.check(calm=not late)


ALL_KILLS = [case for case in product(KINDS, STEPS) if case[0] != proxy.CONFLICT]
SOME_KILLS = [(kind, list(STEPS)[number % len(STEPS)]) for number, kind in enumerate(KINDS)]
KILLS = ALL_KILLS if FULL else SOME_KILLS


@pytest.mark.timeout(40 * PATIENCE)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_kill_9_while_an_operation_is_harmed(labs: Labs, shard: int) -> None:
    each(labs, KILLS[shard::SHARDS], killed_meanwhile)


# --- All together -----------------------------------------------------------------------------

SEEDS = range(5 if FULL else 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tenth_of_all_is_harmed_in_any_way(lab: FleetLab, seed: int) -> None:
    for at, kind in enumerate(KINDS):
        share = 0.1 / len(KINDS) / (1 - 0.1 * at / len(KINDS))
        harm(lab, Rule(kind, share=share))
    tasks = [lab.canonical() for _ in range(3)]
    for name in ("first", "second"):
        lab.start(name)
    for task in tasks:
        assert lab.finish(task).status == "succeeded"
    lab.check()


# --- Outages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "how"),
    [
        ("s3", "refuses"),
        pytest.param("s3", "is silent", marks=pytest.mark.full),
        pytest.param("sqs", "refuses", marks=pytest.mark.full),
        ("sqs", "is silent"),
        ("both", "refuses"),
    ],
)
def test_an_outage_stops_nothing_and_moves_nothing(
    lab: FleetLab, measured: Measured, engine: str, how: str
) -> None:
    """Of an engine, for longer than a lease lives, under one busy agent and one idle."""
    task = lab.task(("until", LONG))
    lab.start("busy")
    pid = lab.pid(task)
    lab.start("idle")
    lab.until(lambda: (s := lab.client.state(task)).lease and s.lease.beat > 0)
    harmed = {"s3": [lab.s3], "sqs": [lab.sqs], "both": [lab.s3, lab.sqs]}[engine]
    with lab.harmed(*harmed, silent=how == "is silent"):
        lab.passes(AWAY)
        os.kill(pid, 0)
    watch = Stopwatch()
    before = lab.client.state(task).lease
    lab.until(lambda: lab.client.state(task).lease != before)
    if engine != "sqs":
        measured("S3 is back after an outage → the lease renewed", watch, scaled=True)
    lab.go()
    state = lab.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1)
    lab.check(calm=True)


@pytest.mark.parametrize(
    ("kind", "said"),
    [(proxy.EXPIRED, "credentials have expired"), (proxy.SKEWED, "clock is wrong")],
)
def test_credentials_that_expire_and_clocks_that_are_wrong_stop_nothing(
    lab: FleetLab, kind: str, said: str
) -> None:
    """For a while; the simulation goes on, and the agent's log says what to do."""
    task = lab.task(("until", LONG))
    waits = lab.task(("known", 1.0))
    lab.start()
    pid = lab.pid(task)
    rule = Rule(kind)
    with lab.s3.harming(rule), lab.sqs.harming(rule):
        lab.passes(AWAY / 2)
        lab.go()  # it ends meanwhile, and its outputs wait
        lab.passes(AWAY / 2)
    for each_task in (task, waits):
        state = lab.finish(each_task)
        assert (state.status, state.epoch) == ("succeeded", 1), state
    lab.check(calm=True)
    assert pid
    assert any(said in str(entry.get("error")) for entry in lab.log_of())
