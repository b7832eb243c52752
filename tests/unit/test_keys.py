"""Ids, the layout of the store, and the messages of the queue."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simagent.domain import bell, keys
from simagent.domain.ids import check_id, check_name, new_id, newest_first
from simagent.domain.keys import TaskKeys

WALLS = st.integers(min_value=0, max_value=10**13).map(lambda ms: ms / 1000)


def test_an_id_is_a_ulid() -> None:
    # The example of https://github.com/ulid/spec: its time part is of 1469918176385 ms.
    assert new_id(1469918176.385)[:10] == "01ARYZ6S41"
    assert re.fullmatch(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", new_id(1_700_000_000.0))


@pytest.mark.parametrize("wall", [-1.0, 0.0, 1e20])
def test_a_clock_that_is_far_out_still_gives_ids(wall: float) -> None:
    assert re.fullmatch(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", check_id(new_id(wall)))


def test_ids_of_one_moment_differ() -> None:
    assert len({new_id(1.0) for _ in range(100)}) == 100


@given(WALLS, WALLS)
def test_ids_sort_by_time_and_the_index_by_its_reverse(one: float, other: float) -> None:
    if int(one * 1000) < int(other * 1000):
        assert new_id(one) < new_id(other)
        assert newest_first(one) > newest_first(other)


@pytest.mark.parametrize("value", ["a", "A-1_b", "0" * 64, "01ARYZ6S410123456789ABCDEF"])
def test_ids_that_may_stand_in_a_key(value: str) -> None:
    assert check_id(value) == value


@pytest.mark.parametrize("value", ["", "-a", "_a", "a.b", "a/b", "a b", "a\n", "x" * 65, "é"])
def test_ids_that_may_not(value: str) -> None:
    with pytest.raises(ValueError, match="no task id"):
        check_id(value)


@pytest.mark.parametrize("value", ["", ".a", "..", "-a", "a/b", "a\n", "x" * 65])
def test_names_that_may_not(value: str) -> None:
    with pytest.raises(ValueError, match="no valid name"):
        check_name(value)


def test_the_layout_of_the_store() -> None:
    task = TaskKeys("p1", "T1")
    attempt = task.attempt(3)
    assert task.spec == "p/p1/tasks/T1/spec.json"
    assert task.state == "p/p1/tasks/T1/state.json"
    assert task.control == "p/p1/tasks/T1/control.json"
    assert task.input(0) == "p/p1/tasks/T1/inputs/0.zip"
    assert attempt.log_chunk("stdout", 42) == "p/p1/tasks/T1/a/3/logs/stdout/" + "0" * 18 + "42"
    assert attempt.log_chunk("stderr", 0) == "p/p1/tasks/T1/a/3/logs/stderr/" + "0" * 20
    assert attempt.metrics_segment(7) == "p/p1/tasks/T1/a/3/metrics/00000007.jsonl"
    assert attempt.output_zip == "p/p1/tasks/T1/a/3/output.zip"
    assert attempt.manifest == "p/p1/tasks/T1/a/3/manifest.json"
    assert attempt.checkpoint(2, "ab") == "p/p1/tasks/T1/a/3/checkpoints/00000002.ab.zip"
    assert attempt.sync("S").output_zip == "p/p1/tasks/T1/a/3/sync/S/output.zip"
    assert keys.open_marker("g1", task) == "open/g1/T1.p1"
    assert keys.sweep("g1") == "sweep/g1.json"
    entry = keys.index_entry("p1", "T-1", 1_700_000_000.0)
    assert re.fullmatch(r"p/p1/index/[0-9A-Z]{10}-T-1", entry)
    assert keys.index_task(entry) == "T-1"


def test_all_of_a_task_lies_under_its_root() -> None:
    task = TaskKeys("p1", "T1")
    attempt = task.attempt(12)
    assert attempt.root.startswith(task.root)
    of_attempt = [attempt.logs("stdout"), attempt.metrics, attempt.output_zip, attempt.manifest]
    assert all(key.startswith(attempt.root) for key in of_attempt)
    of_task = [task.spec, task.state, task.control, task.input(1)]
    assert all(key.startswith(task.root) for key in of_task)
    # A prefix of one task, attempt or group is never that of another.
    assert not TaskKeys("p1", "T12").root.startswith(task.root)
    assert not task.attempt(120).root.startswith(attempt.root)
    assert not keys.open_marker("g12", TaskKeys("p", "T")).startswith(keys.open_prefix("g1"))


@given(st.integers(0, 10**15), st.integers(0, 10**15))
def test_chunks_sort_by_offset(one: int, other: int) -> None:
    attempt = TaskKeys("p", "T").attempt(1)
    names = attempt.log_chunk("stdout", one), attempt.log_chunk("stdout", other)
    assert (names[0] < names[1]) == (one < other)


def test_a_bell_names_its_task() -> None:
    task = TaskKeys("p1", "T1")
    assert bell.parse(bell.encode(task)) == task
    assert json.loads(bell.encode(task)) == {"format": 1, "project": "p1", "task": "T1"}


def test_a_bell_of_a_newer_version_is_still_heard() -> None:
    body = json.dumps({"format": 2, "project": "p", "task": "T", "hint": ["gpu"]})
    assert bell.parse(body) == TaskKeys("p", "T")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("1" * 10_000, "not JSON"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{}", "lacks 'project'"),
        ('{"project": "p"}', "lacks 'task'"),
        ('{"project": 1, "task": "T"}', "have to be strings"),
        ('{"project": "p", "task": ["T"]}', "have to be strings"),
        ('{"project": "../x", "task": "T"}', "no valid name"),
        ('{"project": "p", "task": "a/b"}', "no task id"),
    ],
)
def test_a_malformed_bell_says_what_is_wrong(body: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        bell.parse(body)


@given(st.text())
def test_any_body_is_a_task_or_a_value_error(body: str) -> None:
    try:
        bell.parse(body)
    except ValueError:
        return
    raise AssertionError("random text named a task")
