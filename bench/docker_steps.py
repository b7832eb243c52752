"""A step in a container, and a pull, against the docker command doing the same."""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.report import Result, show

_RUNS = 12
_PULLS = 3
_OVERHEAD = 0.150
_LAYER = 128 * 1024 * 1024

# The engine, the registry and the attempt's folder are those of the tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def run() -> list[Result]:
    """Compare both, in turns, with an engine and a registry of our own; nothing where none is."""
    from engines import dockerd, registry
    from engines.shared import shared_engine

    why_not = dockerd.missing() or registry.missing()
    if why_not is not None:
        print(f"docker: not measured: {why_not}", file=sys.stderr)
        return []
    with shared_engine() as engine, ExitStack() as stack:
        return [_steps(engine, stack), _pulls(engine, stack)]


def _steps(engine: object, stack: ExitStack) -> Result:
    from engines.dockerd import Engine
    from engines.fixtures import _make_tiny
    from fakes.boxes import box

    assert isinstance(engine, Engine)
    made = stack.enter_context(box(engine, _make_tiny(engine)))
    bare = ["docker", "run", "--rm", "--network", "none", made.image, "true"]
    numbers = iter(range(2 * _RUNS))

    def step() -> None:
        assert made.run(made.plan("true", number=next(numbers))).exit_code == 0

    def plain() -> None:
        subprocess.run(bare, env=engine.env, check=True)

    ours, theirs = _alternately(step, plain, _RUNS)
    return Result(
        "a step in a container, against docker run --rm",
        f"≤ + {_OVERHEAD * 1e3:.0f} ms",
        f"{ours * 1e3:.0f} ms, {theirs * 1e3:.0f} ms bare",
        ours / theirs,
        ours <= theirs + _OVERHEAD,
    )


def _pulls(engine: object, stack: ExitStack) -> Result:
    from engines.dockerd import Engine
    from engines.registry import Registry
    from simagent.domain.images import parse_image
    from simagent.runtimes.docker_engine import DockerEngine
    from simagent.runtimes.docker_images import DockerImages

    assert isinstance(engine, Engine)
    folder = Path(tempfile.mkdtemp(prefix="simagent-bench-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    registry = Registry(folder / "registry")
    registry.start()
    stack.callback(registry.stop)
    engine.import_image("simagent-bench:1", {"data": os.urandom(_LAYER)})
    name = registry.push(engine, "simagent-bench:1", "bench:1")
    engine.run("rmi", "simagent-bench:1")
    images = DockerImages(DockerEngine(engine.host), folder / "images")

    def ours() -> None:
        images.remove(images.ensure(parse_image(name)).digest)

    def theirs() -> None:
        engine.run("pull", "--quiet", name)
        engine.run("rmi", name)

    mine, plain = _alternately(ours, theirs, _PULLS)
    size = _LAYER / 2**20
    return Result(
        f"pull {size:.0f} MiB and remove it, against docker pull and rmi",
        "≤ 1.1 ×",
        f"{mine:.2f} s, {plain:.2f} s bare",
        mine / plain,
        mine <= 1.1 * plain + 0.1,
    )


def _alternately(
    ours: Callable[[], None], theirs: Callable[[], None], runs: int
) -> tuple[float, float]:
    """Give the medians in seconds; what comes first has all to warm up, and is left out."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs + 1):
        for call, taken in zip((ours, theirs), times, strict=True):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


if __name__ == "__main__":
    show(run())
