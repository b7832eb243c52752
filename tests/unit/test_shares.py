"""What of a machine each task is given, beside others."""

from pathlib import Path
from random import Random

import pytest

from simagent.domain.spec import Resources
from simagent.worker.shares import Machine, Share, alone, lacks, nvidia_gpus, share, this_machine

GIB = 2**30
MACHINE = Machine(cores=tuple(range(8)), memory=64 * GIB, gpus=("GPU-a", "GPU-b"))


def asks(**fields: object) -> Resources:
    return Resources.model_validate(fields)


def test_one_slot_is_all_of_the_machine_but_for_what_is_asked_for() -> None:
    asked = asks(cpus=3, memory=GIB)
    assert share(asked, MACHINE, 1, []) == Share(cpus=3, memory=GIB) == alone(asked)
    assert share(asks(), MACHINE, 1, []) == Share()
    assert lacks(asks(cpus=8), MACHINE, 1, [Share(cpus=8)]) is None


def test_a_task_that_says_nothing_gets_the_part_of_one_slot() -> None:
    given = share(asks(), MACHINE, 4, [])
    assert (given.cpus, given.memory) == (2.0, 16 * GIB)
    assert given.cores == (0, 1)


def test_what_does_not_fit_is_told_with_what_is_free() -> None:
    taken = [share(asks(cpus=6, memory="60GiB"), MACHINE, 4, [])]
    assert lacks(asks(cpus=2, memory=GIB), MACHINE, 4, taken) is None
    why = lacks(asks(cpus=2.5, memory=GIB), MACHINE, 4, taken)
    assert why == "cpus: 2.5 are asked for, 2 are free beside what runs here"
    why = lacks(asks(cpus=1), MACHINE, 4, taken)
    assert (
        why
        == "memory: 16.0 GiB are its part of this machine, 4.0 GiB are free beside what runs here"
    )


def test_what_was_begun_with_the_machine_to_itself_leaves_nothing() -> None:
    assert lacks(asks(), MACHINE, 4, [alone(asks(cpus=1))]) is not None  # its memory has no end
    assert lacks(asks(), MACHINE, 4, [alone(asks(cpus=1, memory=GIB))]) is None


def test_parts_of_cores_add_up() -> None:
    taken: list[Share] = []
    for _ in range(80):
        assert lacks(asks(cpus=0.1, memory=0), MACHINE, 100, taken) is None
        taken.append(share(asks(cpus=0.1, memory=0), MACHINE, 100, taken))
    assert lacks(asks(cpus=0.1, memory=0), MACHINE, 100, taken) is not None
    assert {len(each.cores) for each in taken} == {1}


def test_gpus_are_given_to_one_task_each() -> None:
    one = share(asks(gpus=1), MACHINE, 4, [])
    two = share(asks(gpus=1), MACHINE, 4, [one])
    assert (one.gpu_ids, two.gpu_ids) == (("GPU-a",), ("GPU-b",))
    why = lacks(asks(gpus=1), MACHINE, 4, [one, two])
    assert why == "gpus: 1 are asked for, 0 are free here"


def test_unknown_gpus_are_had_by_one_task_at_a_time() -> None:
    machine = Machine(cores=(0, 1), memory=GIB)
    one = share(asks(gpus=2), machine, 2, [])
    assert (one.gpus, one.gpu_ids) == (2, ())
    assert lacks(asks(gpus=1), machine, 2, [one]) is not None
    assert lacks(asks(), machine, 2, [one]) is None


def test_disk_that_is_promised_is_not_free() -> None:
    taken = [share(asks(cpus=1, memory=GIB, disk=10 * GIB), MACHINE, 4, [])]
    assert lacks(asks(disk=GIB), MACHINE, 4, taken, room=GIB) is None
    assert lacks(asks(disk=GIB), MACHINE, 4, taken, room=GIB - 1) is not None
    assert lacks(asks(), MACHINE, 4, taken, room=0) is None


def test_the_lowest_slot_that_is_free_is_taken() -> None:
    first = share(asks(), MACHINE, 4, [])
    second = share(asks(), MACHINE, 4, [first])
    assert (first.slot, second.slot) == (0, 1)
    assert share(asks(), MACHINE, 4, [second]).slot == 0


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_nothing_is_given_twice(seed: int) -> None:
    random = Random(seed)
    slots = random.randint(2, 8)
    taken: list[Share] = []
    for _ in range(300):
        asked = asks(
            cpus=random.choice([None, 1, 2, 3, 8]),
            memory=random.choice([None, GIB, 40 * GIB]),
            gpus=random.choice([None, 0, 1, 2]),
        )
        if len(taken) < slots and lacks(asked, MACHINE, slots, taken) is None:
            taken.append(share(asked, MACHINE, slots, taken))
        elif taken:
            taken.remove(random.choice(taken))
        assert sum(each.cpus or 0 for each in taken) <= 8 + 1e-6
        assert sum(each.memory or 0 for each in taken) <= MACHINE.memory
        gpus = [name for each in taken for name in each.gpu_ids]
        assert len(gpus) == len(set(gpus)) == sum(each.gpus for each in taken)
        assert len({each.slot for each in taken}) == len(taken)
        whole = all(float(each.cpus or 0).is_integer() for each in taken)
        cores = [core for each in taken for core in each.cores]
        assert not whole or len(cores) == len(set(cores))


def test_tasks_that_ask_for_whole_cores_have_them_alone() -> None:
    taken: list[Share] = []
    for cpus in (3, 1, 2, 2):
        taken.append(share(asks(cpus=cpus, memory=GIB), MACHINE, 4, taken))
    assert sorted(core for each in taken for core in each.cores) == list(range(8))


def test_agents_of_one_machine_do_not_all_begin_with_the_same_core() -> None:
    machines = {this_machine(agent=f"agent-{number}").cores for number in range(50)}
    assert {frozenset(cores) for cores in machines} == {frozenset(this_machine().cores)}
    assert len(machines) == len(this_machine().cores)


def test_gpus_are_known_by_what_the_driver_says(tmp_path: Path) -> None:
    for number, text in enumerate(["Model: X\nGPU UUID: \t GPU-1234-ab\nIRQ: 3\n", "no uuid"]):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
        (tmp_path / f"0000:0{number}:00.0" / "information").write_text(text)
    assert nvidia_gpus(tmp_path) == ("GPU-1234-ab",)
    assert nvidia_gpus(tmp_path / "none") == ()
    assert this_machine(("0", "1")).gpus == ("0", "1")
