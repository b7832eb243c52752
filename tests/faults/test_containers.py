"""The suite's most telling cases again, with tasks in containers: by Docker and by Apptainer."""

import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from engines.dockerd import Engine
from engines.registry import Registry
from faults.boxes import BoxLab, make_image
from faults.lab import LONG, PATIENCE, Measured, Stopwatch
from faults.test_checkpoints import counting, whole
from faults.test_engines import Timer, needs_mount, small_disk

RUNTIMES = ("docker", "apptainer")
AT_ONCE = 3
POINTS = (
    r"images|http |run |runtime|journal\.write|journal\.remove|os\.\w+ state/(attempts/.*/steps|i)"
)


@pytest.fixture(scope="session")
def image(docker_engine: Engine, image_registry: Registry, tiny_image: str) -> str:
    """The payload's image, in a registry; there is none where there is no BusyBox."""
    made = make_image(docker_engine)
    try:
        return image_registry.push(docker_engine, made, "faults/payload:1")
    finally:
        docker_engine.run("rmi", made)


@contextmanager
def passable() -> Iterator[Path]:
    """Make a folder that the tasks' user may pass, which it may not in pytest's."""
    made = Path(tempfile.mkdtemp(prefix="simagent-faults-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)  # left to be looked at where the test fails


Start = Callable[[Path], BoxLab]


@pytest.fixture(params=RUNTIMES)
def machine(request: pytest.FixtureRequest, image: str, docker_engine: Engine) -> Start:
    """Give what makes a machine in a folder."""
    if request.param == "apptainer":
        request.getfixturevalue("apptainer")
    engine = docker_engine if request.param == "docker" else None
    return lambda folder: BoxLab(folder, request.param, image, engine)


@pytest.fixture
def boxes(machine: Start) -> Iterator[BoxLab]:
    with passable() as folder, machine(folder) as made:
        yield made


# --- The agent ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.full)]
)
def test_an_agent_that_ends_finds_its_container_again(
    boxes: BoxLab, measured: Measured, how: signal.Signals
) -> None:
    task = boxes.task(("until", LONG), ("known", 20.0))
    process = boxes.start()
    before = boxes.pid(task), boxes.containers()
    assert len(before[1]) == (boxes.runtime == "docker")
    times = []
    for _ in range(3):
        process.send_signal(how)
        process.wait()
        lease = boxes.client.state(task).lease
        watch = Stopwatch()
        process = boxes.start()
        boxes.until(lambda old=lease: boxes.client.state(task).lease != old)  # type: ignore[misc]
        watch.stop()
        times.append(watch)
        assert (boxes.pid(task), boxes.containers()) == before
    boxes.go()
    state = boxes.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1)
    boxes.check(calm=True)
    if how == signal.SIGKILL:
        what = "`kill -9` of the agent while a container runs: started again → re-attached"
        measured(f"{boxes.runtime}: {what}", *times)


def killed_at(boxes: BoxLab, point: str) -> bool:
    task = boxes.canonical()
    if not boxes.dies(boxes.start(point=point, act="kill")):
        return False
    boxes.start()
    assert boxes.finish(task).status == "succeeded"
    boxes.check(calm=True)
    return True


@pytest.mark.parametrize("point", ["journal.write attempt,image,user after"])
def test_kill_9_with_the_image_just_there(boxes: BoxLab, point: str) -> None:
    assert killed_at(boxes, point)


@pytest.mark.full
@pytest.mark.timeout(40 * PATIENCE)
def test_kill_9_at_every_point_of_images_and_containers(machine: Start) -> None:
    with passable() as folder, machine(folder) as recorded:
        recorded.canonical()
        recorded.start(record=str(folder / "points"))
        recorded.check(calm=True)
        found = sorted(set((folder / "points").read_text().splitlines()))
    chosen = [point for point in found if re.match(POINTS, point)]
    assert len(chosen) > 20

    def run(point: str) -> bool | str:
        with passable() as folder:
            try:
                with machine(folder) as boxes:
                    return killed_at(boxes, point)
            except AssertionError as error:
                return f"{point}: {error}"

    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(run, chosen))
    assert not (failures := [r for r in results if isinstance(r, str)]), "\n".join(failures)
    assert sum(map(bool, results)) >= 0.8 * len(chosen)


def test_what_a_lost_container_had_made_is_laid_into_the_next_one(boxes: BoxLab) -> None:
    task = counting(boxes, 3)
    first = boxes.start("first")
    boxes.until(lambda: whole(boxes, task))
    first.kill()
    first.wait()
    boxes.go()
    boxes.start("second")
    state = boxes.finish(task)
    # The payload fails where it may not write to the files that were laid back.
    assert (state.status, state.attempts[-1].restart) == ("succeeded", 1)
    boxes.start("first")  # its machine is back: it ends its leftovers
    boxes.check()


@pytest.mark.full
def test_a_container_ends_when_another_agent_has_its_task(boxes: BoxLab) -> None:
    task = boxes.task(("until", LONG))
    frozen = boxes.start("frozen", point="runtime.start step 0 after", act="stop")
    boxes.stopped(frozen)
    first = boxes.pid(task)
    boxes.start("other")
    boxes.until(lambda: boxes.client.state(task).epoch == 2 or None)
    boxes.until(lambda: len(boxes.programs(task)) == 2 or None)
    frozen.send_signal(signal.SIGCONT)
    boxes.until(lambda: first not in boxes.programs(task) or None)
    boxes.go()
    state = boxes.finish(task)
    assert (state.status, state.attempts[-1].agent) == ("succeeded", "other")
    boxes.check()


