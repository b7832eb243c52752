"""What tests of steps in Docker containers share: an attempt's folders, as a worker's."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from engines.dockerd import Engine
from fakes.steps import Folder
from simagent.ports.runtime import Mount, Sandbox, StepPlan
from simagent.runtimes.docker import DockerRuntime
from simagent.runtimes.docker_engine import DockerEngine

USER = (65534, 65534) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
WORKDIR = Path("/workdir/output/artifacts")


@dataclass
class Box(Folder):
    """An attempt's folder whose steps run in containers of ``image``, by ``engine``."""

    runtime: DockerRuntime  # type: ignore[assignment]
    engine: Engine
    image: str

    @property
    def artifacts(self) -> Path:
        return self.root / "work" / "output" / "artifacts"

    def plan(self, *argv: str, **changes: object) -> StepPlan:
        own = {
            "image": self.image,
            "uid": USER[0],
            "gid": USER[1],
            "mounts": (
                Mount(source=self.artifacts, target=PurePosixPath(WORKDIR)),
                Mount(source=self.root / "tmp", target=PurePosixPath("/tmp")),
                Mount(source=self.root / "tmp", target=PurePosixPath("/var/tmp")),
            ),
            "labels": {"simagent.task": "a-task", "simagent.epoch": "1"},
        }
        own |= {name: changes.pop(name) for name in (*own, "network", "gpus") if name in changes}
        sandbox = Sandbox(**own)  # type: ignore[arg-type]
        env = {"HOME": "/tmp", "SIMAGENT_TASK_ID": str(self.root)}
        return super().plan(*argv, **{"env": env, "cwd": WORKDIR, "sandbox": sandbox} | changes)

    def containers(self) -> list[str]:
        """Name the containers there are of this folder's steps."""
        mine = f"label=simagent.folder={self.root / 'steps'}"
        found = self.engine.run("ps", "--all", "--filter", mine, "--format", "{{.Names}}")
        return found.stdout.split()


@contextmanager
def box(engine: Engine, image: str, **options: object) -> Iterator[Box]:
    """Make an attempt's folder where the engine gets to it, and remove what is left of it."""
    root = Path(tempfile.mkdtemp(prefix="simagent-test-"))
    runtime = DockerRuntime(DockerEngine(engine.host), False, root.name, **options)  # type: ignore[arg-type]
    made = Box(root / "attempt", runtime, engine, image)
    made.artifacts.mkdir(parents=True)
    (made.root / "tmp").mkdir(mode=0o700)
    for name in ("out", "err"):
        (made.root / name).touch()
    for path in (made.artifacts, *made.root.iterdir()):
        os.chown(path, *USER)
    try:
        yield made
    finally:
        if engine.answers():
            runtime.reap(lambda _folder: False)
        shutil.rmtree(root, ignore_errors=True)
