"""What containers side by side have each for itself: users, and GPUs."""

import os
import pwd
from pathlib import Path

import pytest

from simagent.ports.runtime import Sandbox, StepPlan
from simagent.runtimes.apptainer_box import Box
from simagent.runtimes.docker_container import settings
from simagent.worker.users import TaskUsers, closed_to, task_users, variables

THERE = {"simtask-0": 900, "simtask-1": 901, "simtask-3": 903}


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(name: str) -> pwd.struct_passwd:
        uid = THERE[name]
        return pwd.struct_passwd((name, "x", uid, uid + 10, "", "/", "/bin/false"))

    monkeypatch.setattr(pwd, "getpwnam", look)
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def plan(folder: Path, **sandbox: object) -> StepPlan:
    made = Sandbox(image="i", uid=os.geteuid(), gid=os.getegid(), **sandbox)  # type: ignore[arg-type]
    nothing = Path("/dev/null")
    return StepPlan(
        folder=folder / "steps",
        number=0,
        argv=("true",),
        cwd=Path("/"),
        stdout=nothing,
        stderr=nothing,
        sandbox=made,
    )


def found(uid: int | None = None, slots: int = 1, **how: bool | None) -> TaskUsers:
    return task_users(uid=uid, slots=slots, root_programs=how.pop("root", None), **how)  # type: ignore[arg-type]


@pytest.mark.usefixtures("users")
def test_slots_run_as_users_of_their_own_as_far_as_there_are_such() -> None:
    users = found(slots=4)
    assert users.slots == ((900, 910), (901, 911))
    assert [users.container(slot) for slot in (0, 1, 2)] == [(900, 910), (901, 911), (900, 910)]
    assert [users.program(slot) for slot in (0, 1, 2)] == [(900, 910), (901, 911), (900, 910)]
    assert users.all == ((900, 910), (901, 911))
    assert found(slots=1).slots == ((900, 910),)


@pytest.mark.usefixtures("users")
def test_one_user_that_is_named_is_that_of_all() -> None:
    users = found(77, slots=4)
    assert (users.slots, users.common, users.program(3)) == ((), (77, 77), (77, 77))


@pytest.mark.usefixtures("users")
def test_programs_run_as_root_where_that_is_said_and_in_roots_own_run() -> None:
    assert found(root=True).program(0) is None
    assert found(77, root=True).program(0) is None
    assert found(own_task=True).program(0) is None
    assert found(root=False, own_task=True).program(0) == (900, 910)
    assert found(own_task=True).container(0) == (900, 910)


def test_programs_run_as_root_where_there_are_no_users_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", {}.__getitem__)
    assert (found().program(0), found().container(0)) == (None, (65534, 65534))
    assert found(root=False).program(0) == (65534, 65534)


def test_who_is_not_root_has_but_one_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    users = found(77, slots=4, root=False)
    assert (users.slots, users.program(0), users.common[0]) == ((), None, 1000)


def test_another_user_has_a_home_and_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USER", "LOGNAME", "AWS_PROFILE", "LANG"):
        monkeypatch.setenv(name, "root's")
    passed = ("HOME", "USER", "LOGNAME", "LANG")
    own = {"HOME": "/tmp/x", "USER": "54321", "LOGNAME": "54321", "LANG": "root's"}
    assert variables(passed, (54_321, 54_321), Path("/tmp/x")) == own
    assert variables(("LANG",), (54_321, 54_321), Path("/")) == {"LANG": "root's"}
    assert variables(passed, None, Path("/"))["HOME"] == "root's"


def test_a_folder_that_a_user_may_not_pass_is_found(tmp_path: Path) -> None:
    own, mine = (os.geteuid(), os.getegid()), tmp_path / "mine"
    (mine / "below").mkdir(parents=True)
    mine.chmod(0o710)
    assert closed_to(mine / "below" / "x", own) is None
    assert closed_to(tmp_path / "not" / "there", own) is None
    other = (own[0] + 1, own[1] + 1)
    first = closed_to(mine / "below", other)
    assert first is not None
    assert first in (mine, *mine.parents)
    mine.chmod(0o600)
    assert closed_to(mine / "below", (own[0] + 1, own[1])) in (mine, *mine.parents)


def test_docker_is_asked_for_the_gpus_that_were_given(tmp_path: Path) -> None:
    def asked(**sandbox: object) -> object:
        made = plan(tmp_path, **sandbox)
        assert made.sandbox is not None
        return settings(made, made.sandbox, agent="a", shell=None)["HostConfig"].get(
            "DeviceRequests"
        )

    assert asked() is None
    assert asked(gpus=2) == [{"Count": 2, "Capabilities": [["gpu"]]}]
    assert asked(gpus=2, gpu_ids=("GPU-a", "GPU-c")) == [
        {"DeviceIDs": ["GPU-a", "GPU-c"], "Capabilities": [["gpu"]]}
    ]


def test_apptainer_shows_the_gpus_that_were_given(tmp_path: Path) -> None:
    def script(**sandbox: object) -> str:
        box = Box(plan(tmp_path, **sandbox))
        box.write()
        (written,) = box.folder.glob("*.run")
        return written.read_text()

    assert "VISIBLE_DEVICES" not in script(gpus=1)
    assert "export CUDA_VISIBLE_DEVICES=GPU-a,GPU-c\n" in script(gpus=2, gpu_ids=("GPU-a", "GPU-c"))
