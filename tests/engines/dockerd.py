"""A Docker Engine of our own: containerd and dockerd with folders and a socket of theirs."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

READY = 60.0
"""Seconds a daemon may take to start, or to end."""

# Daemons stand in sbin, which is not on everybody's PATH.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])

# No bridge and no firewall rules: two engines would undo each other's. Containers have the networks
# none and host, and user-made ones that reach no further than this machine.
_SETTINGS = {
    "bridge": "none",
    "iptables": False,
    "ip6tables": False,
    "ip-forward": False,
    "live-restore": True,
    "default-address-pools": [{"base": "10.213.0.0/16", "size": 24}],
}


class EngineError(Exception):
    """A daemon does not do what it should; the text ends with what it logged."""


def missing() -> str | None:
    """Say why no engine can be started here, if that is so."""
    for command in ("containerd", "dockerd", "docker"):
        if shutil.which(command, path=_PATH) is None:
            return f"{command} is missing (make engines installs it)"
    if os.geteuid() and (not shutil.which("sudo") or _run(["sudo", "-n", "true"]).returncode):
        return "machine: a Docker Engine of our own needs root, or sudo without a password"
    return None


def _run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=READY)


def _as_root(*argv: str) -> str:
    """Run a small command, and give what it prints, whether or not it finds something to do."""
    return _run([*_sudo(), *argv]).stdout


def _sudo() -> list[str]:
    return ["sudo", "-n"] if os.geteuid() else []


def _states(pid: int | None) -> set[str]:
    """Give the letters of the states of a process's threads."""
    states = set()
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # it has just ended
            states.add((thread / "stat").read_text().rpartition(")")[2].split()[0])
    return states


