"""Steps in containers of a real Docker Engine: what goes wrong with them, and with the engine."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engines import dockerd
from engines.dockerd import Engine
from fakes.boxes import USER, WORKDIR, Box, box
from fakes.steps import LIMIT, alive, until
from simagent import shim
from simagent.domain.reasons import Reason
from simagent.ports.runtime import RuntimeFailedError, StepExit, StepLimits
from simagent.runtimes import records
from simagent.runtimes.docker import DockerRuntime
from simagent.runtimes.docker_container import container_name
from simagent.runtimes.docker_engine import DockerEngine
from simagent.runtimes.process import ProcessRuntime

BUSYBOX = Path("/bin/busybox")
WAIT_FOR_GO = "echo here; while [ ! -e go ]; do sleep 0.02; done; exit 9"


@pytest.fixture
def here(docker_engine: Engine, tiny_image: str) -> Iterator[Box]:
    """An attempt whose containers the shared engine runs."""
    with box(docker_engine, tiny_image) as made:
        yield made
        assert made.containers() == [], "the test left containers behind"


@pytest.fixture
def apart(
    private_docker: Callable[[], Engine], load_tiny: Callable[[Engine], str]
) -> Iterator[Box]:
    """An attempt whose containers run in an engine that may be stopped."""
    engine = private_docker()
    with box(engine, load_tiny(engine)) as made:
        yield made


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Box:
    """The same with an engine that ends its containers with itself."""
    monkeypatch.setitem(dockerd._SETTINGS, "live-restore", False)
    made = request.getfixturevalue("apart")
    assert isinstance(made, Box)
    return made


def states(pids: list[int]) -> list[str]:
    """Give how processes are, by the kernel's letters."""
    looks = [shim.look(pid) for pid in pids]
    return [look.state for look in looks if look is not None]


def finish(folder: Box, step: object) -> StepExit:
    result = step.wait(LIMIT)  # type: ignore[attr-defined]
    assert isinstance(result, StepExit), "the step did not end"
    return result


def test_programs_in_no_way_executable(here: Box) -> None:
    (here.artifacts / "folder").mkdir()
    for name, content, mode in (
        ("closed", "#!/bin/sh\n", 0o644),
        ("garbage", "neither", 0o755),
        ("orphan", "#!/no/such/interpreter\n", 0o755),
    ):
        (here.artifacts / name).write_text(content)
        (here.artifacts / name).chmod(mode)
    messages = {
        "./folder": "is a folder",
        "./closed": "permission denied: make it executable",
        "./garbage": "neither a program for this machine nor a script",
        "./orphan": "interpreter or loader that it names does not exist",
    }
    for number, (program, message) in enumerate(messages.items()):
        result = here.run(here.plan(program, number=number))
        assert (result.reason, result.exit_code) == (Reason.NOT_EXECUTABLE, None), program
        assert message in result.message


def test_missing_working_folder(here: Box) -> None:
    result = here.run(here.plan("true", cwd=WORKDIR / "gone"))
    assert result.reason is Reason.NOT_EXECUTABLE
    assert result.message.startswith(f"cannot start in {WORKDIR}/gone")


def test_the_environment_is_the_images_and_the_plans(here: Box) -> None:
    plan = here.plan("env", env={"HOME": "/tmp", "IFS": "x", "TEXT": "a b\nc"})
    assert here.run(plan).exit_code == 0
    own = os.environ.keys() - {"HOME", "PATH", "PWD", "OLDPWD", "SHLVL", "HOSTNAME", "TEXT", "_"}
    said = here.out.decode()
    assert "TEXT=a b\nc\n" in said
    assert "HOME=/tmp\n" in said
    assert "TINI" not in said
    assert [name for name in own if f"\n{name}=" in said] == []


def test_an_entrypoint_swallows_nothing(here: Box) -> None:
    changes = 'ENTRYPOINT ["/bin/echo", "swallowed"]', 'CMD ["x"]', "VOLUME /data"
    files: dict[str, Path | str | bytes] = {"bin/busybox": BUSYBOX, "bin/echo": "busybox"}
    here.engine.import_image("simagent-entry:1", files, *changes, "HEALTHCHECK CMD false")
    try:
        assert here.run(here.plan("echo", "mine", image="simagent-entry:1")).exit_code == 0
        assert here.out == b"mine\n"
        plan = here.plan("busybox", "sleep", "600", image="simagent-entry:1", number=1)
        step = here.runtime.start(plan)
        mounts = '{{range .Mounts}}{{if eq .Type "volume"}}{{.Name}}{{end}}{{end}}'
        inspected = here.engine.run("inspect", "--format", mounts, *here.containers())
        volume = inspected.stdout.strip()
        assert volume != ""
        step.stop(0)
        finish(here, step)
        left = here.engine.run("volume", "ls", "--quiet").stdout.split()
        assert volume not in left, "the volume of the image is gone with its container"
    finally:
        here.engine.run("rmi", "simagent-entry:1")


