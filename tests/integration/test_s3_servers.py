"""Real servers of S3: Ceph RGW, with its real authentication, and Swift, which is to be refused."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from engines.s3_servers import S3Server
from fakes.aws import Moto
from fakes.cli import HELLO, Cli
from fakes.rig import Rig, kill9
from fakes.s3 import Bucket, make_store
from simagent.domain.state import Status
from simagent.ports.store import (
    StoreError,
    StoreLockedOutError,
    StoreRefusedError,
    StoreUnavailableError,
)
from simagent.stores.s3 import S3Store
from simagent.stores.s3_calls import Access, connect

pytestmark = pytest.mark.timeout(400)

MEGABYTE = 1 << 20


def rig_for(folder: Path, bucket: Bucket) -> Rig:
    return Rig(
        folder,
        {
            "store": bucket.url,
            "s3_endpoint": bucket.endpoint,
            "s3_region": bucket.region or "",
            "allow_process": "true",
        },
    )


def cli_for(folder: Path, bucket: Bucket, **change: str) -> Cli:
    cli = Cli(folder)
    cli.env |= {
        "SIMAGENT_STORE": bucket.url,
        "SIMAGENT_S3_ENDPOINT": bucket.endpoint,
        "SIMAGENT_S3_REGION": bucket.region or "",
        "SIMAGENT_ALLOW_PROCESS": "true",
        **change,
    }
    return cli


# Whole tasks


def test_outputs_of_many_megabytes_come_back_as_they_were(
    tmp_path: Path, rgw_bucket: Bucket
) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "in.txt").write_text("given\n")
    rig = rig_for(tmp_path, rgw_bucket)
    make = "cat in.txt; head -c 20000000 /dev/urandom > large; sha256sum < large"
    with rig.agent():
        task = rig.submit({"run": make, "shell": True}, inputs=["given/"])
        assert rig.finish(task, 60).status == Status.SUCCEEDED
    given, sha256 = rig.log(task).decode().splitlines()
    rig.client.download(task, [], tmp_path / "got")
    large = (tmp_path / "got" / "large").read_bytes()
    assert (given, sha256.split()[0]) == ("given", hashlib.sha256(large).hexdigest())
    client = rgw_bucket.client()
    assert "Uploads" not in client.list_multipart_uploads(Bucket=rgw_bucket.name)


def test_a_task_of_an_agent_that_was_killed_is_run_by_another(
    tmp_path: Path, rgw_bucket: Bucket
) -> None:
    rig = rig_for(tmp_path, rgw_bucket)
    first = rig.process("first")
    go = tmp_path / "go"
    task = rig.submit({"run": f"until [ -e {go} ]; do sleep 0.05; done; echo ok", "shell": True})
    rig.until(lambda: rig.running(task))
    kill9(first)
    with rig.agent("second"):
        rig.until(lambda: rig.client.state(task).epoch == 2 or None)
        rig.until(lambda: rig.running(task))
        go.touch()
        state = rig.finish(task)
    assert (state.status, state.epoch, rig.log(task)) == (Status.SUCCEEDED, 2, b"ok\n")


# Who may, and who may not


def test_doctor_has_tried_the_conditions(tmp_path: Path, rgw_bucket: Bucket) -> None:
    done = cli_for(tmp_path, rgw_bucket)("doctor")
    assert f"{rgw_bucket.url}: compare-and-swap tried" in done.stdout


@pytest.mark.parametrize("command", ["agent", "sweep", "list", "submit"])
@pytest.mark.parametrize(
    "change", [{"AWS_SECRET_ACCESS_KEY": "wrong"}, {"AWS_ACCESS_KEY_ID": "nobodys"}]
)
def test_credentials_that_are_wrong_are_one_clear_line(
    tmp_path: Path, rgw_bucket: Bucket, command: str, change: dict[str, str]
) -> None:
    cli = cli_for(tmp_path, rgw_bucket, **change)
    argv = ("submit", "-") if command == "submit" else (command,)
    (line,) = cli(*argv, code=1, stdin=HELLO).stderr.splitlines()
    assert "does not take the credentials, check them (AWS_ACCESS_KEY_ID" in line


def test_a_bucket_that_is_missing_is_one_clear_line(tmp_path: Path, rgw: S3Server) -> None:
    missing = Bucket(Moto(rgw.endpoint).name(), rgw.endpoint, "us-east-1")
    for command in ("agent", "sweep", "list"):
        (line,) = cli_for(tmp_path, missing)(command, code=1).stderr.splitlines()
        assert f"there is no bucket {missing.name}: create it" in line


def test_what_is_not_permitted_is_named(rgw_bucket: Bucket) -> None:
    store = make_store(rgw_bucket)
    store.put("k", b"1")
    everything = f"arn:aws:s3:::{rgw_bucket.name}/*"
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Deny",
                "Principal": "*",
                "Action": ["s3:PutObject"],
                "Resource": [everything],
            }
        ],
    }
    client = rgw_bucket.client()
    client.put_bucket_policy(Bucket=rgw_bucket.name, Policy=json.dumps(policy))
    try:
        for write in (
            lambda: store.put("k", b"2"),
            lambda: store.put("new", b"2", if_absent=True),
            lambda: store.upload("k", lambda: [b"x" * MEGABYTE] * 20),
        ):
            with pytest.raises(StoreError, match="s3:PutObject"):
                write()
        assert store.get("k").data == b"1"
    finally:
        client.delete_bucket_policy(Bucket=rgw_bucket.name)


@pytest.mark.parametrize("off", [timedelta(hours=1), timedelta(hours=-1)])
def test_a_clock_that_is_wrong_is_told_and_borne(
    rgw_bucket: Bucket, monkeypatch: pytest.MonkeyPatch, off: timedelta
) -> None:
    store = make_store(rgw_bucket)
    store.put("k", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(
            "botocore.auth.get_current_datetime",
            lambda **_: (datetime.now(UTC) + off).replace(tzinfo=None),
        )
        for call in (
            lambda: store.get("k"),
            lambda: store.put("k", b"2"),
            lambda: list(store.scan("")),
        ):
            with pytest.raises(StoreLockedOutError, match="timedatectl set-ntp true"):
                call()
    assert store.get("k").data == b"1"


# What arrives otherwise than it was sent


class Garbling:
    """A client of boto3's on whose way to the server the last byte of each content is changed."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        return partial(self._call, operation)

    def _call(self, operation: str, **fields: Any) -> Any:
        if "Body" in fields:
            fields["Body"] = bytes(fields["Body"])[:-1] + b"?"
        return getattr(self._client, operation)(**fields)


