"""What every runtime promises: the same steps, as programs of the machine and in containers."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.boxes import box as docker_box
from fakes.capsules import NOBODY, capsule
from fakes.steps import LIMIT, Folder, until
from simagent.domain.reasons import Reason
from simagent.ports.clock import Wake
from simagent.ports.runtime import Runtime, Step, StepPlan
from simagent.runtimes.process import ProcessRuntime

USER = (NOBODY, NOBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
SLEEP = "echo here; sleep 600 & wait"


@pytest.fixture(params=["process", "docker", "apptainer"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    """An attempt's folder of each runtime."""
    match request.param:
        case "process":
            yield Folder(tmp_path, ProcessRuntime())
        case "docker":
            engine = request.getfixturevalue("docker_engine")
            with docker_box(engine, request.getfixturevalue("tiny_image")) as made:
                yield made
                assert made.containers() == [], "the test left containers behind"
        case _:
            with capsule(request.getfixturevalue("tiny_sif"), USER) as encapsulated:
                yield encapsulated


def runtime_of(folder: Folder) -> Runtime:
    return folder.runtime


def attach(folder: Folder, plan: StepPlan) -> Step:
    step = runtime_of(folder).attach(plan)
    assert step is not None
    return step


def test_output_and_exit_code(folder: Folder) -> None:
    result = folder.run(folder.plan("sh", "-c", "echo out; echo err >&2; exit 7"))
    assert (result.exit_code, result.signal, result.reason) == (7, None, None)
    assert (folder.out, folder.err, result.stopped) == (b"out\n", b"err\n", False)
    assert result.started is not None
    assert result.ended is not None
    assert result.ended - result.started < LIMIT


@pytest.mark.parametrize("code", [0, 1, 125, 126, 127, 128, 255])
def test_each_exit_code_is_the_programs_own(folder: Folder, code: int) -> None:
    result = folder.run(folder.plan("sh", "-c", f"exit {code}"))
    assert (result.exit_code, result.signal, result.reason) == (code, None, None)


@pytest.mark.parametrize("name", ["SEGV", "KILL", "TERM"])
def test_end_by_a_signal(folder: Folder, name: str) -> None:
    result = folder.run(folder.plan("sh", "-c", f"kill -{name} $$"))
    assert (result.exit_code, result.signal) == (None, getattr(signal, f"SIG{name}"))
    assert (result.reason, result.stopped) == (None, False)


def test_a_program_that_is_not_there(folder: Folder) -> None:
    result = folder.run(folder.plan("no-such-program"))
    assert (result.reason, result.exit_code) == (Reason.COMMAND_NOT_FOUND, None)
    assert "no-such-program" in result.message


def test_the_log_is_byte_for_byte(folder: Folder) -> None:
    code = r"printf '\000\377\376\r\n'; head -c 3000000 /dev/zero; printf '\200end'"
    assert folder.run(folder.plan("sh", "-c", code)).exit_code == 0
    assert folder.out == b"\0\xff\xfe\r\n" + b"\0" * 3_000_000 + b"\x80end"


def test_prompts_are_answered_on_stdin(folder: Folder) -> None:
    answers = b"yes\n\xff\x00two\n"
    assert folder.run(folder.plan("cat", stdin=answers)).exit_code == 0
    assert folder.out == answers


def test_steps_append_to_the_same_logs(folder: Folder) -> None:
    for number in range(3):
        folder.run(folder.plan("echo", str(number), number=number))
    assert folder.out == b"0\n1\n2\n"


def test_words_are_words_whatever_they_look_like(folder: Folder) -> None:
    words = ("--privileged", "-v", "/:/host", "$HOME", "`id`", "a b", "", "*", "'", '"\\')
    assert folder.run(folder.plan("printf", "<%s>\\n", *words)).exit_code == 0
    assert folder.out.decode().splitlines() == [f"<{word}>" for word in words]


def test_a_step_that_was_never_started_is_not_found(folder: Folder) -> None:
    assert runtime_of(folder).attach(folder.plan("true")) is None


