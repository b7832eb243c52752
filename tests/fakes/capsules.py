"""What tests of steps in Apptainer containers share: an attempt's folders, as a worker's."""

import codecs
import os
import pickle
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from fakes.steps import Folder, none_left
from simagent.ports.runtime import Mount, Sandbox, StepPlan
from simagent.runtimes.apptainer import ApptainerRuntime
from simagent.runtimes.process import ProcessRuntime

T = TypeVar("T")

NOBODY = 65534
WORKDIR = Path("/workdir/output/artifacts")


@dataclass
class Capsule(Folder):
    """An attempt's folder whose steps run in containers of ``image``."""

    runtime: ApptainerRuntime  # type: ignore[assignment]
    image: Path
    user: tuple[int, int]

    @property
    def artifacts(self) -> Path:
        return self.root / "work" / "output" / "artifacts"

    def plan(self, *argv: str, **changes: object) -> StepPlan:
        network = changes.pop("network", "none")
        image = changes.pop("image", self.image)
        sandbox = Sandbox(
            image=str(image),
            uid=self.user[0],
            gid=self.user[1],
            mounts=(
                Mount(source=self.artifacts, target=PurePosixPath(WORKDIR)),
                Mount(source=self.root / "tmp", target=PurePosixPath("/tmp")),
                Mount(source=self.root / "tmp", target=PurePosixPath("/var/tmp")),
            ),
            network=network,  # type: ignore[arg-type]
        )
        env = {"HOME": "/tmp", "SIMAGENT_TASK_ID": str(self.root)}
        return super().plan(*argv, **{"env": env, "cwd": WORKDIR, "sandbox": sandbox} | changes)


@contextmanager
def capsule(image: Path, user: tuple[int, int]) -> Iterator[Capsule]:
    """Make an attempt's folder where every user gets to it, unlike pytest's."""
    root = Path(tempfile.mkdtemp(prefix="simagent-test-"))
    try:
        root.chmod(0o755)
        here = root / "image.sif"
        shutil.copy(image, here)
        here.chmod(0o644)
        made = Capsule(
            root / "attempt", ApptainerRuntime("apptainer", ProcessRuntime()), here, user
        )
        made.artifacts.mkdir(parents=True)
        (made.root / "tmp").mkdir(mode=0o700)
        for name in ("out", "err"):
            (made.root / name).touch()
        for path in (made.root, made.artifacts, *made.root.iterdir()):
            os.chown(path, *user)
        yield made
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def capsule_of_a_test(image: Path, user: tuple[int, int]) -> Iterator[Capsule]:
    """Make one as `capsule` does, and see at the end that no process of it is left."""
    with capsule(image, user) as made:
        yield made
        none_left(made.marked())


def as_user(user: tuple[int, int], call: Callable[[], T]) -> T:
    """Call something in a process of another user, and give what it gave."""
    # That of .venv may be in a folder that is not for all.
    system = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    # What is imported when it is first used may be out of that user's reach.
    codecs.lookup("ascii")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(user[1])
            os.setuid(user[0])
            if not os.access(sys.executable, os.X_OK):
                sys.executable = system
            result: object = call()
        except BaseException:  # noqa: BLE001  # told in the parent
            result = RuntimeError(traceback.format_exc())
        with open(write, "wb") as pipe:
            pickle.dump(result, pipe)
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    given = pickle.loads(answer)
    if isinstance(given, RuntimeError):
        raise given
    return given  # type: ignore[no-any-return]
