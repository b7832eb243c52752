"""Containers of ranks that a program of the host starts, here a line of shell in mpirun's place."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.apptainer import Apptainer
from fakes.capsules import NOBODY, Capsule, capsule_of_a_test
from fakes.steps import LIMIT, until
from simagent.domain.reasons import Reason
from simagent.ports.launcher import GUARD_CODE, guard_said
from simagent.ports.runtime import RANK, Launch, RuntimeFailedError, StepExit
from simagent.runtimes.apptainer_ranks import shared_memory

ROOT = os.geteuid() == 0
USER = (NOBODY, NOBODY) if ROOT else (os.geteuid(), os.getegid())

_START = """
for rank in 0 1; do
    OMPI_COMM_WORLD_SIZE={size} OMPI_COMM_WORLD_RANK=$rank OPAL_PREFIX=/opt OMPI_MCA_a="x 'y" "$@" &
    ranks="$ranks $!"
done
code=0
for pid in $ranks; do wait $pid || code=$?; done
exit $code
"""


@pytest.fixture
def box(apptainer: Apptainer, tiny_sif: Path) -> Iterator[Capsule]:
    with capsule_of_a_test(tiny_sif, USER) as made:
        yield made


def launch(size: str = "2", mpi: str = "", **env: str) -> Launch:
    line = ("/bin/sh", "-c", _START.format(size=size), "mpirun", *RANK)
    return Launch(argv=line, np=2, env=env, mpi=mpi)


def run(box: Capsule, code: str, started: Launch, **changes: object) -> StepExit:
    env = {"SAID": "a $b 'c\n\"d", "SIMAGENT_TASK_ID": str(box.root)}
    plan = box.plan(
        "sh", "-c", code, **{"network": "host", "launch": started, "env": env} | changes
    )
    return box.run(plan)


def test_each_rank_has_a_container_and_what_it_is_told(box: Capsule) -> None:
    code = (
        'printf "%s|%s|%s|%s|%s|%s\\n" "$OMPI_COMM_WORLD_RANK" "$OMPI_MCA_a" "$SAID" "$OPAL_PREFIX"'
        ' "$SIMAGENT_RANK$SIMAGENT_RANKS$MINE" "$(pwd)" >$OMPI_COMM_WORLD_RANK'
    )
    ended = run(box, code, launch(MINE="of mpirun"))
    assert (ended.exit_code, ended.reason, box.err) == (0, None, b"")
    for rank in "01":
        told = (box.artifacts / rank).read_text()
        assert told == f"{rank}|x 'y|a $b 'c\n\"d|||/workdir/output/artifacts\n"


def test_ranks_share_memory_that_nobody_else_sees(box: Capsule) -> None:
    """One waits for what the other writes; it is on the host in a folder of their user's."""
    code = (
        "if [ $OMPI_COMM_WORLD_RANK = 0 ]; then echo segment >/dev/shm/part;"
        " stat -c %u /dev/shm/part; ls /dev/shm >seen;"
        " else until grep -q segment /dev/shm/part 2>/dev/null; do sleep 0.1; done; echo found; fi"
    )
    ended = run(box, code, launch())
    assert (ended.exit_code, ended.reason, box.err) == (0, None, b"")
    assert sorted(box.out.split()) == sorted([str(USER[0]).encode(), b"found"])
    # A name of the folder in itself: one path for the same thing outside and inside.
    seen = (box.artifacts / "seen").read_text().split()
    assert [name for name in seen if not name.startswith("simagent.")] == ["part"]
    assert not shared_memory(box.plan("sh")).exists(), "memory of the ranks is left"


def test_ranks_see_each_others_processes_but_no_files_of_the_host(box: Capsule) -> None:
    secret = box.root.parent / "secret"
    secret.write_text("x")
    ended = run(box, f"kill -0 {os.getpid()} 2>&1 | grep -c such; ls {secret.parent}", launch())
    assert box.out.split() == [b"0", b"0"]
    assert ended.exit_code != 0
    assert b"No such file" in box.err