@pytest.mark.parametrize("busybox", [True, False], ids=["ours", "none"])
def test_an_image_without_a_shell(here: Box, busybox: bool) -> None:
    image = f"simagent-shell-less-{busybox}:1".lower()  # others may test the other at the same time
    here.engine.import_image(image, {"program/echo": BUSYBOX})
    shell = BUSYBOX if busybox else here.root / "none"
    engine = DockerEngine(here.engine.host)
    here.runtime = DockerRuntime(engine, False, here.root.parent.name, busybox=shell)
    try:
        result = here.run(here.plan("/program/echo", "runs", image=image))
    finally:
        here.engine.run("rmi", image)
    if busybox:
        assert (result.exit_code, here.out) == (0, b"runs\n")
    else:
        assert (result.exit_code, result.reason) == (None, Reason.IMAGE_UNUSABLE)
        assert "busybox-static" in result.message


def test_the_shell_that_starts_programs_may_be_the_images(here: Box) -> None:
    engine = DockerEngine(here.engine.host)
    here.runtime = DockerRuntime(engine, False, here.root.parent.name, busybox=Path("/none"))
    assert here.run(here.plan("sh", "-c", "echo runs; exit 127")).exit_code == 127
    assert here.out == b"runs\n"
    assert here.run(here.plan("none", number=1)).reason is Reason.COMMAND_NOT_FOUND


def test_more_memory_than_allowed(here: Box) -> None:
    limits = StepLimits(memory_bytes=32 * 2**20)
    eat = "head -c 200000000 /dev/zero | tail"
    result = here.run(here.plan("sh", "-c", eat, limits=limits))
    assert result.reason is Reason.OOM
    assert "32 MiB allowed" in result.message


def test_other_limits(here: Box) -> None:
    limits = StepLimits(processes=20, file_bytes=100_000, cpus=0.5)
    code = """
    head -c 200000 /dev/zero >large; echo $?; ls -l large | awk '{print $5}'
    cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null
    (for i in $(seq 40); do sleep 5 & done) 2>/tmp/forks
    """
    here.run(here.plan("sh", "-c", code, limits=limits))
    assert b"\n100000\n" in here.out
    assert b"50000" in here.out
    assert (here.root / "tmp" / "forks").read_text() != ""


def test_cpu_and_memory_are_told_about(here: Box) -> None:
    code = "x=$(head -c 30000000 /dev/zero | tr '\\0' a); i=0; "
    code += "while [ $i -lt 400000 ]; do i=$((i + 1)); done; (exec sleep 2.5)"
    result = here.run(here.plan("sh", "-c", code))
    assert result.user_seconds > 0.1
    assert result.max_rss_bytes > 30_000_000
    again = here.runtime.attach(here.plan("sh"))
    assert again is not None
    assert again.wait(0) == result


def test_gpus_that_are_not_there_are_named(here: Box) -> None:
    with pytest.raises(RuntimeFailedError, match="NVIDIA Container Toolkit") as caught:
        here.runtime.start(here.plan("true", gpus=1))
    assert caught.value.reason is Reason.UNSUPPORTED


def test_an_image_that_is_gone(here: Box) -> None:
    with pytest.raises(RuntimeFailedError, match="No such image") as caught:
        here.runtime.start(here.plan("true", image=f"sha256:{'ab' * 32}"))
    assert caught.value.reason is Reason.RUNTIME_FAILED
    assert here.runtime.attach(here.plan("true")) is None, "it never ran"


def test_root_needs_the_operators_word(here: Box) -> None:
    with pytest.raises(RuntimeFailedError, match="allow_root_images"):
        here.runtime.start(here.plan("true", uid=0, gid=0))


def test_stop_ends_stopped_processes(here: Box) -> None:
    step = here.runtime.start(here.plan("sh", "-c", "kill -STOP $$"))
    until(lambda: "T" in states(step.pids()), "a stopped process")
    step.stop(2 * LIMIT)
    assert finish(here, step).stopped


