"""S3 and SQS for benchmarks: moto's server on loopback, or the S3 that SIMAGENT_TEST_S3 names."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from socket import create_server
from unittest import mock
from urllib.error import HTTPError
from urllib.request import urlopen

_REGION = "us-east-1"
_SERVER = Path(__file__).parents[1] / "tests" / "fakes" / "moto_server.py"
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@contextmanager
def engines() -> Iterator[Mapping[str, str]]:
    """Give the settings of a fresh bucket and a fresh queue; the credentials are set meanwhile.

    An S3 of SIMAGENT_TEST_S3 has its own in the environment, which moto takes, too.
    """
    s3 = os.environ.get("SIMAGENT_TEST_S3")
    with mock.patch.dict(os.environ, {} if s3 else _CREDENTIALS), _moto() as endpoint:
        yield _made(s3 or endpoint, endpoint)


def _made(s3: str, sqs: str) -> Mapping[str, str]:
    from boto3.session import Session

    from simagent.queues.sqs_setup import create_queue

    name = f"bench-{uuid.uuid4().hex[:12]}"
    Session().client("s3", endpoint_url=s3, region_name=_REGION).create_bucket(Bucket=name)
    create_queue(name, region=_REGION, endpoint=sqs)
    return {
        "queue": f"sqs://{name}",
        "store": f"s3://{name}/fleet",
        "sqs_endpoint": sqs,
        "sqs_region": _REGION,
        "s3_endpoint": s3,
        "s3_region": _REGION,
    }


@contextmanager
def _moto() -> Iterator[str]:
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    # -P: fakes stand beside it with names of the standard library.
    argv = [sys.executable, "-P", str(_SERVER), "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not _answers(endpoint):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("moto's server does not start")
            time.sleep(0.05)
        yield endpoint
    finally:
        process.kill()
        process.wait()


def _answers(endpoint: str) -> bool:
    try:
        with urlopen(f"{endpoint}/moto-api/data.json", timeout=2):
            return True
    except HTTPError:
        return True
    except OSError:
        return False
