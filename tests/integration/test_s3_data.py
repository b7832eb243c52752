"""What goes to S3 and comes from it: verified as cheaply as the server allows, whatever its etags
are, with credentials that are renewed in time."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest

from fakes.certificates import certificate, serving
from fakes.clock import FakeClock
from fakes.s3 import Bucket
from fakes.sqs_answers import SqsAnswers
from simagent.config_load import load_config
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Outputs
from simagent.domain.state import Output
from simagent.engines import open_queue, open_store
from simagent.ports.clock import SystemClock
from simagent.ports.queue import QueueError, QueueRefusedError, QueueUnavailableError
from simagent.ports.store import PreconditionError, Store, StoreError
from simagent.queues.sqs import SqsQueue
from simagent.stores.s3 import S3Store
from simagent.stores.s3_calls import Access
from simagent.transfer.download import Place, download, once
from simagent.transfer.outputs import EMPTY, select
from simagent.transfer.publishing import upload_outputs

KEYS = TaskKeys("default", "T1").attempt(1)
MEGABYTE = 1 << 20
Layout = Literal["archive", "files"]
both = pytest.mark.parametrize("layout", ["archive", "files"])


class Recorder:
    """A client of boto3's that records its calls; `change` may see what goes and what comes."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def call(**fields: Any) -> Any:
            self.calls.append((operation, fields))
            return self.answer(operation, fields)

        return call

    def answer(self, operation: str, fields: dict[str, Any]) -> Any:
        return getattr(self._client, operation)(**fields)

    def count(self, operation: str) -> int:
        return sum(name == operation for name, _ in self.calls)


def opened(bucket: Bucket, client: Recorder, **access: Any) -> S3Store:
    where = Access(bucket.endpoint, bucket.region, **access)
    return S3Store(bucket.url, where, prove=True, connect=lambda access, tries: client)


def publish(store: Store, root: Path, layout: Layout) -> Output:
    return upload_outputs(
        store, KEYS, select(root, EMPTY, Outputs()), {}, epoch=1, threads=2,
        retry=once, clock=FakeClock(), layout=layout,
    ).output  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "made" / "run").mkdir(parents=True)
    (tmp_path / "made" / "big").write_bytes(os.urandom(20 * MEGABYTE))
    (tmp_path / "made" / "run" / "été ✓ 1.csv").write_text("1,2\n")
    (tmp_path / "made" / "none").write_text("")
    return tmp_path / "made"


def check(store: Store, output: Output, root: Path, target: Path) -> None:
    paths = download(store, output, ["**"], Place(target))
    names = sorted(str(path.relative_to(target)) for path in paths)
    assert names == ["big", "none", "run/été ✓ 1.csv"]
    for name in names:
        assert (target / name).read_bytes() == (root / name).read_bytes()


@both
def test_outputs_come_back_as_they_went(
    any_bucket: Bucket, root: Path, tmp_path: Path, layout: Layout
) -> None:
    store = opened(any_bucket, Recorder(any_bucket.client()))
    store.prove()
    check(store, publish(store, root, layout), root, tmp_path / "got")


NAMES = ["two\nlines", "tab\tand \x01", "%41+&?#=", "back\\slash", "~", "'\"<>", "日本/x/日"]


def test_odd_names_come_back_as_they_went(rgw_bucket: Bucket, tmp_path: Path) -> None:
    root = tmp_path / "made"
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    store = opened(rgw_bucket, Recorder(rgw_bucket.client()))
    output = publish(store, root, "files")
    download(store, output, ["**"], Place(tmp_path / "got"))
    for name in NAMES:
        assert (tmp_path / "got" / name).read_text() == name
    for entry in list(store.scan("")):
        store.delete(entry.key)
    assert list(store.scan("")) == []


@both
def test_a_server_that_compares_checksums_is_not_read_again(
    rgw_bucket: Bucket, root: Path, layout: Layout
) -> None:
    client = Recorder(rgw_bucket.client())
    store = opened(rgw_bucket, client)
    store.prove()
    client.calls.clear()
    assert publish(store, root, layout).files == 3
    assert client.count("get_object") == 1  # whether there was a manifest already
    assert client.count("upload_part") == 3


@both
def test_a_server_that_ignores_checksums_is_read_again(
    bucket: Bucket, root: Path, layout: Layout
) -> None:
    class Careless(Recorder):
        """Its server would take anything."""

        def answer(self, operation: str, fields: dict[str, Any]) -> Any:
            without = {k: v for k, v in fields.items() if not k.startswith("Checksum")}
            if "MultipartUpload" in without:
                parts = without["MultipartUpload"]["Parts"]
                plain = [{"ETag": p["ETag"], "PartNumber": p["PartNumber"]} for p in parts]
                without["MultipartUpload"] = {"Parts": plain}
            return super().answer(operation, without)

    client = Careless(bucket.client())
    store = opened(bucket, client)
    store.prove()
    assert not store.upload("x", lambda: [b"x"]).checked
    client.calls.clear()
    publish(store, root, layout)
    assert client.count("get_object") > 1