def test_an_upload_in_parts_can_be_made_to_replace_nothing(rgw_bucket: Bucket) -> None:
    client, name = rgw_bucket.client(), {"Bucket": rgw_bucket.name, "Key": "k"}

    def complete() -> None:
        upload = client.create_multipart_upload(**name)["UploadId"]
        part = client.upload_part(**name, UploadId=upload, PartNumber=1, Body=b"x")
        parts = [{"PartNumber": 1, "ETag": part["ETag"]}]
        client.complete_multipart_upload(
            **name, UploadId=upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
        )

    complete()
    with pytest.raises(ClientError, match="PreconditionFailed"):
        complete()


@pytest.mark.parametrize("size", [5, 20 * MEGABYTE])
def test_what_arrives_changed_makes_no_object(rgw_bucket: Bucket, size: int) -> None:
    access = Access(rgw_bucket.endpoint, rgw_bucket.region)
    store = S3Store(
        rgw_bucket.url, access, connect=lambda access, tries: Garbling(connect(access, tries))
    )
    old = make_store(rgw_bucket).put("k", b"old")
    writes: list[Callable[[], object]] = [lambda: store.upload("k", lambda: [b"x" * size])]
    if size < MEGABYTE:
        writes += [lambda: store.put("k", b"x" * size, if_match=old)]
    for write in writes:
        with pytest.raises(StoreUnavailableError):
            write()
    assert store.get("k").data == b"old"
    assert "Uploads" not in rgw_bucket.client().list_multipart_uploads(Bucket=rgw_bucket.name)


# A server without conditional writes


@pytest.fixture
def swift_bucket(swift_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name, value in {**swift_s3.env, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    made = Bucket(Moto(swift_s3.endpoint).name(), swift_s3.endpoint, "us-east-1")
    connect(Access(made.endpoint, made.region), 3).create_bucket(Bucket=made.name)
    return made


@pytest.mark.parametrize("command", ["agent", "sweep", "submit"])
def test_a_server_without_conditional_writes_is_refused(
    tmp_path: Path, swift_bucket: Bucket, command: str
) -> None:
    argv = ("submit", "-") if command == "submit" else (command,)
    (line,) = cli_for(tmp_path, swift_bucket)(*argv, code=1, stdin=HELLO).stderr.splitlines()
    assert line.startswith(f"simagent: {swift_bucket.url} at {swift_bucket.endpoint}: ")
    assert "has no conditional writes (If-None-Match, If-Match)" in line
    assert "use a store that has them" in line


def test_doctor_tells_that_a_server_has_no_conditional_writes(
    tmp_path: Path, swift_bucket: Bucket
) -> None:
    done = cli_for(tmp_path, swift_bucket)("doctor", code=1)
    (line,) = (line for line in done.stdout.splitlines() if " store " in line)
    assert line.startswith("missing")
    assert "has no conditional writes" in line


def test_nothing_is_written_where_conditions_are_missing(swift_bucket: Bucket) -> None:
    access = Access(swift_bucket.endpoint, swift_bucket.region)
    store = S3Store(swift_bucket.url, access, prove=True)
    with pytest.raises(StoreRefusedError, match="no conditional writes"):
        store.put("k", b"", if_absent=True)
    assert list(store.scan("")) == []
