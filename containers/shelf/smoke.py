"""Runs a simulator's smoke case by simagent, in its image, and looks at the numbers."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shelf.model import Simulator

RUNTIMES = ("docker", "apptainer")


def smoke(
    simulator: Simulator, runtime: str, image: str, folder: Path, *, minutes: float = 10
) -> list[str]:
    """Run the case beneath a folder, which is emptied before; say what is wrong with the result.

    Args:
        simulator: Whose case.
        runtime: One of RUNTIMES.
        image: Reference of the image in a form that this runtime takes.
        folder: Its outputs are in ``outputs``, the agent's state in ``state``.
        minutes: How long it may take.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    task = folder / "task.json"
    task.write_text(json.dumps(_task(simulator, runtime, image)))
    outputs = folder / "outputs"
    done = subprocess.run(
        [sys.executable, "-m", "simagent", "run", str(task), "--output-dir", str(outputs)],
        env=_environment(runtime, folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=minutes * 60,
        check=False,
    )
    if done.returncode:
        return [f"simagent run: exit code {done.returncode}:\n{done.stdout[-3000:]}"]
    found = (check.objection(outputs) for check in simulator.smoke)
    return [objection for objection in found if objection]


def _task(simulator: Simulator, runtime: str, image: str) -> Mapping[str, Any]:
    task = tomllib.loads(simulator.task.read_text())
    inputs = [str(simulator.task.parent / source) for source in task.get("inputs", [])]
    return task | {"image": image, "runtime": runtime, "inputs": inputs}


def _environment(runtime: str, folder: Path) -> Mapping[str, str]:
    """Give the environment, of simagent's settings one runtime and a state of its own alone."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("SIMAGENT_")}
    runtimes = json.dumps([runtime])
    return own | {"SIMAGENT_STATE_DIR": str(folder / "state"), "SIMAGENT_RUNTIMES": runtimes}
