"""Run a command with the tests' engine, or remove it: ``python -m engines run COMMAND ...``."""

import os
import signal
import subprocess
import sys

from engines.dockerd import EngineError, missing
from engines.shared import remove, shared_engine

USAGE = "usage: python -m engines run COMMAND [ARGUMENT ...] | python -m engines remove"


def run(argv: list[str]) -> int:
    """Run a command that finds the engine by DOCKER_HOST; give its exit code."""
    why_not = missing()
    if why_not:
        raise EngineError(why_not)
    with shared_engine() as engine:
        # Ctrl-C is for the command; the engine ends after it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        env = os.environ | {"DOCKER_HOST": engine.host}
        default = [signal.SIGINT, signal.SIGTERM]
        started = subprocess.Popen(
            ["env", f"--default-signal={','.join(s.name for s in default)}", *argv], env=env
        )
        code = started.wait()
    return code if code >= 0 else 128 - code


def main(argv: list[str]) -> int:
    try:
        match argv:
            case ["run", _, *_]:
                return run(argv[1:])
            case ["remove"]:
                remove()
                return 0
    except EngineError as error:
        print(f"engines: {error}", file=sys.stderr)
        return 1
    except BlockingIOError:
        print("engines: the engine is in use: end the tests that use it", file=sys.stderr)
        return 1
    print(USAGE, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
