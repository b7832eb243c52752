"""The agent is killed, or an answer kept from it, at every point that a task's run passes."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from faults.lab import FULL, PATIENCE, Lab

SHARDS, EVERY = (4, 1) if FULL else (1, 12)
AT_ONCE = 4
MOMENTS = {
    "claim": "store.put state.json:preparing after",
    "run": "runtime.start step 0 after",
    "upload": "store.upload a/N/output.zip within",
    "end": "store.put state.json:succeeded after",
}
CHANGES = r"(store\.(put|upload|delete)|queue\.).* after"

Case = Callable[[Lab, str], bool]


def points(folder: Path) -> list[str]:
    """Record which points the canonical task passes."""
    with Lab(folder) as lab:
        lab.canonical()
        lab.start(record=str(folder / "points"))
        lab.check(calm=True)
    return sorted((folder / "points").read_text().splitlines())


def each(chosen: list[str], case: Case, folder: Path) -> None:
    """Run a case at each point, a few at a time, and tell of all that fail.

    A few points are passed by chance only, as small pieces of a log are joined or not.
    """

    def run(numbered: tuple[int, str]) -> bool | str:
        number, point = numbered
        (folder / str(number)).mkdir()
        try:
            with Lab(folder / str(number)) as lab:
                return case(lab, point)
        except AssertionError as error:
            return f"{point}, in {folder / str(number)}: {error}"

    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(run, enumerate(chosen)))
    assert not (failures := [r for r in results if isinstance(r, str)]), "\n".join(failures)
    assert sum(map(bool, results)) >= 0.8 * len(chosen) - 1


def killed_at(lab: Lab, point: str) -> bool:
    task = lab.canonical()
    process = lab.start(point=point, act="kill")
    if not lab.dies(process):
        return False
    lab.start()
    assert lab.finish(task).status == "succeeded"
    lab.check(calm=True)
    return True


def loses_answer(lab: Lab, point: str) -> bool:
    task = lab.canonical()
    lab.start(point=point, act="lose", record=str(lab.folder / "points"))
    assert lab.finish(task).status == "succeeded"
    lab.check(calm=True)
    return point in (lab.folder / "points").read_text().splitlines()


@pytest.mark.timeout(20 * PATIENCE)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_kill_9_at_every_point_loses_nothing_and_repeats_nothing(
    tmp_path: Path, shard: int
) -> None:
    (tmp_path / "record").mkdir()
    found = points(tmp_path / "record")
    assert len(found) > 50
    each(found[shard * EVERY :: SHARDS * EVERY], killed_at, tmp_path)


@pytest.mark.timeout(20 * PATIENCE)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_lost_answer_at_every_change_costs_nothing(tmp_path: Path, shard: int) -> None:
    (tmp_path / "record").mkdir()
    found = [p for p in points(tmp_path / "record") if re.match(CHANGES, p)]
    each(found[shard :: SHARDS if FULL else 4], loses_answer, tmp_path)


def killed_again_at(moment: str, lab: Lab, point: str) -> bool:
    task = lab.canonical()
    assert lab.dies(lab.start(point=moment, act="kill"))
    if not lab.dies(lab.start(point=point, act="kill")):
        return False
    lab.start()
    assert lab.finish(task).status == "succeeded"
    lab.check(calm=True)
    return True


@pytest.mark.timeout(20 * PATIENCE)
@pytest.mark.parametrize(
    "moment", [m if m == "upload" else pytest.param(m, marks=pytest.mark.full) for m in MOMENTS]
)
def test_kill_9_at_every_point_of_a_recovery(tmp_path: Path, moment: str) -> None:
    (tmp_path / "record").mkdir()
    with Lab(tmp_path / "record") as lab:
        lab.canonical()
        assert lab.dies(lab.start(point=MOMENTS[moment], act="kill"))
        lab.start(record=str(tmp_path / "points"))
        lab.check(calm=True)
    found = sorted((tmp_path / "points").read_text().splitlines())
    assert len(found) > 15
    each(found[::EVERY], partial(killed_again_at, MOMENTS[moment]), tmp_path)
