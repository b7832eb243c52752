"""What the tests of fleets share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.s3_servers import S3Server
from fakes.aws import Moto
from fakes.s3 import Bucket, make_bucket, remove_bucket
from faults.conftest import left_to_full, measured, pytest_terminal_summary
from fleet.lab import FleetLab, Labs

__all__ = ["measured", "pytest_terminal_summary"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long cases to `make faults`."""
    left_to_full(config, items)


@pytest.fixture
def labs(tmp_path: Path, rgw: S3Server, moto: Moto) -> Iterator[Labs]:
    """What makes labs whose store is in Ceph RGW, and whose queue at moto's SQS."""
    made: list[Bucket] = []

    def bucket() -> Bucket:
        made.append(make_bucket(rgw.endpoint, moto.name()))
        return made[-1]

    yield Labs(tmp_path, bucket, moto)
    for each in made:
        remove_bucket(each)


@pytest.fixture
def lab(labs: Labs) -> Iterator[FleetLab]:
    with labs() as made:
        yield made
