"""A store in S3: what it refuses in which words, what it does under faults, and a whole task."""

import hashlib
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from botocore import exceptions as boto

from fakes.aws import Moto
from fakes.cli import Cli
from fakes.rig import Rig
from fakes.s3 import Bucket, make_store
from simagent.config import Config
from simagent.domain.state import Status
from simagent.engines import open_store
from simagent.ports.store import (
    NoSpaceError,
    NotFoundError,
    PreconditionError,
    StoreError,
    StoreLockedOutError,
    StoreRefusedError,
    StoreUnavailableError,
)
from simagent.stores.s3 import S3Store
from simagent.stores.s3_calls import Access, connect
from simagent.stores.s3_upload import FIRST_PART, parts_of

MEGABYTE = 1 << 20
PLACE = "s3://box/pre"


def answered(operation: str, status: int, code: str, said: str = "said so") -> Exception:
    answer: Any = {
        "Error": {"Code": code, "Message": said},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error: Exception = boto.ClientError(answer, operation)
    return error


class Client:
    """A client of boto3's before which some calls fail; ``after`` the server did what it should."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.faults: dict[str, list[Exception | None]] = {}
        self.after = False
        self.calls: list[str] = []

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def call(**fields: Any) -> Any:
            self.calls.append(operation)
            waiting = self.faults.get(operation)
            fault = waiting.pop(0) if waiting else None
            if fault is not None and not self.after:
                raise fault
            answer = getattr(self._client, operation)(**fields)
            if fault is not None:
                raise fault
            return answer

        return call


@pytest.fixture
def faulty(bucket: Bucket) -> Client:
    return Client(bucket.client())


@pytest.fixture
def store(bucket: Bucket, faulty: Client) -> S3Store:
    access = Access(bucket.endpoint, bucket.region)
    return S3Store(bucket.url, access, connect=lambda access, tries: faulty)


def failing(error: Exception) -> S3Store:
    """A store each call of which fails."""

    class Broken:
        def __getattr__(self, operation: str) -> Callable[..., Any]:
            def call(**fields: Any) -> Any:
                raise error

            return call

    return S3Store(PLACE, Access(), connect=lambda access, tries: Broken())


# What the server says, in the port's words


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (403, "AccessDenied", StoreRefusedError, "s3:PutObject on arn:aws:s3:::box/pre/k is not"),
        (404, "NoSuchBucket", StoreRefusedError, "there is no bucket box: create it"),
        (403, "InvalidAccessKeyId", StoreRefusedError, "does not take the credentials"),
        (403, "SignatureDoesNotMatch", StoreRefusedError, "does not take the credentials"),
        (301, "PermanentRedirect", StoreRefusedError, "set s3_region"),
        (400, "AuthorizationHeaderMalformed", StoreRefusedError, "set s3_region"),
        (400, "KMS.ThrottlingException", StoreUnavailableError, "said so"),
        (400, "KMS.NotFoundException", StoreRefusedError, "KMS.NotFoundException"),
        (403, "RequestTimeTooSkewed", StoreLockedOutError, "timedatectl set-ntp true"),
        (400, "ExpiredToken", StoreLockedOutError, "have expired: renew them"),
        (503, "SlowDown", StoreUnavailableError, "said so"),
        (500, "InternalError", StoreUnavailableError, "said so"),
        (400, "RequestTimeout", StoreUnavailableError, "said so"),
        (400, "BadDigest", StoreUnavailableError, "said so"),
        (400, "InvalidPart", StoreUnavailableError, "said so"),
        (400, "MalformedXML", StoreUnavailableError, "said so"),
        (507, "XMinioStorageFull", NoSpaceError, "is full"),
    ],
)
def test_an_answer_is_classified(
    status: int, code: str, kind: type[StoreError], words: str
) -> None:
    with pytest.raises(kind) as raised:
        failing(answered("PutObject", status, code)).put("k", b"")
    assert words in str(raised.value)
    assert str(raised.value).startswith(PLACE)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (412, "PreconditionFailed", PreconditionError),
        (409, "ConditionalRequestConflict", PreconditionError),
        (404, "NoSuchKey", PreconditionError),
        (501, "NotImplemented", StoreRefusedError),
        (404, "NoSuchBucket", StoreRefusedError),
        (503, "SlowDown", StoreUnavailableError),
    ],
)
def test_an_answer_to_a_conditional_write_is_classified(
    status: int, code: str, kind: type[StoreError]
) -> None:
    with pytest.raises(kind):
        failing(answered("PutObject", status, code)).put("k", b"", if_match='"1"')


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (boto.NoCredentialsError(), StoreLockedOutError, "no credentials found"),
        (boto.ReadTimeoutError(endpoint_url="x"), StoreUnavailableError, "does not answer"),
        (boto.ConnectTimeoutError(endpoint_url="x"), StoreUnavailableError, "does not answer"),
        (boto.ConnectionClosedError(endpoint_url="x"), StoreUnavailableError, "does not answer"),
        (boto.SSLError(endpoint_url="x", error="y"), StoreUnavailableError, "s3_ca_bundle"),
        (boto.ProfileNotFound(profile="x"), StoreRefusedError, "profile (x)"),
    ],
)
def test_what_gets_no_answer_is_classified(
    error: Exception, kind: type[StoreError], words: str
) -> None:
    with pytest.raises(kind, match=PLACE) as raised:
        failing(error).get("k")
    assert words in str(raised.value)


def test_nothing_is_concluded_of_objects_where_the_bucket_is_gone(
    bucket: Bucket, store: S3Store
) -> None:
    with pytest.raises(NotFoundError):
        store.head("k")
    bucket.client().delete_bucket(Bucket=bucket.name)
    for call in (
        lambda: store.head("k"),
        lambda: store.get("k"),
        lambda: store.put("k", b""),
        lambda: store.delete("k"),
        lambda: list(store.scan("")),
        lambda: store.open("k").__enter__(),
        lambda: store.upload("k", lambda: [b""]),
    ):
        with pytest.raises(StoreRefusedError, match="there is no bucket"):
            call()


@pytest.mark.parametrize(
    "code",
    # They may have been changed where they lie.
    ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"],
)
def test_credentials_are_looked_for_anew_once_they_are_not_taken(bucket: Bucket, code: str) -> None:
    made: list[Client] = []

    def renewed(access: Access, tries: int) -> Client:
        made.append(Client(connect(access, tries)))
        if len(made) == 1:
            made[0].faults["put_object"] = [answered("PutObject", 403, code)]
        return made[-1]

    store = S3Store(bucket.url, Access(bucket.endpoint, bucket.region), connect=renewed)
    with pytest.raises(StoreError, match="credentials"):
        store.put("k", b"")
    store.put("k", b"")
    assert len(made) == 2


def test_a_key_that_is_too_long_is_refused(store: S3Store) -> None:
    with pytest.raises(StoreRefusedError, match="1024 bytes"):
        store.put("x" * 1020, b"")


# Conditions


class Careless:
    """A client of a server that ignores one of the conditions."""

    def __init__(self, client: Any, condition: str) -> None:
        self._client, self._condition = client, condition

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def call(**fields: Any) -> Any:
            fields.pop(self._condition, None)
            return getattr(self._client, operation)(**fields)

        return call


@pytest.mark.parametrize("condition", ["IfNoneMatch", "IfMatch"])
def test_a_server_that_ignores_conditions_is_found_out(bucket: Bucket, condition: str) -> None:
    careless = Careless(bucket.client(), condition)
    access = Access(bucket.endpoint, bucket.region)
    store = S3Store(bucket.url, access, prove=True, connect=lambda access, tries: careless)
    for call in (store.prove, lambda: store.put("k", b"", if_absent=True)):
        with pytest.raises(StoreRefusedError, match="no conditional writes"):
            call()
    assert list(store.scan("")) == []


def test_the_proof_leaves_nothing_and_is_made_once(bucket: Bucket, faulty: Client) -> None:
    access = Access(bucket.endpoint, bucket.region)
    store = S3Store(bucket.url, access, prove=True, connect=lambda access, tries: faulty)
    store.put("k", b"1", if_absent=True)
    proof = len(faulty.calls)
    assert [entry.key for entry in store.scan("")] == ["k"]
    store.put("k", b"2", if_match=store.get("k").etag)
    assert len(faulty.calls) == proof + 3


def test_an_outage_delays_the_proof(bucket: Bucket, faulty: Client) -> None:
    access = Access(bucket.endpoint, bucket.region)
    store = S3Store(bucket.url, access, prove=True, connect=lambda access, tries: faulty)
    faulty.faults["put_object"] = [boto.ReadTimeoutError(endpoint_url="x")]
    with pytest.raises(StoreUnavailableError):
        store.prove()
    store.put("k", b"", if_absent=True)
    assert faulty.calls.count("put_object") == 7


def test_a_conditional_write_is_sent_once(store: S3Store, faulty: Client) -> None:
    faulty.faults["put_object"] = [boto.ReadTimeoutError(endpoint_url="x")]
    with pytest.raises(StoreUnavailableError):
        store.put("k", b"", if_absent=True)
    assert faulty.calls == ["put_object"]


# Large objects


def stream(megabytes: int) -> Iterator[bytes]:
    for number in range(megabytes):
        yield hashlib.sha256(b"%d" % number).digest() * (MEGABYTE // 32)


def uploads(bucket: Bucket) -> list[Any]:
    found: list[Any] = bucket.client().list_multipart_uploads(Bucket=bucket.name).get("Uploads", [])
    return found


def test_a_failed_part_leaves_no_upload_behind(
    bucket: Bucket, store: S3Store, faulty: Client
) -> None:
    faulty.faults["upload_part"] = [answered("UploadPart", 403, "AccessDenied")]
    with pytest.raises(StoreRefusedError, match="s3:PutObject"):
        store.upload("big", lambda: stream(24))
    assert uploads(bucket) == []
    assert list(store.scan("")) == []


def test_a_source_that_fails_late_leaves_no_upload_behind(bucket: Bucket, store: S3Store) -> None:
    error = RuntimeError("stop")

    def body() -> Iterator[bytes]:
        yield from stream(40)
        raise error

    with pytest.raises(RuntimeError) as raised:
        store.upload("big", body)
    assert raised.value is error
    assert uploads(bucket) == []
    assert list(store.scan("")) == []


@pytest.mark.parametrize("applied", [True, False])
def test_a_lost_answer_at_the_end_of_an_upload_is_looked_for(
    bucket: Bucket, store: S3Store, faulty: Client, applied: bool
) -> None:
    store.put("big", b"old")
    faulty.faults["complete_multipart_upload"] = [boto.ReadTimeoutError(endpoint_url="x")]
    faulty.after = applied
    with nullcontext() if applied else pytest.raises(StoreUnavailableError):
        assert store.upload("big", lambda: stream(9)) == store.head("big")
    assert store.head("big").size == (9 * MEGABYTE if applied else 3)
    assert uploads(bucket) == []


def test_small_objects_go_without_being_asked_for(bucket: Bucket) -> None:
    access, asked = Access(bucket.endpoint, bucket.region), list[bool]()
    client = connect(access, 1)
    client.meta.events.register(
        "before-send.s3", lambda request, **_: asked.append("Expect" in request.headers)
    )
    store = S3Store(bucket.url, access, connect=lambda access, tries: client)
    for data in (b"", b"1", b"1" * 60_000, b"1" * MEGABYTE):
        store.put("k", data)
        assert store.get("k").data == data
    assert asked[::2][1:] == [False, False, True]


def test_memory_is_bounded_however_long_the_stream(bucket: Bucket) -> None:
    store = make_store(bucket)
    store.put("warm", b"")
    tracemalloc.start()
    try:
        store.upload("big", lambda: stream(128))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert store.head("big").size == 128 * MEGABYTE
    assert peak < 80 * MEGABYTE


def test_parts_grow_so_that_they_reach() -> None:
    sizes = [len(part) for part in parts_of((b"x" * 7 for _ in range(6000)), first=10)]
    assert sizes[:1000] == [10] * 1000
    assert sizes[1000:2000] == [20] * 1000
    assert sum(sizes) == 42_000
    assert FIRST_PART * 1000 * (2**10 - 1) > 5 * 2**40  # what S3 takes at most


def test_a_body_that_is_cut_off_is_no_end(
    store: S3Store, faulty: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut:
        def read(self, count: int | None = None) -> bytes:
            raise boto.IncompleteReadError(actual_bytes=1, expected_bytes=2)

        def close(self) -> None:
            pass

    def get_object(**fields: Any) -> Any:
        return {"Body": Cut(), "ETag": '"1"'}

    monkeypatch.setattr(faulty, "get_object", get_object, raising=False)
    with pytest.raises(StoreUnavailableError):
        store.get("k")
    with pytest.raises(StoreUnavailableError), store.open("k") as opened:
        opened.read()


def test_objects_of_others_with_odd_names_are_passed_over(bucket: Bucket, store: S3Store) -> None:
    store.put("a/k", b"")
    for odd in ("a/prefix/", "a/prefix/a/", "a/prefix/a//b"):
        bucket.client().put_object(Bucket=bucket.name, Key=odd)
    assert [entry.key for entry in store.scan("")] == ["a/k"]
    assert [entry.key for entry in store.scan("", limit=1)] == ["a/k"]


def test_a_listing_goes_over_many_pages(store: S3Store, faulty: Client) -> None:
    names = [f"n/{number:04d}" for number in range(1005)]
    for name in names:
        store.put(name, b"")
    assert [entry.key for entry in store.scan("n/")] == names
    assert faulty.calls.count("list_objects_v2") == 2


# Whole tasks


class FleetRig(Rig):
    """Agents and a client with their store in a bucket."""

    def __init__(self, folder: Path, bucket: Bucket, **fields: Any) -> None:
        self._fields = {
            "store": bucket.url,
            "s3_endpoint": bucket.endpoint,
            "s3_region": bucket.region,
            **fields,
        }
        super().__init__(folder)

    def config(self, name: str = "state") -> Config:
        return super().config(name).model_copy(update=self._fields)


def test_a_task_runs_with_its_store_in_s3(tmp_path: Path, bucket: Bucket) -> None:
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "in.txt").write_text("given\n")
    rig = FleetRig(tmp_path, bucket, allow_process=True)
    with rig.agent():
        task = rig.submit(
            {"run": "cat in.txt; echo made > out.txt", "shell": True}, inputs=["inputs/"]
        )
        assert rig.finish(task, 60).status == Status.SUCCEEDED
    assert rig.log(task) == b"given\n"
    rig.client.download(task, [], tmp_path / "got")
    assert (tmp_path / "got" / "out.txt").read_text() == "made\n"
    assert (tmp_path / "got" / "stdout.txt").read_text() == "given\n"


def test_outputs_of_a_task_are_single_files_in_s3(tmp_path: Path, any_bucket: Bucket) -> None:
    rig = FleetRig(tmp_path, any_bucket, allow_process=True)
    command = {"run": "mkdir run; echo made > run/out.txt; seq 3", "shell": True}
    with rig.agent():
        first = rig.submit(command, outputs={"layout": "files"})
        output = rig.finish(first, 60).output
        second = rig.submit("cat run/out.txt", inputs=[f"task://{first.id}/run/*"])
        assert rig.finish(second, 60).status == Status.SUCCEEDED
    assert output is not None
    store = open_store(rig.config())
    names = [entry.key.removeprefix(output.folder) for entry in store.scan(output.folder)]
    assert names == ["run/out.txt", "stderr.txt", "stdout.txt", "system_metrics.csv"]
    assert store.get(f"{output.folder}run/out.txt").data == b"made\n"
    assert rig.log(second) == b"made\n"
    rig.client.download(first, ["run/"], tmp_path / "got")
    assert (tmp_path / "got" / "run" / "out.txt").read_text() == "made\n"
    assert b"".join(rig.client.files(first).tail("stdout.txt", lines=2, follow=False)) == b"2\n3\n"
    rig.client.delete(first)
    assert list(store.scan(output.folder)) == []


def test_programs_of_the_machine_are_not_run_for_a_fleet_unasked(
    tmp_path: Path, bucket: Bucket
) -> None:
    rig = FleetRig(tmp_path, bucket)
    assert not rig.config().process_allowed
    assert Rig(tmp_path).config().process_allowed
    with rig.agent() as agent:
        assert not agent._ctx.settings.allow_process
        assert not agent._ctx.settings.allow_file_inputs


# What the user sees


def cli_for(folder: Path, bucket: Bucket, **change: str) -> Cli:
    cli = Cli(folder)
    cli.env |= {
        "SIMAGENT_STORE": bucket.url,
        "SIMAGENT_S3_ENDPOINT": bucket.endpoint,
        "SIMAGENT_S3_REGION": bucket.region or "",
        **change,
    }
    return cli


def test_doctor_tries_the_conditions(tmp_path: Path, bucket: Bucket) -> None:
    cli = cli_for(tmp_path, bucket, SIMAGENT_ALLOW_PROCESS="true")
    assert f"{bucket.url}: compare-and-swap tried" in cli("doctor").stdout


def test_doctor_tells_of_a_server_that_is_not_there(tmp_path: Path, bucket: Bucket) -> None:
    cli = cli_for(tmp_path, bucket, SIMAGENT_S3_ENDPOINT="http://127.0.0.1:9")
    (line,) = (line for line in cli("doctor", code=1).stdout.splitlines() if " store " in line)
    assert line.startswith("missing")
    assert "does not answer" in line


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"SIMAGENT_STORE": "s3://not-there-at-all/x"}, "there is no bucket not-there-at-all"),
        ({"AWS_ACCESS_KEY_ID": ""}, "no credentials found"),
        ({"AWS_PROFILE": "nobodys"}, "profile (nobodys)"),
        ({"SIMAGENT_S3_CA_BUNDLE": "/no/such.pem"}, "s3_ca_bundle: there is no file /no/such.pem"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_clear_line(
    tmp_path: Path, bucket: Bucket, change: dict[str, str], line: str
) -> None:
    said = cli_for(tmp_path, bucket, **change)("list", code=1).stderr
    assert line in said
    assert len(said.splitlines()) == 1


def test_the_store_is_opened_as_configured(tmp_path: Path, bucket: Bucket) -> None:
    config = FleetRig(tmp_path, bucket).config()
    open_store(config, prove=True).put("k", b"x")
    assert make_store(bucket).get("k").data == b"x"


def test_an_agent_does_not_start_without_its_bucket(tmp_path: Path, moto: Moto) -> None:
    bucket = Bucket(moto.name(), moto.endpoint, moto.region)
    rig = FleetRig(tmp_path, bucket)
    with pytest.raises(StoreRefusedError, match="there is no bucket"), rig.agent():
        pass


@pytest.mark.parametrize("passed", [0, 2], ids=["the first", "the second"])
def test_a_conflict_while_conditions_are_tried_passes(
    bucket: Bucket, faulty: Client, passed: int
) -> None:
    """Each write of the two that have to win: it ended the agent that met it at its start."""
    conflict = answered("PutObject", 409, "ConditionalRequestConflict")
    faulty.faults["put_object"] = [None] * passed + [conflict]
    access = Access(bucket.endpoint, bucket.region)
    store = S3Store(bucket.url, access, prove=True, connect=lambda access, tries: faulty)
    with pytest.raises(StoreUnavailableError, match="said so"):
        store.prove()
    store.prove()
