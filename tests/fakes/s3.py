"""Buckets for tests: of moto's server, of Ceph RGW, or of the S3 that SIMAGENT_TEST_S3 names."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from engines.s3_servers import S3Server
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


def make_bucket(endpoint: str, name: str, region: str | None = None) -> Bucket:
    """Make one where there is none of that name; without a region, in the one there is."""
    made = Bucket(name, endpoint, region or "us-east-1")
    where = {"CreateBucketConfiguration": {"LocationConstraint": region}} if region else {}
    made.client().create_bucket(Bucket=name, **where)
    return made


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """A bucket of this test alone."""
    endpoint = os.environ.get(ENDPOINT)
    if endpoint:
        return make_bucket(endpoint, Moto(endpoint).name())
    moto: Moto = request.getfixturevalue("moto")
    return make_bucket(moto.endpoint, moto.name(), moto.region)


def remove_bucket(bucket: Bucket) -> None:
    """Remove a bucket and all that is in it, where the server keeps it in memory."""
    client = bucket.client()
    for upload in client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", ()):
        client.abort_multipart_upload(
            Bucket=bucket.name, Key=upload["Key"], UploadId=upload["UploadId"]
        )
    while found := client.list_objects_v2(Bucket=bucket.name).get("Contents"):
        keys = [{"Key": each["Key"]} for each in found]
        client.delete_objects(Bucket=bucket.name, Delete={"Objects": keys, "Quiet": True})
    client.delete_bucket(Bucket=bucket.name)


@pytest.fixture
def rgw_bucket(rgw: S3Server) -> Iterator[Bucket]:
    """A bucket of this test alone in Ceph RGW, a real store with real authentication."""
    made = make_bucket(rgw.endpoint, Moto(rgw.endpoint).name())
    yield made
    remove_bucket(made)


@pytest.fixture(params=["bucket", "rgw_bucket"])
def any_bucket(request: pytest.FixtureRequest) -> Bucket:
    """A bucket of this test alone, of each server there is for tests."""
    made: Bucket = request.getfixturevalue(request.param)
    return made
