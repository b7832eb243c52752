"""Build the shelf's images, and see whether they work: python -m shelf build|smoke [NAME ...]."""

import argparse
import sys
import time
from collections.abc import Sequence

from shelf.images import BuildError, build, build_base, image_file
from shelf.model import ROOT, Simulator, load, names
from shelf.smoke import RUNTIMES, smoke

BUILD = ROOT.parent / "build"


def build_all(simulators: Sequence[Simulator]) -> int:
    """Build images; give the exit code."""
    for simulator in simulators:
        started = time.monotonic()
        print(f"{simulator.image} ...", flush=True)
        build(simulator)
        print(f"{simulator.image}: {time.monotonic() - started:.0f} s", flush=True)
    return 0


def smoke_all(simulators: Sequence[Simulator], runtimes: Sequence[str]) -> int:
    """Build images and run their cases under each runtime; give the exit code."""
    failed = 0
    for simulator in simulators:
        build(simulator)
        for runtime in runtimes:
            started = time.monotonic()
            image = image_file(simulator, runtime, BUILD / "images")
            prepared = time.monotonic()
            objections = smoke(
                simulator, runtime, image, BUILD / "smoke" / simulator.name / runtime
            )
            failed += bool(objections)
            print(
                f"{simulator.name:17} {runtime:9} {'FAILED' if objections else 'ok':6} "
                f"{time.monotonic() - prepared:5.1f} s "
                f"(after {prepared - started:.1f} s to make the image's file)",
                *objections,
                sep="\n    ",
                flush=True,
            )
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="shelf", description="Images of simulators.")
    parser.add_argument("what", choices=["build", "smoke", "list"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="simulators; default: all")
    parser.add_argument("--runtime", action="append", choices=RUNTIMES, help="default: both")
    asked = parser.parse_args()
    try:
        if asked.what == "build" and "base" in asked.names:
            for suite in ("trixie", "bookworm"):
                build_base(suite)
            asked.names.remove("base")
            if not asked.names:
                return 0
        simulators = [load(name) for name in asked.names or names()]
        if asked.what == "build":
            return build_all(simulators)
        if asked.what == "smoke":
            return smoke_all(simulators, asked.runtime or RUNTIMES)
        for simulator in simulators:
            print(f"{simulator.name:17} {simulator.version:12} {simulator.about}")
    except (BuildError, ValueError) as error:
        print(f"shelf: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
