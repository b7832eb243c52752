"""A registry of container images on a free port of loopback."""

import json
import subprocess
import time
from pathlib import Path
from shutil import which
from urllib.error import HTTPError
from urllib.request import urlopen

from engines.dockerd import Engine
from engines.ports import free_port

USER, PASSWORD = "tester", "right-password"
"""Whom a registry with logins lets in."""

# bcrypt, all the registry knows, at the lowest cost.
_HTPASSWD = f"{USER}:$2b$04$gwKJeE.SRmcG3i1lcuQJTuBmV8TZQt2zPlN/seqsXIeMVzRx4WSRe\n"


def missing() -> str | None:
    """Say why no registry can be started here, if that is so."""
    if which("docker-registry") is None:
        return "docker-registry is missing (make engines installs it)"
    return None


class Registry:
    """A registry with its images in ``folder``; with ``login`` only a known user may read."""

    def __init__(self, folder: Path, *, login: bool = False) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.folder = folder
        self._login = login
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it on its port; return when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "registry.log"
        # It ends with us, however we end.
        argv = ["setpriv", "--pdeathsig", "KILL", "docker-registry", "serve", str(self._settings())]
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        deadline = time.monotonic() + 120
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the registry does not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it; its images stay for the next `start`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def answers(self) -> bool:
        """Tell whether it answers, be it to ask for a login."""
        try:
            with urlopen(f"http://{self.address}/v2/", timeout=2) as answer:
                return bool(answer.status == 200)
        except HTTPError as error:
            return error.code == 401
        except OSError:
            return False

    def push(self, engine: Engine, image: str, name: str) -> str:
        """Push an image of an engine's as NAME:TAG; give its full name, without the digest."""
        full = f"{self.address}/{name}"
        if self._login:
            argv = ["login", "--username", USER, "--password-stdin", self.address]
            engine.run(*argv, stdin=PASSWORD.encode())
        engine.run("tag", image, full)
        try:
            engine.run("push", full)
        finally:
            engine.run("rmi", full)
            if self._login:
                engine.run("logout", self.address)
        return full

    def digest(self, name: str) -> str:
        """Give the digest of NAME:TAG, of a registry without logins."""
        repository, _, tag = name.rpartition(":")
        path = self.folder / "docker/registry/v2/repositories" / repository
        return (path / f"_manifests/tags/{tag}/current/link").read_text().strip()

    def _settings(self) -> Path:
        settings: dict[str, object] = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.folder)},
                "delete": {"enabled": True},
            },
            "http": {"addr": self.address},
        }
        if self._login:
            users = self.folder / "htpasswd"
            users.write_text(_HTPASSWD)
            settings["auth"] = {"htpasswd": {"realm": "tests", "path": str(users)}}
        file = self.folder / "registry.yml"
        file.write_text(json.dumps(settings))
        return file
