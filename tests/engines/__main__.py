"""Run a command with the tests' engines, or remove them: ``python -m engines run COMMAND ...``."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping

from engines import dockerd, s3_servers
from engines.daemons import EngineError
from engines.s3_servers import RGW
from engines.shared import remove, shared_engine, shared_s3

USAGE = """\
usage: python -m engines run COMMAND [ARGUMENT ...]    with a Docker Engine, by DOCKER_HOST
       python -m engines rgw COMMAND [ARGUMENT ...]    with Ceph RGW, by SIMAGENT_S3_ENDPOINT
       python -m engines remove"""


def run(argv: list[str]) -> int:
    """Run a command that finds the engine by DOCKER_HOST; give its exit code."""
    _check(dockerd.missing())
    with shared_engine() as engine:
        return _call(argv, {"DOCKER_HOST": engine.host})


def rgw(argv: list[str]) -> int:
    """Run a command that finds Ceph RGW and credentials for it; give its exit code."""
    _check(s3_servers.missing(RGW))
    with shared_s3(RGW) as server:
        where = ("SIMAGENT_S3_ENDPOINT", "SIMAGENT_TEST_S3", "AWS_ENDPOINT_URL_S3")
        return _call(argv, {**server.env, **dict.fromkeys(where, server.endpoint)})


def _check(why_not: str | None) -> None:
    if why_not:
        raise EngineError(why_not)


def _call(argv: list[str], env: Mapping[str, str]) -> int:
    # Ctrl-C is for the command; the engine ends after it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    default = [signal.SIGINT, signal.SIGTERM]
    started = subprocess.Popen(
        ["env", f"--default-signal={','.join(s.name for s in default)}", *argv],
        env=os.environ | env,
    )
    code = started.wait()
    return code if code >= 0 else 128 - code


def main(argv: list[str]) -> int:
    try:
        match argv:
            case ["run", _, *_]:
                return run(argv[1:])
            case ["rgw", _, *_]:
                return rgw(argv[1:])
            case ["remove"]:
                remove()
                return 0
    except EngineError as error:
        print(f"engines: {error}", file=sys.stderr)
        return 1
    except BlockingIOError:
        print("engines: an engine is in use: end the tests that use it", file=sys.stderr)
        return 1
    print(USAGE, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
