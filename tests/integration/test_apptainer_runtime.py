"""Steps in real Apptainer containers, as an agent runs them: root's, and any other user's."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from engines.apptainer import Apptainer
from fakes.capsules import NOBODY, WORKDIR, Capsule, as_user, capsule_of_a_test
from fakes.steps import LIMIT, alive, until
from simagent.domain.reasons import Reason
from simagent.ports.runtime import Mount, RuntimeFailedError, StepExit, StepLimits
from simagent.runtimes.apptainer import ApptainerRuntime
from simagent.runtimes.apptainer_program import ApptainerProgram
from simagent.runtimes.process import ProcessRuntime

ROOT = os.geteuid() == 0
USER = (NOBODY, NOBODY) if ROOT else (os.geteuid(), os.getegid())
needs_root = pytest.mark.skipif(not ROOT, reason="root is needed to be root's agent")


@pytest.fixture
def box(apptainer: Apptainer, tiny_sif: Path) -> Iterator[Capsule]:
    with capsule_of_a_test(tiny_sif, USER) as made:
        yield made


def run_as(box: Capsule, agent: str, *argv: str, **changes: object) -> StepExit:
    plan = box.plan(*argv, **changes)
    if agent == "root" or not ROOT:
        return box.run(plan)
    return as_user(USER, lambda: box.run(plan))


@needs_root
def test_asking_it_what_it_is_closes_no_file_of_the_machine(apptainer: Apptainer) -> None:
    """It makes the folder that it is given for its settings its own, whatever that is."""
    os.chmod(os.devnull, 0o666)
    try:
        assert ApptainerProgram().setup().trouble is None
        assert os.stat(os.devnull).st_mode & 0o777 == 0o666
    finally:
        os.chmod(os.devnull, 0o666)


AGENTS = [pytest.param("root", marks=needs_root), "user"]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_step_that_works(box: Capsule, agent: str) -> None:
    code = "echo out; echo err >&2; pwd; id -u; id -G; echo made > file; echo $HOME > /tmp/home"
    result = run_as(box, agent, "sh", "-c", code)
    assert (box.out, box.err) == (f"out\n{WORKDIR}\n{USER[0]}\n{USER[1]}\n".encode(), b"err\n")
    assert (result.exit_code, result.signal, result.reason) == (0, None, None)
    made = box.artifacts / "file"
    assert made.read_text() == "made\n"
    assert (made.stat().st_uid, made.stat().st_gid) == USER
    assert (box.root / "tmp" / "home").read_text() == "/tmp\n"


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("code", [1, 7, 126, 127, 128, 200, 255])
def test_each_exit_code_is_the_programs_own(box: Capsule, agent: str, code: int) -> None:
    result = run_as(box, agent, "sh", "-c", f"exit {code}")
    assert (result.exit_code, result.signal, result.reason) == (code, None, None)


@pytest.mark.parametrize("name", ["SEGV", "ABRT", "KILL", "TERM"])
def test_end_by_a_signal(box: Capsule, name: str) -> None:
    result = box.run(box.plan("sh", "-c", f"kill -{name} $$"))
    assert (result.exit_code, result.signal) == (None, getattr(signal, f"SIG{name}"))


@pytest.mark.parametrize("agent", AGENTS)
def test_program_not_found(box: Capsule, agent: str) -> None:
    result = run_as(box, agent, "no-such-program", "--help")
    assert (result.reason, result.exit_code) == (Reason.COMMAND_NOT_FOUND, None)
    assert result.message.startswith("no-such-program: no such program in the image in PATH (/")
    assert box.out + box.err == b""


def test_programs_in_no_way_executable(box: Capsule) -> None:
    (box.artifacts / "folder").mkdir()
    (box.artifacts / "plain").write_text("#!/bin/sh\n")
    broken = box.artifacts / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    for number, (name, why) in enumerate(
        [("folder", "is a folder"), ("plain", "chmod +x"), ("broken", "interpreter")]
    ):
        result = box.run(box.plan(f"./{name}", number=number))
        assert (result.reason, result.exit_code) == (Reason.NOT_EXECUTABLE, None)
        assert why in result.message
    result = box.run(box.plan("./gone", number=3))
    assert result.reason is Reason.COMMAND_NOT_FOUND
    assert result.message == "./gone: no such program in the image"


def test_missing_working_folder(box: Capsule) -> None:
    result = box.run(box.plan("true", cwd=WORKDIR / "gone"))
    assert result.reason is Reason.NOT_EXECUTABLE
    assert result.message == f"cannot start in {WORKDIR}/gone: no such folder"


@pytest.mark.parametrize("shells", [("/bin/busybox",), ()])
def test_the_shell_that_starts_programs_may_be_the_images(
    box: Capsule, shells: tuple[str, ...]
) -> None:
    box.runtime = ApptainerRuntime("apptainer", ProcessRuntime(), shells=shells)
    assert box.run(box.plan("sh", "-c", "exit 5")).exit_code == 5
    lost = box.run(box.plan("nope", number=1))
    assert lost.reason is Reason.COMMAND_NOT_FOUND


def test_the_environment_is_the_images_and_the_plans(box: Capsule) -> None:
    odd = "$(id) `id` 'q' \"q\" \\ \n end \udcff"
    env = {
        "ODD": odd,
        "HOME": "/tmp",
        "PATH": "/bin:/x",
        "PREPEND_PATH": "/p",
        "LANG": "de",
    }
    plan = box.plan("/bin/busybox", "env", "-0", env=env)
    assert box.run(plan).exit_code == 0
    seen = dict(line.split(b"=", 1) for line in box.out.split(b"\0")[:-1])
    assert seen.pop(b"PWD") == str(WORKDIR).encode()
    seen.pop(b"SHLVL", None)
    assert seen == {os.fsencode(name): os.fsencode(value) for name, value in env.items()}


def test_a_plan_without_variables_adds_none(box: Capsule) -> None:
    assert box.run(box.plan("/bin/busybox", "env", env={})).exit_code == 0
    names = {line.split(b"=")[0] for line in box.out.splitlines()}
    assert names <= {b"PATH", b"PWD", b"SHLVL", b"HOME"}


def test_values_are_on_no_command_line(box: Capsule) -> None:
    env = {"SECRET": "swordfish", "SIMAGENT_TASK_ID": str(box.root)}
    step = box.runtime.start(box.plan("sh", "-c", "echo $$; exec sleep 600", env=env))
    until(box.reported)
    try:
        lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in step.pids()]
    finally:
        step.stop(0)
        step.wait(LIMIT)
    assert any(b"sleep" in line for line in lines)
    assert not any(b"swordfish" in line for line in lines)


def test_the_agents_own_variables_are_not_seen(
    box: Capsule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "swordfish")
    monkeypatch.setenv("APPTAINERENV_LEAK", "swordfish")
    monkeypatch.setenv("APPTAINER_BIND", "/etc:/leak")
    assert box.run(box.plan("sh", "-c", "env; ls /; cat /proc/1/environ")).exit_code == 0
    assert b"swordfish" not in box.out
    assert b"leak" not in box.out


def test_prompts_are_answered_on_stdin(box: Capsule) -> None:
    answers = b"yes\n\xff\x00two\n"
    assert box.run(box.plan("cat", stdin=answers)).exit_code == 0
    assert box.out == answers
    assert box.run(box.plan("wc", "-c", number=1)).exit_code == 0


def test_a_million_lines_are_written_byte_for_byte(box: Capsule) -> None:
    line = b"%d \\xff\\xfe\\000 line\\r\\n"
    code = f"i=0; while [ $i -lt 1000 ]; do printf '{line.decode()}' $i; i=$((i+1)); done > part"
    code += "; i=0; while [ $i -lt 1000 ]; do cat part; i=$((i+1)); done"
    assert box.run(box.plan("sh", "-c", code)).exit_code == 0
    part = b"".join(b"%d \xff\xfe\0 line\r\n" % number for number in range(1000))
    assert box.out == part * 1000
    assert box.err == b""


def test_steps_append_to_the_same_logs(box: Capsule) -> None:
    for number in range(3):
        box.run(box.plan("echo", str(number), number=number))
    assert box.out == b"0\n1\n2\n"


@pytest.mark.parametrize("agent", AGENTS)
def test_stop_lets_the_program_end_by_itself_with_all_its_files(box: Capsule, agent: str) -> None:
    # What it starts now must not be ended by the same SIGTERM.
    code = "trap 'trap \"\" TERM; sleep 0.2; cat /bin/busybox | wc -c; exit 3' TERM; echo 1; "
    code += "while :; do sleep 0.05; done"
    plan = box.plan("sh", "-c", code)

    def run() -> StepExit | None:
        step = box.runtime.start(plan)
        until(box.reported)
        step.stop(LIMIT)
        return step.wait(LIMIT)

    result = run() if agent == "root" or not ROOT else as_user(USER, run)
    assert result is not None
    assert (result.exit_code, result.stopped) == (3, True)
    assert int(box.out.split()[1]) > 100_000
    assert b"Bus error" not in box.err


def test_stop_kills_what_ignores_it(box: Capsule) -> None:
    step = box.runtime.start(box.plan("sh", "-c", "trap '' TERM; sleep 600 & echo 1; sleep 600"))
    until(box.reported)
    step.stop(0.2)
    result = step.wait(LIMIT)
    assert result is not None
    assert (result.signal, result.stopped) == (signal.SIGKILL, True)


def test_a_stop_is_heard_while_the_container_is_made(box: Capsule) -> None:
    step = box.runtime.start(box.plan("sleep", "600"))
    step.stop(LIMIT / 2)
    result = step.wait(LIMIT / 3)
    assert result is not None
    assert result.stopped


def test_nothing_is_left_of_a_program_that_leaves_others_behind(box: Capsule) -> None:
    code = "setsid sleep 600 >/dev/null 2>&1 & echo 1"
    assert box.run(box.plan("sh", "-c", code)).exit_code == 0
    assert box.marked() == []


def test_signals_are_for_what_is_in_the_container(box: Capsule) -> None:
    step = box.runtime.start(
        box.plan("sh", "-c", "trap 'echo 2; exit 4' USR1; echo 1; while :; do sleep 0.05; done")
    )
    until(box.reported)
    step.signal(signal.SIGUSR1)
    result = step.wait(LIMIT)
    assert result is not None
    assert result.exit_code == 4
    assert box.reported() == [1, 2]


def test_another_agent_goes_on_with_the_step(box: Capsule) -> None:
    plan = box.plan("sh", "-c", "echo 1; while [ ! -e go ]; do sleep 0.05; done; exit 6")

    def begin() -> list[int]:
        step = box.runtime.start(plan)
        until(box.reported)
        return step.pids()

    pids = as_user((0, 0), begin) if ROOT else begin()  # as_user's process has ended by now
    assert any(alive(pid) for pid in pids)  # of its sleeps each is gone soon
    step = ApptainerRuntime("apptainer", ProcessRuntime()).start(plan)
    assert step.wait(0.1) is None
    (box.artifacts / "go").touch()
    result = step.wait(LIMIT)
    assert result is not None
    assert result.exit_code == 6
    assert box.reported() == [1], "it ran once"


def test_what_a_killed_shim_leaves_is_ended(box: Capsule) -> None:
    plan = box.plan("sh", "-c", "echo 1; sleep 600")
    step = box.runtime.start(plan)
    until(box.reported)
    pids = step.pids()
    os.kill(step._step._started["shim"]["pid"], signal.SIGKILL)
    result = step.wait(LIMIT)
    assert result is not None
    assert result.reason is Reason.SHIM_LOST
    until(lambda: not any(alive(pid) for pid in pids))


def test_a_step_without_any_agent_ends(box: Capsule) -> None:
    result = box.run(box.plan("sleep", "600", orphan_limit=0.5))
    assert result.reason is Reason.ORPHANED


def test_limits_count_in_the_container_only(box: Capsule) -> None:
    limits = StepLimits(memory_bytes=24 << 20)
    plan = box.plan("sh", "-c", "ulimit -d; head -c 60000000 /dev/zero | tail -n 1 >/dev/null")
    result = box.run(replace(plan, limits=limits))
    assert result.exit_code not in (0, None)
    assert box.out == b"24576\n"


def test_a_file_that_is_too_large(box: Capsule) -> None:
    plan = box.plan("sh", "-c", "head -c 2000000 /dev/zero > big")
    result = box.run(replace(plan, limits=StepLimits(file_bytes=1_000_000)))
    assert result.exit_code != 0
    assert (box.artifacts / "big").stat().st_size == 1_000_000


@needs_root
def test_a_user_without_a_name_is_refused_with_the_fix(box: Capsule) -> None:
    box.user = (54_321, 54_321)
    with pytest.raises(RuntimeFailedError, match="54321 has none: add one to /etc/passwd"):
        box.runtime.start(box.plan("true"))


@needs_root
def test_an_agent_that_hides_its_files(box: Capsule) -> None:
    before = os.umask(0o077)
    try:
        result = box.run(box.plan("sh", "-c", "umask; echo made > file"))
    finally:
        os.umask(before)
    assert result.exit_code == 0
    assert box.out == b"0022\n"


@needs_root
def test_a_folder_that_the_tasks_user_cannot_pass_is_named(box: Capsule) -> None:
    box.root.chmod(0o700)
    os.chown(box.root, 0, 0)
    with pytest.raises(RuntimeFailedError, match=f"may not pass {box.root}: chmod o"):
        box.runtime.start(box.plan("true"))


def test_a_damaged_image(box: Capsule) -> None:
    for number, content in enumerate([b"", b"x" * 100_000, box.image.read_bytes()[:50_000]]):
        box.image.write_bytes(content)
        result = box.run(box.plan("true", number=number))
        assert result.exit_code is None
        assert result.reason is Reason.IMAGE_CORRUPT, result.message


def test_an_image_that_is_gone(box: Capsule) -> None:
    box.image.unlink()
    result = box.run(box.plan("true"))
    assert (result.exit_code, result.reason) == (None, Reason.IMAGE_CORRUPT)
    assert "no such file" in result.message


def test_an_image_without_a_shell(
    box: Capsule, make_sif: Callable[[str], Path], docker_engine: object
) -> None:
    name = "simagent-no-shell:1"
    docker_engine.import_image(name, {"tool": Path("/bin/busybox")})  # type: ignore[attr-defined]
    image = box.root.parent / "bare.sif"
    image.write_bytes(make_sif(name).read_bytes())
    assert box.run(box.plan("/tool", "true", image=image)).exit_code == 127, "BusyBox knows no tool"
    box.runtime = ApptainerRuntime("apptainer", ProcessRuntime(), shells=())
    result = box.run(box.plan("/tool", image=image, number=1))
    assert result.reason is Reason.IMAGE_UNUSABLE
    assert "busybox-static" in result.message


def test_a_program_that_forges_the_mark_gains_nothing_by_it(box: Capsule) -> None:
    code = "printf 'n\\033[31m\\n%s' $(yes x | head -n 3000 | tr -d '\\n') > /.simagent/mark"
    result = box.run(box.plan("sh", "-c", code))
    assert result.reason is Reason.COMMAND_NOT_FOUND
    assert result.message.isprintable()
    assert len(result.message) < 400
    linked = box.run(box.plan("sh", "-c", "rm -f /.simagent/mark; exit 3", number=1))
    assert linked.exit_code == 3


def test_an_apptainer_that_is_not_there(box: Capsule) -> None:
    box.runtime = ApptainerRuntime("/no/such/apptainer", ProcessRuntime())
    assert "not installed" in (box.runtime.trouble() or "")
    result = box.run(box.plan("true"))
    assert (result.exit_code, result.reason) == (None, Reason.RUNTIME_FAILED)


def test_nothing_speaks_against_the_one_that_is_there(box: Capsule) -> None:
    assert box.runtime.trouble() is None
    assert box.runtime.program.setup().version


@pytest.mark.parametrize("agent", AGENTS)
def test_abuse_from_inside(box: Capsule, agent: str) -> None:
    secret = box.root.parent / "secret"
    secret.write_text("swordfish")
    (box.root / "journal").write_text("swordfish")
    code = f"""
    cat {secret} {box.root}/journal {box.root}/steps/step-0.json /workdir/secret
    ls -la /tmp/.. {box.root.parent} /root /home /var/run/docker.sock /run/docker.sock
    touch /etc/mine /bin/mine; echo outside > /outside
    chmod u+s /bin/busybox; mount -t tmpfs none /mnt; mknod /tmp/disk b 254 0
    chroot /tmp true
    cat /proc/1/environ /proc/self/environ | tr '\\0' '\\n'
    grep -E 'Cap(Eff|Prm|Bnd)|NoNewPrivs' /proc/self/status
    ls /proc | grep -c '^[0-9]'; cat /sys/class/net/*/address; ip addr
    ln -s {secret} link; echo done
    """
    assert run_as(box, agent, "sh", "-c", code).exit_code == 0
    said = box.out.decode(errors="replace")
    assert "done" in said
    assert "swordfish" not in said
    assert "docker.sock\n" not in said
    assert "NoNewPrivs:\t1" in said
    assert said.count("0000000000000000") == 3
    assert "eth" not in said
    assert sorted(os.listdir(box.root.parent)) == ["attempt", "image.sif", "secret"]
    assert not Path("/outside").exists()


def test_without_network_there_is_none_and_with_it_there_is(box: Capsule) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reach = f"nc -w 2 127.0.0.1 {port} </dev/null"
        assert box.run(box.plan("sh", "-c", reach)).exit_code != 0

        def answer() -> None:
            server.accept()[0].close()

        thread = threading.Thread(target=answer)
        thread.start()
        assert box.run(box.plan("sh", "-c", reach, number=1, network="host")).exit_code == 0
        thread.join()


def test_paths_of_any_kind_can_be_mounted(box: Capsule) -> None:
    odd = box.root / 'o,d:d "q"'
    odd.mkdir()
    (odd / "file").write_text("seen")
    plan = box.plan("cat", "/odd/file")
    assert plan.sandbox is not None
    mount = Mount(source=odd, target=PurePosixPath("/odd"), writable=False)
    sandbox = replace(plan.sandbox, mounts=(*plan.sandbox.mounts, mount))
    assert box.run(replace(plan, sandbox=sandbox)).exit_code == 0
    assert box.out == b"seen"


def test_without_fuse_the_image_is_unpacked_in_the_attempts_folder(
    box: Capsule, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = box.plan("sh", "-c", "echo 1; sleep 600")
    outer = box.runtime._outer

    def without_fuse(*args: object) -> object:
        made = outer(*args)  # type: ignore[arg-type]
        argv = list(made.argv)
        argv.insert(argv.index("exec") + 1, "--unsquash")
        return replace(made, argv=tuple(argv))

    monkeypatch.setattr(box.runtime, "_outer", without_fuse)
    step = box.runtime.start(plan)
    until(box.reported)
    unpacked = list((box.root / "apptainer" / "home").glob("rootfs-*"))
    step.stop(0)  # killed, it cannot clean up itself
    assert step.wait(LIMIT) is not None
    assert len(unpacked) == 1
    assert not unpacked[0].exists()
