"""A Docker Engine of our own: containerd and dockerd with folders and a socket of theirs."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from engines.daemons import Daemon, EngineError, as_root, missing_of

__all__ = ["Engine", "EngineError", "missing"]

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


def missing() -> str | None:
    """Say why no engine can be started here, if that is so."""
    return missing_of("containerd", "dockerd", "docker")


class Engine:
    """One engine; ``folder`` (a short path) is for this run of it, ``data`` keeps its images.

    ``within`` is a command that it is run by, as in other namespaces.
    """

    def __init__(self, folder: Path, data: Path, within: Sequence[str] = ()) -> None:
        self.folder = folder
        self.data = data
        self.socket = folder / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.env: Mapping[str, str] = os.environ | {
            "DOCKER_HOST": self.host,
            "DOCKER_CONFIG": str(folder / "config"),
        }
        """What a docker command or SDK needs to reach this engine; no login of the user's."""
        self._within = within
        self._containerd = Daemon("containerd", folder)
        self._dockerd = Daemon("dockerd", folder)

    # --- The daemons ---------------------------------------------------------------------------

    def start(self) -> None:
        """Start what does not run yet; return when the engine answers.

        Raises:
            EngineError: It does not within three minutes.
        """
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.data.mkdir(parents=True, exist_ok=True)
        containerd = self.folder / "containerd.sock"
        if not self._containerd.runs():
            containerd.unlink(missing_ok=True)
            argv = ["containerd", "--config", str(self._containerd_settings())]
            self._containerd.launch(*self._within, *argv)
        self._containerd.wait(containerd.exists)
        if not self._dockerd.runs():
            # Somebody may not have waited yet for the process that is named in it.
            (self.folder / "docker.pid").unlink(missing_ok=True)
            settings = self.folder / "daemon.json"
            settings.write_text(json.dumps(_SETTINGS))
            argv = ["dockerd", "--config-file", str(settings), "--host", self.host]
            argv += ["--data-root", str(self.data / "docker")]
            argv += ["--exec-root", str(self.folder / "exec")]
            argv += ["--pidfile", str(self.folder / "docker.pid")]
            argv += ["--containerd", str(containerd), "--group", str(os.getgid())]
            self._dockerd.launch(*self._within, *argv)
        self._dockerd.wait(self.answers)

    def stop(self) -> None:
        """End dockerd as `systemctl stop docker` would; containers run on."""
        self._dockerd.end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill dockerd; containers run on."""
        self._dockerd.end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop dockerd, and start it again."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Let dockerd answer nothing any more, until `thaw`; connections are still accepted."""
        self._dockerd.freeze()

    def thaw(self) -> None:
        """Undo `freeze`."""
        self._dockerd.send(signal.SIGCONT)

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
        if self._containerd.runs():
            if self._dockerd.runs():
                self.thaw()
            self.start()
            self.remove_containers()
            # Those of tests that were cut off: their bridges would be this host's for good.
            self.run("network", "prune", "--force", check=False)
        self.stop()
        self._containerd.end(signal.SIGTERM)
        for pid in self._left():
            as_root("kill", "-KILL", pid)
        for point in self._mounts():
            as_root("umount", "-l", point)
        as_root("rm", "-rf", str(self.folder))
        if not keep_data:
            as_root("rm", "-rf", str(self.data))

    def _containerd_settings(self) -> Path:
        settings = self.folder / "containerd.toml"
        settings.write_text(
            f'version = 2\nroot = "{self.data}/containerd"\nstate = "{self.folder}/containerd"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{self.folder}/containerd.sock"\n'
        )
        return settings

    def _left(self) -> list[str]:
        """Give what still runs of ours: shims, which name the socket of their containerd."""
        pattern = rf"^\S*containerd-shim\S* .*{re.escape(str(self.folder))}/"
        return as_root("pgrep", "-f", pattern).split()

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