def test_of_many_starters_one_runs_the_step(folder: Folder) -> None:
    plan = folder.plan("sh", "-c", "echo once; sleep 0.3; exit 5")
    codes: list[int | None] = []
    threads = [
        threading.Thread(target=lambda: codes.append(folder.run(plan).exit_code)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [5, 5, 5, 5]
    assert folder.out == b"once\n"
    assert folder.run(plan).exit_code == 5


def test_wait_returns_for_a_wake_and_after_its_time(folder: Folder) -> None:
    step = runtime_of(folder).start(folder.plan("sh", "-c", SLEEP))
    wake = Wake()
    assert step.wait(0) is None
    threading.Timer(0.05, wake.set).start()
    assert step.wait(None, wake) is None
    wake.clear()
    assert step.wait(0.05, wake) is None
    step.stop(0)
    assert step.wait(LIMIT, wake) is not None
    assert step.pids() == []
    step.stop(0)
    step.signal(signal.SIGTERM)
    assert step.wait(None) == step.wait(0)


def test_stop_lets_the_step_end_by_itself(folder: Folder) -> None:
    code = "trap 'echo bye; exit 3' TERM; echo here; while :; do sleep 0.05; done"
    step = runtime_of(folder).start(folder.plan("sh", "-c", code))
    until(lambda: folder.out)
    step.stop(LIMIT)
    result = step.wait(LIMIT)
    assert result is not None
    assert (result.exit_code, result.stopped) == (3, True)
    assert folder.out == b"here\nbye\n"


def test_stop_kills_what_ignores_it_and_a_later_one_only_shortens(folder: Folder) -> None:
    code = "trap '' TERM; echo here; while :; do sleep 0.05; done"
    step = runtime_of(folder).start(folder.plan("sh", "-c", code))
    until(lambda: folder.out)
    step.stop(600)
    assert step.wait(0.3) is None
    step.stop(0)
    step.stop(600)
    result = step.wait(LIMIT)
    assert result is not None
    assert (result.signal, result.stopped) == (signal.SIGKILL, True)


def test_another_agent_goes_on_with_the_step(folder: Folder) -> None:
    code = "echo here; while [ ! -e go ]; do sleep 0.02; done; exit 9"
    plan = folder.plan("sh", "-c", code)
    runtime_of(folder).start(plan)
    until(lambda: folder.out)
    again = attach(folder, plan)
    assert again.wait(0) is None
    assert again.pids() != []
    (getattr(folder, "artifacts", folder.root) / "go").touch()
    result = again.wait(LIMIT)
    assert result is not None
    assert result.exit_code == 9
    assert attach(folder, plan).wait(0) == result, "it is read again"


def test_signals_reach_the_program(folder: Folder) -> None:
    code = "trap 'echo got; exit 4' USR1; echo here; while :; do sleep 0.05; done"
    step = runtime_of(folder).start(folder.plan("sh", "-c", code))
    until(lambda: folder.out)
    step.signal(signal.SIGUSR1)
    result = step.wait(LIMIT)
    assert result is not None
    assert (result.exit_code, result.stopped) == (4, False)
    assert b"got" in folder.out


def test_a_signal_ends_none_that_has_no_use_for_it(folder: Folder) -> None:
    trap = "trap 'echo got; exit 4' USR1; echo here; while :; do sleep 0.05; done"
    step = runtime_of(folder).start(folder.plan("sh", "-c", f'sh -c "{trap}"; echo $?; {SLEEP}'))
    until(lambda: folder.out)
    assert step.signal(signal.SIGUSR1)
    until(lambda: folder.out == b"here\ngot\n4\nhere\n")
    assert not step.signal(signal.SIGUSR1)
    assert step.wait(0.2) is None
    step.stop(0)
    assert step.wait(LIMIT) is not None


def test_a_signal_goes_to_the_outermost_alone_that_heeds_it(folder: Folder) -> None:
    inner = "trap 'echo inner' USR1; echo here; while :; do sleep 0.05; done"
    outer = f"trap 'echo outer; exit 5' USR1; sh -c \"{inner}\" & echo here; while :; do wait; done"
    step = runtime_of(folder).start(folder.plan("sh", "-c", outer))
    until(lambda: folder.out == b"here\nhere\n")
    assert step.signal(signal.SIGUSR1)
    result = step.wait(LIMIT)
    assert result is not None
    assert result.exit_code == 5
    assert folder.out == b"here\nhere\nouter\n"


def test_nothing_outlives_its_step(folder: Folder) -> None:
    result = folder.run(folder.plan("sh", "-c", "setsid sleep 600 & echo here"))
    assert (result.exit_code, result.stopped) == (0, False)
    until(lambda: folder.marked() == [], "the end of all its processes")