# --- What runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode",
    ["stubborn", *(pytest.param(m, marks=pytest.mark.full) for m in ("children", "fork"))],
)
def test_a_kill_ends_all_of_a_container(boxes: BoxLab, measured: Measured, mode: str) -> None:
    task = boxes.task((mode, LONG), ("tick", LONG), grace=0.5)
    boxes.start()
    boxes.pid(task)
    if mode != "children":  # it says nothing before its end
        boxes.until(lambda: boxes.log(task) or None)
    watch = Stopwatch()
    boxes.client.kill(task, by="tester")
    state = boxes.finish(task)
    what = "`kill` with 0.5 s of grace, of what ignores SIGTERM → ended"
    measured(f"{boxes.runtime}: {what}", watch)
    assert (state.status, state.epoch) == ("killed", 1)
    boxes.check(calm=True)


@pytest.mark.full
def test_what_hides_in_a_container_ends_with_its_command(boxes: BoxLab) -> None:
    task = boxes.task(("daemonise", LONG), ("strange", 2.0), ("known", 1.0))
    boxes.start()
    assert boxes.finish(task).status == "succeeded"
    boxes.check(calm=True)


@pytest.mark.full
@pytest.mark.parametrize("mode", ["stubborn", "fork"])
def test_a_time_limit_ends_a_container_that_resists(boxes: BoxLab, mode: str) -> None:
    task = boxes.task((mode, LONG), time_limit=3.0, grace=0.5)
    boxes.start()
    state = boxes.finish(task)
    assert (state.status, state.reason) == ("timed_out", "time_limit")
    boxes.check(calm=True)


@pytest.mark.full
def test_memory_that_is_not_allowed(boxes: BoxLab) -> None:
    task = boxes.task(("eat", 200.0), resources={"memory": "64MiB"})
    boxes.start()
    state = boxes.finish(task)
    # Without cgroups Apptainer's programs are refused it, and fail of themselves.
    told = {"oom"} if boxes.runtime == "docker" else {"oom", "exit_code"}
    assert (state.status, state.reason in told) == ("failed", True), state.message
    boxes.check(calm=True)


@pytest.mark.full
@needs_mount
def test_a_container_that_fills_the_disk(boxes: BoxLab) -> None:
    with small_disk(boxes.folder / "state", "100m"):
        task = boxes.task(("tick", 0.2), ("fill", 400.0))
        boxes.start()
        state = boxes.finish(task)
        assert (state.status, state.reason, state.epoch) == ("failed", "disk_full", 1)
        after = boxes.task(("known", 1.0))
        assert boxes.finish(after).status == "succeeded"
        boxes.check(calm=True)
        boxes.stop()


# --- The engine --------------------------------------------------------------------------------


@pytest.fixture
def engine(private_docker: Callable[[], Engine]) -> Engine:
    """An engine that may be stopped."""
    return private_docker()


@pytest.fixture
def apart(engine: Engine, image: str) -> Iterator[BoxLab]:
    """A machine with that engine."""
    with passable() as folder, BoxLab(folder, "docker", image, engine) as made:
        yield made


@pytest.mark.full
@pytest.mark.parametrize("how", [Engine.stop, Engine.kill], ids=["stopped", "killed"])
def test_an_engine_that_ends_and_is_back(
    apart: BoxLab, engine: Engine, how: Callable[[Engine], None]
) -> None:
    task = apart.task(("until", LONG), ("known", 20.0))
    apart.start()
    before = apart.pid(task), apart.containers()
    how(engine)
    apart.until(Timer(2.0).over)
    engine.start()
    assert (apart.pid(task), apart.containers()) == before
    apart.go()
    state = apart.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1)
    apart.check(calm=True)


@pytest.mark.full
def test_an_agent_that_starts_while_the_engine_is_away_waits_for_it(
    apart: BoxLab, engine: Engine, measured: Measured
) -> None:
    task = apart.task(("until", LONG), ("known", 20.0))
    process = apart.start()
    before = apart.pid(task), apart.containers()
    process.kill()
    process.wait()
    engine.stop()
    lease = apart.client.state(task).lease
    apart.start()
    apart.until(lambda: apart.client.state(task).lease != lease)
    apart.until(Timer(3.0).over)
    assert apart.programs(task) == [before[0]]
    engine.start()
    assert apart.containers() == before[1]
    apart.go()
    watch = Stopwatch()
    state = apart.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1)
    apart.check(calm=True)
    measured("docker: the engine is back after an agent began without → the task has ended", watch)


@pytest.mark.full
def test_a_kill_while_the_engine_is_away_is_obeyed_when_it_is_back(
    apart: BoxLab, engine: Engine
) -> None:
    task = apart.task(("stubborn", LONG), grace=0.5)
    process = apart.start()
    apart.pid(task)
    process.kill()
    process.wait()
    engine.stop()
    apart.start()
    apart.client.kill(task, by="tester")
    apart.until(Timer(3.0).over)
    engine.start()
    state = apart.finish(task)
    assert (state.status, state.epoch) == ("killed", 1)
    apart.check(calm=True)