def test_stop_ends_a_container_that_somebody_paused(here: Box) -> None:
    step = here.runtime.start(here.plan("sleep", "600"))
    here.engine.run("pause", *here.containers())
    step.stop(2 * LIMIT)
    assert finish(here, step).stopped


def test_a_group_gets_the_signal(here: Box) -> None:
    loop = "trap 'echo got; wait; exit' TERM; echo here; while :; do sleep 0.05; done"
    step = here.runtime.start(here.plan("sh", "-c", f"({loop}) & {loop}"))
    until(lambda: here.out.count(b"here") == 2)
    step.stop(LIMIT)
    assert finish(here, step).stopped
    assert here.out.count(b"got") == 2


def test_containers_have_labels(here: Box) -> None:
    step = here.runtime.start(here.plan("sleep", "600"))
    (name,) = here.containers()
    labels = here.engine.run("inspect", "--format", "{{json .Config.Labels}}", name).stdout
    assert '"simagent.task":"a-task"' in labels
    assert '"simagent.epoch":"1"' in labels
    assert f'"simagent.agent":"{here.root.parent.name}"' in labels
    step.stop(0)
    finish(here, step)


def test_nothing_is_asked_of_the_engine_about_steps_of_others(tmp_path: Path) -> None:
    runtime = DockerRuntime(DockerEngine(f"unix://{tmp_path}/none"), False, "me")
    plan = replace(Box(tmp_path, runtime, None, "x").plan("true"), sandbox=None)  # type: ignore[arg-type]
    assert runtime.attach(plan) is None
    plan.folder.mkdir()
    records.replace(plan.folder / "step-0.json", {"format": 1, "argv": ["true"]})
    assert runtime.attach(plan) is None
    assert "docker_host" in str(runtime.trouble())


# --- Crashes, at each point ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["docker", "process"])
def test_a_mark_that_cannot_be_set_ends_no_agent(tmp_path: Path, kind: str) -> None:
    (tmp_path / shim.ATTENTION).symlink_to(tmp_path / "none" / "none")
    docker = DockerRuntime(DockerEngine(f"unix://{tmp_path}/none"), False, "me")
    (docker if kind == "docker" else ProcessRuntime()).keep_alive(tmp_path)


def test_what_was_made_and_not_started_is_made_anew(here: Box) -> None:
    plan = here.plan("echo", "once")
    name = container_name(plan.folder, 0)
    here.engine.run("create", "--name", name, "--network", "none", here.image, "echo", "other")
    record = {"format": 1, "runtime": "docker", "container": name}
    plan.folder.mkdir()
    records.replace(plan.folder / "step-0.json", record)
    assert here.runtime.attach(plan) is None
    assert here.run(plan).exit_code == 0
    assert here.out == b"once\n"