class Engine:
    """One engine; ``folder`` (a short path) is for this run of it, ``data`` keeps its images."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder = folder
        self.data = data
        self.socket = folder / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.env: Mapping[str, str] = os.environ | {
            "DOCKER_HOST": self.host,
            "DOCKER_CONFIG": str(folder / "config"),
        }
        """What a docker command or SDK needs to reach this engine; no login of the user's."""

    # --- The daemons ---------------------------------------------------------------------------

    def start(self) -> None:
        """Start what does not run yet; return when the engine answers.

        Raises:
            EngineError: It does not within a minute.
        """
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.data.mkdir(parents=True, exist_ok=True)
        containerd = self.folder / "containerd.sock"
        if not self._runs("containerd"):
            containerd.unlink(missing_ok=True)
            self._launch("containerd", "containerd", "--config", str(self._containerd_settings()))
        self._wait(containerd.exists, "containerd")
        if not self._runs("dockerd"):
            # Somebody may not have waited yet for the process that is named in it.
            (self.folder / "docker.pid").unlink(missing_ok=True)
            settings = self.folder / "daemon.json"
            settings.write_text(json.dumps(_SETTINGS))
            argv = ["dockerd", "--config-file", str(settings), "--host", self.host]
            argv += ["--data-root", str(self.data / "docker")]
            argv += ["--exec-root", str(self.folder / "exec")]
            argv += ["--pidfile", str(self.folder / "docker.pid")]
            argv += ["--containerd", str(containerd), "--group", str(os.getgid())]
            self._launch("dockerd", *argv)
        self._wait(self.answers, "dockerd")

    def stop(self) -> None:
        """End dockerd as `systemctl stop docker` would; containers run on."""
        self._end("dockerd", signal.SIGTERM)

    def kill(self) -> None:
        """Kill dockerd; containers run on."""
        self._end("dockerd", signal.SIGKILL)

    def restart(self) -> None:
        """Stop dockerd, and start it again."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Let dockerd answer nothing any more, until `thaw`; connections are still accepted."""
        self._signal("dockerd", signal.SIGSTOP)
        self._wait(lambda: _states(self._pid("dockerd")) == {"T"}, "dockerd")

    def thaw(self) -> None:
        """Undo `freeze`."""
        self._signal("dockerd", signal.SIGCONT)

    def answers(self) -> bool:
        """Tell whether the engine answers within a second."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1)
                connection.connect(str(self.socket))
                connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b" 200 " in connection.recv(64)
        except OSError:
            return False

    def close(self, *, keep_data: bool = False) -> None:
        """End all containers and both daemons, and remove the folders."""
        if self._runs("containerd"):
            if self._runs("dockerd"):
                self.thaw()
            self.start()
            self.remove_containers()
        self.stop()
        self._end("containerd", signal.SIGTERM)
        for pid in self._left():
            _as_root("kill", "-KILL", pid)
        for point in self._mounts():
            _as_root("umount", "-l", point)
        _as_root("rm", "-rf", str(self.folder))
        if not keep_data:
            _as_root("rm", "-rf", str(self.data))

    def log(self, daemon: str = "dockerd") -> str:
        """Give what a daemon logged."""
        path = self.folder / f"{daemon}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _containerd_settings(self) -> Path:
        settings = self.folder / "containerd.toml"
        settings.write_text(
            f'version = 2\nroot = "{self.data}/containerd"\nstate = "{self.folder}/containerd"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{self.folder}/containerd.sock"\n'
        )
        return settings

    def _launch(self, daemon: str, *argv: str) -> None:
        """Start a daemon that is no child of ours, and outlives us."""
        log, pid = self.folder / f"{daemon}.log", self.folder / f"{daemon}.started"
        script = 'log=$1 pid=$2; shift 2; "$@" </dev/null >>"$log" 2>&1 & echo $! >"$pid"'
        subprocess.run(
            [*_sudo(), "env", f"PATH={_PATH}", "sh", "-c", script, "sh", log, pid, *argv],
            check=True,
            start_new_session=True,
        )

    def _pid(self, daemon: str) -> int | None:
        """Give the process of a daemon that runs."""
        try:
            pid = int((self.folder / f"{daemon}.started").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            states = _states(pid)
        except (OSError, ValueError):
            return None
        # A stranger has other words. In the middle of exec there are none, as with a zombie.
        mine = str(self.folder).encode() in words or not words
        return pid if mine and states - {"Z", "X"} else None

    def _runs(self, daemon: str) -> bool:
        return self._pid(daemon) is not None

    def _signal(self, daemon: str, number: signal.Signals) -> None:
        pid = self._pid(daemon)
        if pid is not None:
            _as_root("kill", f"-{number.name.removeprefix('SIG')}", str(pid))

    def _end(self, daemon: str, number: signal.Signals) -> None:
        self._signal(daemon, number)
        try:
            self._wait(lambda: not self._runs(daemon), daemon, must_run=False, seconds=20)
        except EngineError:
            self._signal(daemon, signal.SIGKILL)
            self._wait(lambda: not self._runs(daemon), daemon, must_run=False)

    def _wait(
        self, met: Callable[[], bool], daemon: str, *, must_run: bool = True, seconds: float = READY
    ) -> None:
        deadline = time.monotonic() + seconds
        while not met():
            gone = must_run and not self._runs(daemon)
            if (gone and not met()) or time.monotonic() > deadline:
                state = "has ended" if gone else f"did not start or end in {seconds:g} s"
                raise EngineError(f"{daemon} {state}:\n{self.log(daemon)[-2000:]}")
            time.sleep(0.02)

    def _left(self) -> list[str]:
        """Give what still runs of ours: shims, which name the socket of their containerd."""
        pattern = rf"^\S*containerd-shim\S* .*{re.escape(str(self.folder))}/"
        return _as_root("pgrep", "-f", pattern).split()

    def _mounts(self) -> list[str]:
        ours = (f"{self.folder}/", f"{self.data}/")
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [point for point in reversed(points) if point.startswith(ours)]

    # --- Containers and images -----------------------------------------------------------------

    def run(
        self, *args: str, check: bool = True, stdin: bytes = b"", seconds: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run a docker command; what it prints is text, and its errors are in the exception."""
        done = subprocess.run(
            ["docker", *args],
            env=self.env,
            input=stdin,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
        result = subprocess.CompletedProcess(
            done.args,
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )
        if check and done.returncode:
            raise EngineError(f"docker {' '.join(args)}: {done.returncode}:\n{result.stderr}")
        return result

    def remove_containers(self) -> None:
        """Remove all containers, whether they run or not."""
        found = self.run("ps", "--all", "--quiet").stdout.split()
        if found:
            self.run("rm", "--force", "--volumes", *found, check=False)

    def import_image(
        self, name: str, files: Mapping[str, Path | str | bytes], *changes: str
    ) -> str:
        """Make an image of files alone; give its ID.

        Args:
            name: With a tag.
            files: By their paths in the image: a file of the host's or
                bytes (executable files), or text (where a symbolic link leads).
            changes: Lines of a Dockerfile, as in ``USER 1000``.
        """
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            folder = tarfile.TarInfo("tmp")
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
            archive.addfile(folder)
            for path, content in files.items():
                member = tarfile.TarInfo(path.lstrip("/"))
                if isinstance(content, str):
                    member.type, member.linkname = tarfile.SYMTYPE, content
                    archive.addfile(member)
                    continue
                data = content if isinstance(content, bytes) else content.read_bytes()
                member.size, member.mode = len(data), 0o755
                archive.addfile(member, io.BytesIO(data))
        options = [word for change in changes for word in ("--change", change)]
        return self.run("import", *options, "-", name, stdin=packed.getvalue()).stdout.strip()
