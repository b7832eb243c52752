"""Buckets for tests: of moto's server, or of the S3 that SIMAGENT_TEST_S3 names."""

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from fakes.aws import Moto
from simagent.stores.s3 import S3Store
from simagent.stores.s3_calls import Access, connect

ENDPOINT = "SIMAGENT_TEST_S3"
"""Its endpoint; its credentials are found as boto3 finds them."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A fresh bucket."""

    name: str
    endpoint: str
    region: str | None

    @property
    def url(self) -> str:
        return f"s3://{self.name}/a/prefix"

    def client(self) -> Any:
        return _connected(Access(self.endpoint, self.region), 1)


# A client takes a tenth of a second to make, and is the same for all tests.
_connected = cache(connect)


def make_store(bucket: Bucket) -> S3Store:
    access = Access(bucket.endpoint, bucket.region)
    return S3Store(bucket.url, access, prove=True, connect=_connected)


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """A bucket of this test alone."""
    endpoint = os.environ.get(ENDPOINT)
    named = Moto(endpoint, "us-east-1") if endpoint else request.getfixturevalue("moto")
    made = Bucket(named.name(), named.endpoint, named.region)
    where = {} if endpoint else {"LocationConstraint": named.region}
    client = made.client()
    client.create_bucket(
        Bucket=made.name, **({"CreateBucketConfiguration": where} if where else {})
    )
    return made