def test_a_start_that_never_came_is_done(here: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent died after it wrote that it would start the container."""
    plan = here.plan("echo", "once")
    with monkeypatch.context() as crash:
        crash.setattr(DockerEngine, "find", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        crash.setattr(here.runtime, "_create", creates_only(here))
        with pytest.raises(KeyboardInterrupt):
            here.runtime.start(plan)
    assert (plan.folder / "step-0.begun").exists()
    assert here.runtime.attach(plan) is None
    assert here.run(plan).exit_code == 0
    assert here.out == b"once\n"


def creates_only(here: Box) -> Callable[..., None]:
    """Make the container, and die at the next call to the engine."""
    create = here.runtime._create

    def crash(*arguments: object) -> None:
        create(*arguments)  # type: ignore[arg-type]
        engine = here.runtime._engine
        ask = engine.ask

        def dead(*_: object) -> None:
            engine.ask = ask  # type: ignore[method-assign]
            raise KeyboardInterrupt

        engine.ask = dead  # type: ignore[assignment, method-assign]

    return crash


def test_a_late_second_start_runs_nothing(here: Box) -> None:
    plan = here.plan("echo", "once")
    step = here.runtime.start(plan)
    (name,) = here.containers()
    here.engine.run("wait", name)
    here.engine.run("start", name)
    here.engine.run("wait", name)
    assert here.out == b"once\n"
    assert finish(here, step).reason in (None, Reason.RUNTIME_FAILED)


def test_a_container_that_vanished(here: Box) -> None:
    plan = here.plan("sleep", "600")
    step = here.runtime.start(plan)
    here.engine.run("rm", "--force", *here.containers())
    for found in (step, here.runtime.attach(plan)):
        result = finish(here, found)
        assert (result.reason, result.exit_code) == (Reason.RUNTIME_FAILED, None)
        assert "vanished" in result.message


def test_the_end_is_known_when_the_container_is_gone(here: Box) -> None:
    plan = here.plan("sh", "-c", "exit 3")
    first = here.run(plan)
    assert here.containers() == []
    again = DockerRuntime(DockerEngine("unix:///none"), False, "me").attach(plan)
    assert again is not None
    assert again.wait(0) == first


def test_an_agent_that_was_killed(here: Box) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        plan = here.plan("sh", "-c", WAIT_FOR_GO)
        fresh = DockerRuntime(DockerEngine(here.engine.host), False, here.root.parent.name)
        fresh.start(plan)
        os.write(write, b"!")
        time.sleep(600)
    os.read(read, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)
    step = here.runtime.attach(here.plan("unused"))
    assert step is not None
    until(lambda: here.out)
    assert any(alive(pid) for pid in step.pids())
    (here.artifacts / "go").touch()
    assert finish(here, step).exit_code == 9


def test_the_reaper_knows_whose_containers_are_whose(here: Box, tmp_path: Path) -> None:
    steps = here.root / "steps"
    step = here.runtime.start(here.plan("sleep", "600"))
    other = DockerRuntime(DockerEngine(here.engine.host), False, "another")
    assert other.reap(lambda _: False) == 0
    assert here.runtime.reap(lambda folder: folder == steps) == 0
    assert step.wait(0) is None
    assert here.runtime.reap(lambda _: False) == 1
    assert finish(here, step).reason is Reason.RUNTIME_FAILED
    assert here.containers() == []


def test_without_an_agent_the_step_is_ended(here: Box) -> None:
    code = "trap 'echo bye; exit 0' TERM; echo here; while :; do sleep 0.05; done"
    step = here.runtime.start(here.plan("sh", "-c", code, orphan_limit=6.0))
    for _ in range(16):
        here.runtime.keep_alive(here.root / "steps")
        assert step.wait(0.5) is None, "an agent looked after it"
    result = finish(here, step)
    assert (result.reason, result.stopped) == (Reason.ORPHANED, True)
    assert here.out == b"here\nbye\n"


def test_a_step_whose_folder_is_gone_is_ended(here: Box) -> None:
    step = here.runtime.start(here.plan("sleep", "600", orphan_limit=4.0))
    shutil.rmtree(here.root / "steps")
    assert step.wait(LIMIT) is not None


def test_signals_to_all_leave_the_guard_alone(here: Box) -> None:
    code = "trap : USR1; echo here; while :; do sleep 0.05; done"
    step = here.runtime.start(here.plan("sh", "-c", code, orphan_limit=2.0))
    until(lambda: here.out)
    step.signal(signal.SIGUSR1)
    assert finish(here, step).reason is Reason.ORPHANED


# --- The engine ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_million_lines_and_an_engine_that_restarts(apart: Box, how: str) -> None:
    code = r"""
    i=0; while [ $i -lt 100 ]; do
        seq $((i * 10000)) $((i * 10000 + 9999)); i=$((i + 1))
        printf '\000\377\376\r'
        [ $i = 50 ] && while [ ! -e go ]; do sleep 0.02; done
    done; exit 5
    """
    step = apart.runtime.start(apart.plan("sh", "-c", code))
    until(lambda: b"499999" in apart.out[-100:])
    getattr(apart.engine, how)()
    (apart.artifacts / "go").touch()
    until(lambda: len(apart.out) > 6_000_000)
    apart.engine.start()
    result = finish(apart, step)
    assert (result.exit_code, result.reason) == (5, None)
    expected = b"".join(
        b"".join(b"%d\n" % n for n in range(i * 10000, i * 10000 + 10000)) + b"\0\xff\xfe\r"
        for i in range(100)
    )
    assert apart.out == expected


def test_what_ends_while_the_engine_is_away(apart: Box) -> None:
    plans = [apart.plan("sh", "-c", WAIT_FOR_GO, number=number) for number in range(2)]
    watched, left = [apart.runtime.start(plan) for plan in plans]
    del left
    assert watched.wait(0.2) is None
    apart.engine.stop()
    with pytest.raises(RuntimeFailedError, match=r"docker\.sock") as caught:
        apart.runtime.attach(plans[1])
    assert caught.value.reason is Reason.RUNTIME_FAILED
    pids = watched.pids()
    (apart.artifacts / "go").touch()
    until(lambda: not any(alive(pid) for pid in pids))
    assert watched.wait(0.1) is None
    apart.engine.start()
    assert finish(apart, watched).exit_code == 9
    again = apart.runtime.attach(plans[1])
    assert finish(apart, again).exit_code == 9


def test_a_stop_while_the_engine_is_away_is_done_when_it_is_back(apart: Box) -> None:
    step = apart.runtime.start(apart.plan("sleep", "600"))
    assert step.wait(0.2) is None
    apart.engine.kill()
    step.stop(0)
    assert step.wait(0.5) is None
    apart.engine.start()
    assert finish(apart, step).stopped


def test_an_engine_that_hung_hears_of_the_stop_afterwards(apart: Box) -> None:
    plan = apart.plan("sh", "-c", "echo here; sleep 600")
    apart.runtime.start(plan)
    until(lambda: apart.out)
    hasty = DockerRuntime(DockerEngine(apart.engine.host, timeout=2.0), False, "me")
    step = hasty.attach(plan)
    assert step is not None
    assert step.wait(0.2) is None
    apart.engine.freeze()
    try:
        step.stop(0)
        assert step.wait(5) is None
    finally:
        apart.engine.thaw()
    assert finish(apart, step).stopped


def test_a_stop_goes_on_without_the_agent(apart: Box) -> None:
    code = "trap '' TERM; echo here; while :; do sleep 0.05; done"
    plan = apart.plan("sh", "-c", code)
    step = apart.runtime.start(plan)
    until(lambda: apart.out)
    step.stop(1)
    until(lambda: not apart.engine.run("ps", "--quiet").stdout, "the end of the container")
    result = finish(apart, apart.runtime.attach(plan))
    assert (result.signal, result.stopped) == (signal.SIGKILL, True)


@pytest.mark.parametrize("how", ["stop", "kill"])
@pytest.mark.parametrize("watched", [True, False], ids=["watched", "alone"])
def test_an_engine_that_takes_its_containers_along(mortal: Box, how: str, watched: bool) -> None:
    plan = mortal.plan("sh", "-c", "sleep 600")
    step = mortal.runtime.start(plan)
    if watched:
        assert step.wait(0.2) is None
    getattr(mortal.engine, how)()
    mortal.engine.start()
    result = finish(mortal, step if watched else mortal.runtime.attach(plan))
    assert (result.reason, result.exit_code, result.signal) == (Reason.RUNTIME_FAILED, None, None)
    assert "ended its container" in result.message


def test_a_program_that_a_shutdown_lets_end_well_has_not_ended_well(mortal: Box) -> None:
    code = "trap 'exit 0' TERM; echo here; while :; do sleep 0.05; done"
    step = mortal.runtime.start(mortal.plan("sh", "-c", code))
    until(lambda: mortal.out)
    assert step.wait(0.2) is None
    mortal.engine.restart()
    assert finish(mortal, step).reason is Reason.RUNTIME_FAILED


def test_a_program_that_ends_by_sigterm_of_its_own(mortal: Box) -> None:
    plan = mortal.plan("sh", "-c", "kill -TERM $$")
    mortal.runtime.start(plan)
    until(lambda: not mortal.engine.run("ps", "--quiet").stdout)
    result = finish(mortal, mortal.runtime.attach(plan))
    assert (result.signal, result.reason) == (signal.SIGTERM, None)


def test_an_engine_that_is_frozen_is_not_waited_for(apart: Box) -> None:
    plan = apart.plan("sh", "-c", WAIT_FOR_GO)
    step = apart.runtime.start(plan)
    assert step.wait(0.2) is None
    apart.engine.freeze()
    try:
        hasty = DockerRuntime(DockerEngine(apart.engine.host, timeout=1), False, "me")
        with pytest.raises(RuntimeFailedError, match="does not answer"):
            hasty.attach(plan)
        assert step.wait(0.1) is None
    finally:
        apart.engine.thaw()
    (apart.artifacts / "go").touch()
    assert finish(apart, step).exit_code == 9


def test_a_frozen_engine_hardly_holds_up_whoever_asks_often(apart: Box) -> None:
    plan = apart.plan("sh", "-c", WAIT_FOR_GO)
    step = apart.runtime.start(plan)
    apart.engine.freeze()
    try:
        began = time.monotonic()
        fresh = DockerRuntime(DockerEngine(apart.engine.host), False, "me")
        for _ in range(100):  # a sweep asks for each task
            assert "does not answer" in (fresh.trouble() or "")
        with pytest.raises(RuntimeFailedError, match="does not answer"):
            apart.runtime.attach(plan)
        assert time.monotonic() - began < 20, "systemd's watchdog waits 30 s for the main loop"
    finally:
        apart.engine.thaw()
    (apart.artifacts / "go").touch()
    assert finish(apart, step).exit_code == 9


def test_a_start_whose_answer_is_lost(apart: Box) -> None:
    plan = apart.plan("sh", "-c", "echo once; sleep 0.5; exit 4")
    engine = DockerEngine(apart.engine.host)
    assert engine.trouble() is None
    ask = engine.ask
    calls = 0

    def lossy(call: Callable[[object], object]) -> object:
        nonlocal calls
        calls += 1
        answer = ask(call)
        if calls == 2:  # create, start
            from simagent.runtimes.docker_engine import EngineAwayError

            raise EngineAwayError("the answer was lost")
        return answer

    engine.ask = lossy  # type: ignore[assignment, method-assign]
    runtime = DockerRuntime(engine, False, apart.root.parent.name)
    assert finish(apart, runtime.start(plan)).exit_code == 4
    assert apart.out == b"once\n"


# --- Abuse -----------------------------------------------------------------------------------


def test_abuse_from_inside(here: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "swordfish")
    secret = here.root.parent / "secret"
    secret.write_text("swordfish")
    (here.root / "journal").write_text("swordfish")
    code = f"""
    cat {secret} {here.root}/journal {here.root}/steps/step-0.json /workdir/secret
    ls -la /tmp/.. {here.root.parent} /root /home /var/run/docker.sock /run/docker.sock
    touch /etc/mine /bin/mine /.simagent/sh /.simagent/mine; echo outside > /outside
    rm -f /.simagent/stdout /.simagent/report; mv /.simagent /moved
    ln -sf /etc/passwd /.simagent/stderr
    chmod u+s /bin/busybox; mount -t tmpfs none /mnt; mknod /tmp/disk b 254 0
    chroot /tmp true; nsenter -t 1 -m true; unshare -U true; hostname mine
    echo 1 > /proc/sys/kernel/panic; echo b > /proc/sysrq-trigger
    cat /proc/1/environ /proc/self/environ | tr '\\0' '\\n'
    grep -E 'Cap(Inh|Eff|Prm|Bnd|Amb)|NoNewPrivs|Seccomp:' /proc/self/status
    cat /sys/class/net/*/address; ip addr; ls /dev
    wget -T 2 -O - http://169.254.169.254/latest/meta-data && echo leaked
    ln -s {secret} link; echo done
    """
    assert here.run(here.plan("sh", "-c", code)).exit_code == 0
    said = here.out.decode(errors="replace")
    assert said.endswith("done\n")
    assert "swordfish" not in said
    assert "docker.sock\n" not in said
    assert "NoNewPrivs:\t1" in said
    assert "Seccomp:\t2" in said
    assert said.count("0000000000000000") == 5
    assert "eth0" not in said
    assert "leaked" not in said
    assert "kmsg" not in said
    assert not Path("/outside").exists()
    assert (here.root / "err").is_file()
    assert not (here.root / "err").is_symlink()
    assert here.run(here.plan("true", number=1)).exit_code == 0
    for path in here.artifacts.iterdir():
        assert (path.lstat().st_uid, path.lstat().st_gid) == USER


def test_without_network_there_is_none_and_with_it_there_is(here: Box) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reach = f"nc -w 2 127.0.0.1 {port} </dev/null"
        assert here.run(here.plan("sh", "-c", reach)).exit_code != 0

        def answer() -> None:
            server.accept()[0].close()

        thread = threading.Thread(target=answer)
        thread.start()
        assert here.run(here.plan("sh", "-c", reach, number=1, network="host")).exit_code == 0
        thread.join()


def test_the_docker_sdk_is_imported_only_where_it_is_used() -> None:
    code = "import simagent.wiring, simagent.cli, sys; print('docker' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"False\n"
