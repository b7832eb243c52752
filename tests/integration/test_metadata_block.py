"""Tasks get no answer from a cloud's metadata server, whatever runs them; the agent does.

In a network namespace of its own, where a fake of that server has the address of the real one, and
the users of tasks are those that the package makes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from engines.daemons import PATH, missing_of
from engines.dockerd import Engine
from fakes.clouds import aws
from fakes.rig import Rig
from simagent.domain.state import State

ROOT = Path(__file__).parents[2]
SYSTEMD = ROOT / "systemd"
SERVER = "169.254.169.254"
FIRST_UID = 61_000

# All of /etc: a mount on one file goes away when that is replaced, as by any useradd elsewhere.
_NAMESPACES = f"""
mount --bind "$1/etc" /etc
ip link set lo up
ip address add {SERVER}/32 dev lo
echo up
exec sleep 600
"""

_SERVE = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
answers = json.loads(sys.argv[1])
class Handler(BaseHTTPRequestHandler):
    def do_PUT(self):
        self.answer("the-token")
    def do_GET(self):
        self.answer(answers.get(self.path))
    def answer(self, text):
        self.send_response(404 if text is None else 200)
        text = text or ""
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *_):
        pass
server = ThreadingHTTPServer(("0.0.0.0", 80), Handler)
print("up", flush=True)
server.serve_forever()
"""

# That the network as such is there shows by another address of the same server.
ASK = (
    "for it in 127.0.0.1 169.254.169.254; do "
    r"printf 'GET /keys HTTP/1.0\r\n\r\n' | nc -w 5 $it 80 | grep -q 'the keys' && "
    "echo answered $it; done; id -u"
)
"""For the shell of BusyBox, or with BusyBox in PATH."""


class Walled:
    """Namespaces of a network and of mounts, kept by a process in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[str]] = []
        subprocess.run(["cp", "--archive", "/etc", folder / "etc"], check=True)
        for name, line in (
            ("passwd", "simtask-{0}:x:{1}:{1}::/:/usr/sbin/nologin\n"),
            ("group", "simtask-{0}:x:{1}:\n"),
        ):
            own = [line.format(number, FIRST_UID + number) for number in range(32)]
            with (folder / "etc" / name).open("a") as file:
                file.writelines(own)
        argv = ["unshare", "--net", "--mount", "--propagation", "slave"]
        self.keeper = self._start([*argv, "sh", "-euc", _NAMESPACES, "sh", str(folder)])

    def _start(self, argv: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            argv, env=os.environ | {"PATH": PATH}, stdout=subprocess.PIPE, text=True
        )
        self._started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process

    def enter(self, *argv: str, mounts: bool = True) -> list[str]:
        """Make a command line that is run in there."""
        spaces = ["--net", "--mount"] if mounts else ["--net"]
        return ["nsenter", f"--target={self.keeper.pid}", *spaces, *argv]

    def serve(self) -> None:
        """Start the server of AWS."""
        answers = json.dumps(aws() | {"/keys": "the keys of this machine\n"})
        self._start(self.enter(sys.executable, "-I", "-c", _SERVE, answers))

    def run(self, *argv: str, **env: str) -> str:
        """Run a command in there; give what it prints."""
        done = subprocess.run(
            self.enter(*argv), env=os.environ | {"PATH": PATH} | env, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def end(self) -> None:
        for process in reversed(self._started):
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def walled() -> Iterator[Walled]:
    why = missing_of("nft", "ip", "unshare", "nsenter", "busybox")
    if os.geteuid() != 0:
        why = "machine: namespaces of a network are root's to make"
    if why is not None:
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="simagent-test-"))
    folder.chmod(0o755)  # users of tasks have to pass
    made = Walled(folder)
    try:
        yield made
    finally:
        made.end()
        shutil.rmtree(folder, ignore_errors=True)


def block(walled: Walled) -> None:
    walled.run("nft", "--file", str(SYSTEMD / "metadata.nft"))


def run(walled: Walled, spec: Mapping[str, object], **env: str) -> tuple[State, str]:
    """Run a task by an agent in there; give what became of it, and its stdout."""
    rig = Rig(walled.folder)
    task = rig.submit(["sh", "-c", ASK], **spec)
    tools = walled.folder / "tools"
    if not tools.exists():
        tools.mkdir(mode=0o755)
        (tools / "nc").symlink_to("/bin/busybox")
    own = {
        "SIMAGENT_STATE_DIR": str(walled.folder / "state"),
        "SIMAGENT_QUEUE": f"sqlite://{walled.folder}/queue.db",
        "SIMAGENT_STORE": f"file://{walled.folder}/store",
        "SIMAGENT_TIMES": rig.config().times.model_dump_json(),
        "SIMAGENT_CLOUD": "aws",
        "PATH": f"{tools}:{PATH}",
    }
    walled.run(sys.executable, "-m", "simagent", "agent", "--until-empty", **(own | env))
    return rig.finish(task), rig.log(task).decode()


def blocked(state: State, said: str) -> None:
    assert state.status == "succeeded"
    assert said == f"answered 127.0.0.1\n{FIRST_UID}\n"
    # The agent has asked: it knows what the machine is.
    assert state.attempts[-1].machine["instance"] == "i-1234"


def test_programs_of_a_task(walled: Walled) -> None:
    walled.serve()
    _, said = run(walled, {})
    assert f"answered {SERVER}\n" in said, "the test itself, without the rule"
    block(walled)
    blocked(*run(walled, {}))


def test_containers_of_apptainer(walled: Walled, tiny_sif: Path) -> None:
    walled.serve()
    block(walled)
    image = walled.folder / "tiny.sif"
    shutil.copy(tiny_sif, image)
    image.chmod(0o644)
    spec = {"image": f"file://{image}", "runtime": "apptainer", "network": "host"}
    blocked(*run(walled, spec))


def test_containers_of_docker(
    walled: Walled, private_docker: Callable[..., Engine], load_tiny: Callable[[Engine], str]
) -> None:
    walled.serve()
    block(walled)
    engine = private_docker(walled.enter(mounts=False))
    spec = {"image": load_tiny(engine), "runtime": "docker", "network": "host"}
    blocked(*run(walled, spec, SIMAGENT_DOCKER_HOST=engine.host))


def test_doctor_tells_whether_it_is_in_force(walled: Walled) -> None:
    def told() -> str:
        state = str(walled.folder / "state")
        said = walled.run(sys.executable, "-m", "simagent", "--state-dir", state, "doctor")
        (line,) = [line for line in said.splitlines() if " metadata " in line]
        return line

    assert told().startswith("note     metadata"), "nothing blocks it"
    assert "simtask-0 get to the metadata server" in told()
    block(walled)
    assert told().startswith("ok       metadata")
    assert "no task gets to 169.254.169.254" in told()
