"""A machine in miniature whose tasks run in containers, and the image that they run in."""

import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from engines.dockerd import Engine
from faults.lab import Lab
from faults.recorder import Recorder
from faults.truth import TruthKeeper
from simagent.domain.keys import TaskKeys

_PYTHON = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
_PAYLOAD = Path(__file__).with_name("payload.py")
_BUSYBOX = Path("/bin/busybox")
_INSIDE = "/payload.py"
_NEEDED = """
import json, runpy, sys
runpy.run_path(sys.argv[1])
found = [module for module in sys.modules.values() if getattr(module, "__file__", None)]
print(json.dumps([[module.__file__, getattr(module, "__cached__", None)] for module in found]))
"""


def make_image(engine: Engine) -> str:
    """Make the image of the payload: this Python, and of its library what the payload imports.

    Gives its ID.
    """
    argv = [str(_PYTHON), "-I", "-S", "-c", _NEEDED, str(_PAYLOAD)]
    printed = subprocess.run(argv, capture_output=True, check=True).stdout
    files = {_PYTHON, *(Path(name) for pair in json.loads(printed) for name in pair if name)}
    for path in [path for path in files if path == _PYTHON or path.suffix == ".so"]:
        files |= _libraries(path)
    image: dict[str, Path | str | bytes] = {str(path): path for path in files if path.exists()}
    tools = {f"/bin/{name}": "busybox" for name in ("sh", "sleep", "stat")}
    image |= {"/bin/busybox": _BUSYBOX, **tools, _INSIDE: _PAYLOAD}
    return engine.import_image(f"simagent-payload:{os.getpid()}", image)


def _libraries(path: Path) -> set[Path]:
    """Name the shared libraries of a program, and what loads them."""
    done = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False)
    return {Path(name) for name in re.findall(r"(?:=> |^\s+)(/\S+) \(", done.stdout, re.MULTILINE)}


class BoxLab(Lab):
    """Everything beneath one folder; tasks do what payload.py can do, in containers."""

    def __init__(
        self, folder: Path, runtime: str, image: str, engine: Engine | None = None, **times: float
    ) -> None:
        """``runtime`` runs the ``image``, with Docker by the ``engine``."""
        self.runtime = runtime
        self._image = image
        self._engine = engine
        super().__init__(folder, **times)
        self._truth = TruthKeeper(self.truth)
        self._held = ExitStack()
        if engine is not None:
            (folder / "engine").write_text(str(engine.socket))

    def _settings(self, name: str) -> dict[str, Any]:
        own: dict[str, Any] = {"runtimes": [self.runtime]}
        if self._engine is not None:
            own["docker_host"] = self._engine.host
        return super()._settings(name) | own

    def payload(self, step: int, mode: str, number: float = 1.0) -> list[str]:
        """Give the command of a step."""
        argv = [str(_PYTHON), "-I", "-S", _INSIDE]
        return [*argv, self._truth.address, str(step), mode, str(number)]

    def submit(self, *commands: object, **fields: object) -> TaskKeys:
        # The network is for the ground truth alone.
        boxed = {"image": self._image, "runtime": self.runtime, "network": "host"}
        return super().submit(*commands, **boxed | fields)

    def pid(self, task: TaskKeys, step: str = "1.0") -> int:
        """Wait for a step's start and give its id on this machine: of several, the first's."""
        super().pid(task, step)  # in the container
        return min(self.until(lambda: self.programs(task) or None))

    def programs(self, task: TaskKeys) -> list[int]:
        """List the payloads that run for a task: their process ids on this machine."""
        found = []
        for pid, command in Recorder(self.folder).processes():
            with suppress(OSError):  # it has just ended
                environ = Path(f"/proc/{pid}/environ").read_bytes()
                if command.startswith(f"{_PYTHON} ") and task.id.encode() in environ:
                    found.append(pid)
        return found

    def containers(self) -> list[str]:
        """List the containers of all tasks that the engine has, by their ids."""
        return [container for container, _ in Recorder(self.folder).containers()]

    def __enter__(self) -> "BoxLab":
        self._held.enter_context(self._truth)
        super().__enter__()
        return self

    def __exit__(self, failed: object, *rest: object) -> None:
        super().__exit__(failed, *rest)
        if failed is not None and self._engine is not None:
            for container in self.containers():
                self._engine.run("rm", "--force", container, check=False)
        self._held.close()
