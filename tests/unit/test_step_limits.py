"""What is said of a step's end, and how limits are chosen without a cgroup."""

import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from simagent.domain.reasons import Reason
from simagent.domain.spec import Resources
from simagent.ports.runtime import StepLimits
from simagent.runtimes.limits import cores, explain, rlimits
from simagent.worker.capacity import lacking

GIB = 2**30
TASK = StepLimits(memory_bytes=GIB)


def end(**fields: object) -> dict[str, Any]:
    record: dict[str, Any] = {"exit_code": None, "signal": None, "reason": None, "message": ""}
    return record | {"stopped": None, "max_rss_bytes": 0, "oom_kills": 0} | fields


def test_what_was_killed_in_its_own_cgroup_lacked_memory() -> None:
    reason, message = explain(end(signal=9, oom_kills=3, confined=True), TASK)
    assert reason is Reason.OOM
    assert message == "the kernel killed 3 of its processes for lack of memory (1,024 MiB allowed)"
    assert explain(end(exit_code=9, oom_kills=1, confined=True), TASK)[0] is Reason.OOM


@pytest.mark.parametrize("how", [{"signal": 9}, {"exit_code": 137}])
def test_without_a_cgroup_it_is_likely(how: dict[str, object]) -> None:
    reason, message = explain(end(oom_kills=1, **how), StepLimits())
    assert (reason, message.split()[0]) == (Reason.OOM, "likely:")


def test_another_failure_meanwhile_is_told_and_not_blamed() -> None:
    reason, message = explain(end(exit_code=1, oom_kills=1), StepLimits())
    assert (reason, "for lack of memory meanwhile (1)" in message) == (None, True)


def test_a_plain_sigkill_is_said_to_be_one() -> None:
    assert explain(end(signal=9), TASK) == (
        None,
        "sent neither by the agent nor for lack of memory",
    )
    assert explain(end(signal=9, oom_kills=None), TASK) == (None, "")
    assert explain(end(signal=11), TASK) == (None, "")


@pytest.mark.parametrize("fields", [{"exit_code": 0}, {"signal": 9, "stopped": "stop"}])
def test_what_succeeded_or_was_stopped_is_not_explained(fields: dict[str, object]) -> None:
    assert explain(end(oom_kills=5, confined=True, **fields), TASK) == (None, "")


def test_use_near_the_limit_is_told() -> None:
    _, message = explain(end(exit_code=1, max_rss_bytes=900 * 2**20), TASK)
    assert message == "its largest process used 900 MiB, resources.memory allows 1,024 MiB"
    assert explain(end(exit_code=1, max_rss_bytes=GIB // 2), TASK) == (None, "")


def test_a_record_of_an_older_shim_is_read() -> None:
    record = end(signal=9)
    del record["oom_kills"]
    assert explain(record, TASK) == (None, "")


def test_rlimits_stand_in_for_a_cgroup_only_where_there_is_none() -> None:
    limits = StepLimits(memory_bytes=GIB, processes=100, file_bytes=5)
    assert rlimits(limits, confined=True) == {"RLIMIT_FSIZE": 5}
    found = rlimits(limits, confined=False)
    assert (found["RLIMIT_FSIZE"], found["RLIMIT_DATA"]) == (5, GIB)
    if os.getuid() == 0:
        assert "RLIMIT_NPROC" not in found
    else:
        assert found["RLIMIT_NPROC"] > 100  # this test is a process of the user's, too
    assert rlimits(StepLimits(), confined=False) == {}


def test_cores_are_whole_and_the_same_for_all_steps_of_an_attempt() -> None:
    usable = os.sched_getaffinity(0)
    assert cores(StepLimits(), "t.1") == []
    assert len(cores(StepLimits(cpus=0.5), "t.1")) == 1
    assert set(cores(StepLimits(cpus=1000), "t.1")) == usable
    one = StepLimits(cpus=1)
    assert cores(one, "t.1") == cores(one, "t.1")
    assert {cores(one, f"t.{epoch}")[0] for epoch in range(100)} == usable


def test_a_machine_that_is_too_small_is_told(tmp_path: Path) -> None:
    total = psutil.virtual_memory().total
    assert lacking(Resources(cpus=1, memory=2**20, disk=1), tmp_path) is None
    for asked in (Resources(cpus=10_000), Resources(memory=total + 1), Resources(disk=10**18)):
        (name,) = asked.model_dump(exclude_none=True)
        assert (lacking(asked, tmp_path) or "").startswith(f"resources.{name}: ")