class Opaque(Recorder):
    """As with SSE-KMS, no etag is the checksum of anything."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self._real: dict[str, str] = {}

    def answer(self, operation: str, fields: dict[str, Any]) -> Any:
        if "IfMatch" in fields:
            fields = fields | {"IfMatch": self._real.get(fields["IfMatch"], '"none"')}
        if "MultipartUpload" in fields:
            parts = fields["MultipartUpload"]["Parts"]
            real = [part | {"ETag": self._real[part["ETag"]]} for part in parts]
            fields = fields | {"MultipartUpload": {"Parts": real}}
        answer = super().answer(operation, fields)
        for part in (answer, *answer.get("Contents", ())):
            if "ETag" in part:
                part["ETag"] = self._hide(part["ETag"])
        return answer

    def _hide(self, etag: str) -> str:
        hidden = f'"{hashlib.sha256(etag.encode()).hexdigest()[:32]}"'
        self._real[hidden] = etag
        return hidden


@both
def test_an_etag_may_be_anything(
    bucket: Bucket, root: Path, tmp_path: Path, layout: Layout
) -> None:
    client = Opaque(bucket.client())
    key = "arn:aws:kms:eu-west-1:123456789012:key/1"
    store = opened(bucket, client, kms_key=key)
    first = store.put("k", b"1", if_absent=True)
    store.put("k", b"2", if_match=first)
    with pytest.raises(PreconditionError):
        store.put("k", b"3", if_match=first)
    check(store, publish(store, root, layout), root, tmp_path / "got")
    makes = ("put_object", "create_multipart_upload")
    made = [fields for operation, fields in client.calls if operation in makes]
    assert made
    assert {(f["ServerSideEncryption"], f["SSEKMSKeyId"]) for f in made} == {("aws:kms", key)}


# Credentials that do not last


@dataclass
class Role:
    """Gives out credentials as the metadata service of a machine does, and is S3 and SQS, too.

    ``lasts`` is for how long each is good, in seconds. ``used`` has the key of each call.
    """

    lasts: float
    given: int = 0
    down: bool = False
    used: list[str] = field(default_factory=list)
    endpoint: str = ""

    def credentials(self) -> bytes:
        self.given += 1
        until = datetime.now(UTC) + timedelta(seconds=self.lasts)
        given = {"AccessKeyId": f"KEY{self.given}", "SecretAccessKey": "s", "Token": "t"}
        return json.dumps(given | {"Expiration": until.isoformat()}).encode()


@pytest.fixture
def role(monkeypatch: pytest.MonkeyPatch) -> Iterator[Role]:
    role = Role(lasts=3600)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = 404, b"<Error><Code>NoSuchKey</Code></Error>"
            if self.path == "/role":
                status, body = (500, b"") if role.down else (200, role.credentials())
            elif found := re.search("Credential=(KEY[0-9]+)/", self.headers["Authorization"]):
                role.used.append(found[1])
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = answer

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    role.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{role.endpoint}/role")
    yield role
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["store", "lease", "queue"])
def call(request: pytest.FixtureRequest, role: Role, tmp_path: Path) -> Callable[[], None]:
    """Make a call by the agent's client of that name."""
    config = load_config(
        None, state_dir=tmp_path, store="s3://box/x", queue="sqs://q", s3_endpoint=role.endpoint,
        s3_region="eu-west-1", sqs_endpoint=role.endpoint, sqs_region="eu-west-1",
    )  # fmt: skip
    if request.param == "queue":
        queue = open_queue(config, "default")

        def receive() -> None:
            with pytest.raises(QueueError):
                queue.send("x")

        return receive
    store = open_store(config, lease=request.param == "lease")

    def get() -> None:
        with pytest.raises(StoreError):
            store.get("k")

    return get


def test_credentials_that_last_are_kept(role: Role, call: Callable[[], None]) -> None:
    call()
    call()
    assert set(role.used) == {"KEY1"}
    assert role.given == 1


def test_credentials_are_renewed_minutes_before_they_expire(
    role: Role, call: Callable[[], None]
) -> None:
    role.lasts = 14 * 60
    call()
    used, given = len(role.used), role.given
    role.lasts = 3600
    call()
    call()
    assert set(role.used[used:]) == {f"KEY{given + 1}"}
    assert role.given == given + 1


def test_what_gives_credentials_may_be_away_for_minutes(
    role: Role, call: Callable[[], None]
) -> None:
    role.lasts = 14 * 60
    call()
    used, given = len(role.used), role.given
    role.down = True
    call()
    assert set(role.used[used:]) == {f"KEY{given}"}


# A CA of one's own, for the queue


@pytest.mark.usefixtures("aws_credentials")
def test_with_its_ca_sqs_is_trusted(tmp_path: Path) -> None:
    file = certificate(tmp_path, "localhost")
    with SqsAnswers(tls=serving(file)) as server:

        def queue(ca_bundle: Path | None) -> SqsQueue:
            where = {"region": "eu-west-1", "endpoint": server.endpoint}
            return SqsQueue("q", "default", SystemClock(), ca_bundle=ca_bundle, **where)

        with pytest.raises(QueueUnavailableError, match="sqs_ca_bundle"):
            queue(None).find()
        queue(file).find()
        with pytest.raises(QueueRefusedError, match="sqs_ca_bundle: there is no file"):
            queue(tmp_path / "nothing")
