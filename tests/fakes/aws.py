"""A stand-in for AWS on loopback: S3 and SQS by moto's server, one for all tests of a worker."""

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from engines.ports import free_port

REGION = "eu-west-1"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testtesttest"}


@dataclass(frozen=True, slots=True)
class Moto:
    """A running server; what tests make in it has names of its own, by `name`."""

    endpoint: str
    region: str = REGION

    def name(self, what: str = "test") -> str:
        """Make up a name that no other test uses, for a bucket or a queue."""
        return f"{what}-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def aws_credentials() -> Iterator[None]:
    """Credentials in the environment, where boto3 looks for them: Ceph RGW knows them, moto any."""
    with pytest.MonkeyPatch.context() as patch:
        _only_own_credentials(patch)
        yield


@pytest.fixture(scope="session")
def moto(aws_credentials: None) -> Iterator[Moto]:
    """The server."""
    with moto_server() as made:
        yield made


@contextmanager
def moto_server(address: str = "127.0.0.1") -> Iterator[Moto]:
    """Run a server, for who changes more of it than its own buckets and queues."""
    port = free_port(address)
    endpoint = f"http://{address}:{port}"
    program = Path(__file__).with_name("moto_server.py")
    # -P: fakes stand beside it with names of the standard library.
    argv = [sys.executable, "-P", str(program), "-H", address, "-p", str(port)]
    with tempfile.TemporaryFile() as log:
        # It ends with us, however we end.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + 120
            while not _answers(endpoint):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"moto does not start:\n{log.read()[-2000:].decode()}")
                time.sleep(0.05)
            yield Moto(endpoint)
        finally:
            process.kill()
            process.wait()


def _only_own_credentials(patch: pytest.MonkeyPatch) -> None:
    """Let boto3 find made-up credentials, and nothing of who runs the tests."""
    for name in os.environ:
        if name.startswith("AWS_"):
            patch.delenv(name)
    for name, value in KEYS.items():
        patch.setenv(name, value)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    nowhere = os.devnull
    patch.setenv("AWS_CONFIG_FILE", nowhere)
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", nowhere)


def _answers(endpoint: str) -> bool:
    try:
        with urlopen(f"{endpoint}/moto-api/data.json", timeout=2):
            return True
    except HTTPError:
        return True
    except OSError:
        return False
