"""What containers side by side have each for itself: users, and GPUs."""

import os
import pwd
from pathlib import Path

import pytest

from simagent.ports.runtime import Sandbox, StepPlan
from simagent.runtimes.apptainer_box import Box
from simagent.runtimes.docker_container import settings
from simagent.worker.containers import slot_users

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


@pytest.mark.usefixtures("users")
def test_slots_run_as_users_of_their_own_as_far_as_there_are_such() -> None:
    assert slot_users(None, 4) == ((900, 910), (901, 911))
    assert slot_users(None, 1) == ((900, 910),)


@pytest.mark.usefixtures("users")
def test_one_user_that_is_named_is_that_of_all() -> None:
    assert slot_users(77, 4) == ()


def test_who_is_not_root_has_but_one_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert slot_users(None, 4) == ()


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