@pytest.mark.parametrize("size", ["1", ""])
def test_a_rank_that_does_not_know_of_the_others_does_not_begin(box: Capsule, size: str) -> None:
    ended = run(box, "echo ran", launch(size))
    assert (ended.exit_code, ended.reason, box.out) == (GUARD_CODE, None, b"")
    said = guard_said(box.err.decode())
    assert said is not None
    assert said == (Reason.MPI_MISMATCH, "a rank was started that does not know of the others")


def test_an_image_that_does_not_tell_its_mpi_is_refused(box: Capsule) -> None:
    ended = run(box, "echo ran", launch(mpi="Open MPI 4.1.4"))
    assert (ended.exit_code, box.out) == (GUARD_CODE, b"")
    said = guard_said(box.err.decode())
    assert said is not None
    assert "the image does not tell which MPI it has, to go with Open MPI 4.1.4" in said[1]


def test_a_program_that_is_not_there_is_named(box: Capsule) -> None:
    plan = box.plan("no-such", network="host", launch=launch())
    ended = box.run(plan)
    assert ended.reason is Reason.COMMAND_NOT_FOUND
    assert ended.message.startswith("no-such: no such program in the image")


def test_what_fails_to_start_ranks_is_no_failure_of_the_container(box: Capsule) -> None:
    ended = run(box, "true", Launch(argv=("/bin/sh", "-c", "echo hm >&2; exit 5"), np=2))
    assert (ended.exit_code, ended.reason) == (5, None)
    assert box.err == b"hm\n"


def test_ranks_need_the_network(box: Capsule) -> None:
    with pytest.raises(RuntimeFailedError, match=r"^network: "):
        run(box, "true", launch(), network="none")


def test_memory_of_another_users_is_not_used(box: Capsule) -> None:
    if not ROOT:
        pytest.skip("machine: files of another user: only root can make them")
    folder = shared_memory(box.plan("sh", network="host", launch=launch()))
    folder.mkdir()
    try:
        ended = run(box, "echo ran", launch())
    finally:
        folder.rmdir()
    assert (ended.exit_code, box.out) == (1, b"")
    assert b"is of another user: remove it" in box.err


def test_all_ranks_end_when_the_step_is_stopped(box: Capsule) -> None:
    env = {"SIMAGENT_TASK_ID": str(box.root)}
    code = ">began.$OMPI_COMM_WORLD_RANK; sleep 600"
    plan = box.plan("sh", "-c", code, network="host", launch=launch(), env=env)
    step = box.runtime.start(plan)
    until(lambda: len(list(box.artifacts.glob("began.*"))) == 2)
    again = box.runtime.attach(plan)
    assert again is not None
    again.stop(2.0)
    ended = step.wait(LIMIT)
    assert ended is not None
    assert ended.stopped
    assert box.marked() == []


_FORWARDS = """
trap 'kill -{name} $ranks' {name}
for rank in 0 1; do
    OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=$rank "$@" &
    ranks="$ranks $!"
done
for pid in $ranks; do until wait $pid; [ $? -lt 128 ]; do :; done; done
"""


@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_what_starts_the_ranks_passes_on_to_them_what_it_is_told(box: Capsule, name: str) -> None:
    said = f"trap 'echo bye; exit 3' {name}; >began.$OMPI_COMM_WORLD_RANK"
    code = f"{said}; while :; do sleep 0.05; done"
    line = ("/bin/sh", "-c", _FORWARDS.format(name=name), "mpirun", *RANK)
    env = {"SIMAGENT_TASK_ID": str(box.root)}
    started = Launch(argv=line, np=2)
    plan = box.plan("sh", "-c", code, network="host", launch=started, env=env)
    step = box.runtime.start(plan)
    until(lambda: len(list(box.artifacts.glob("began.*"))) == 2)
    if name == "TERM":
        step.stop(LIMIT)
    else:
        assert step.signal(signal.SIGUSR1)
    ended = step.wait(LIMIT / 2)
    assert ended is not None, "it heard nothing of it"
    assert box.out == b"bye\nbye\n"
