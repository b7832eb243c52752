"""What goes wrong between a fleet and its engines: one clear line, and an agent that does right."""

import json
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes.aws import Moto
from fakes.certificates import certificate, serving
from fakes.cli import Cli
from fakes.rig import Rig
from fakes.s3 import Bucket
from fakes.s3_answers import S3Answers
from fakes.sqs_answers import SqsAnswers
from simagent.config_load import load_config
from simagent.ports.queue import QueueError, QueueRefusedError, QueueUnavailableError
from simagent.ports.store import (
    StoreError,
    StoreForbiddenError,
    StoreLockedOutError,
    StoreRefusedError,
    StoreUnavailableError,
)
from simagent.queues.sqs_calls import SqsCalls
from simagent.queues.sqs_setup import create_queue
from simagent.stores.s3 import S3Store
from simagent.stores.s3_calls import Access
from simagent.wiring.agent import open_context
from simagent.worker.identity import alone_on

HOUR = 3600.0

# For the credentials that come with it.
pytestmark = pytest.mark.usefixtures("moto")


def line_of(store: S3Store, kind: type[StoreError]) -> str:
    """Give the line that a write fails with."""
    with pytest.raises(kind) as caught:
        store.put("k", b"")
    line = str(caught.value)
    assert type(caught.value) is kind, line
    assert len(line.splitlines()) == 1
    return line


def box(endpoint: str, **more: Any) -> S3Store:
    return S3Store("s3://box/pre", Access(endpoint, "eu-west-1", **more))


# What S3 answers


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (
            {"code": "PermanentRedirect", "status": 301, "fields": {"Region": "eu-north-1"}},
            *(StoreRefusedError, "the bucket is in eu-north-1: set s3_region to that"),
        ),
        (
            {"code": "IllegalLocationConstraintException", "status": 400},
            *(StoreRefusedError, "the bucket is in another region: set s3_region to that"),
        ),
        (
            {
                "code": "AccessDenied",
                "status": 403,
                "said": "User: arn:aws:iam::1:user/u is not authorized to perform: "
                "kms:GenerateDataKey on resource: arn:aws:kms:eu-west-1:1:key/k because no "
                "identity-based policy allows it",
            },
            *(StoreForbiddenError, "kms:GenerateDataKey on arn:aws:kms:eu-west-1:1:key/k is not"),
        ),
        (
            {"code": "AccessDenied", "status": 403, "said": "Access Denied"},
            *(StoreForbiddenError, "s3:PutObject on arn:aws:s3:::box/pre/k is not allowed"),
        ),
        (
            {"code": "ExpiredToken", "status": 400},
            *(StoreLockedOutError, "the credentials have expired: renew them"),
        ),
        (
            {"code": "InvalidAccessKeyId", "status": 403},
            *(StoreForbiddenError, "does not take the credentials"),
        ),
        ({"code": "SlowDown", "status": 503}, StoreUnavailableError, "s3:PutObject: no"),
        ({"code": "Found", "status": 302}, StoreUnavailableError, "sends each call elsewhere"),
    ],
)
def test_what_s3_answers_is_one_line(
    answer: dict[str, Any], kind: type[StoreError], words: str
) -> None:
    with S3Answers(**answer) as server:
        assert words in line_of(box(server.endpoint), kind)


@pytest.mark.parametrize(
    ("off", "words"),
    [
        (HOUR, r"clock is 36\d\d s behind the server's, set it \(timedatectl set-ntp true\)"),
        (-HOUR, r"clock is 3[56]\d\d s ahead of the server's, set it"),
        (0.0, r"clock is wrong, set it"),
    ],
)
def test_how_far_the_clock_is_off_is_told(off: float, words: str) -> None:
    date = time.time() + off + (60 if off else 0)
    with S3Answers(code="RequestTimeTooSkewed", status=403, date=date) as server:
        line = line_of(box(server.endpoint), StoreLockedOutError)
    assert re.search(words, line), line


def test_a_head_is_asked_again_for_its_reason() -> None:
    """The answer to a HEAD has no body, and a code that says nothing."""
    answers = S3Answers(code="ExpiredToken", status=400)
    with answers as server, pytest.raises(StoreLockedOutError, match="have expired"):
        box(server.endpoint).head("k")


# What keeps S3 from answering


def test_a_name_that_is_not_known_is_told() -> None:
    line = line_of(box("http://nowhere.invalid"), StoreUnavailableError)
    assert "the name nowhere.invalid is not known: check it, and this machine's DNS" in line


def test_a_port_where_nothing_listens_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = line_of(box(f"http://127.0.0.1:{port}"), StoreUnavailableError)
    assert f"nothing listens at 127.0.0.1:{port}: check the address" in line


@pytest.mark.parametrize(
    ("name", "days", "trusted", "words"),
    [
        ("localhost", 1, False, "no trusted CA has signed the certificate of localhost"),
        ("localhost", -1, True, "has expired: renew it, or set this machine's clock"),
        ("elsewhere", 1, True, "the certificate is not for localhost"),
    ],
)
def test_why_a_certificate_is_not_trusted_is_told(
    tmp_path: Path, name: str, days: int, trusted: bool, words: str
) -> None:
    file = certificate(tmp_path, name, days=days)
    with S3Answers(code="AccessDenied", status=403, tls=serving(file)) as server:
        store = box(server.endpoint, **({"ca_bundle": file} if trusted else {}))
        line = line_of(store, StoreUnavailableError)
        assert words in line
        assert ("s3_ca_bundle" in line) is not trusted


def test_with_its_ca_a_server_is_trusted(tmp_path: Path) -> None:
    file = certificate(tmp_path, "localhost")
    with S3Answers(code="AccessDenied", status=403, tls=serving(file)) as server:
        line_of(box(server.endpoint, ca_bundle=file), StoreForbiddenError)


# The same of SQS


@pytest.mark.parametrize(
    ("region", "endpoint", "kind", "words"),
    [
        ("eu-west-1", "http://nowhere.invalid", QueueUnavailableError, "name nowhere.invalid is"),
        ("eu-west-1", "http://127.0.0.1:9", QueueUnavailableError, "nothing listens at 127.0.0.1"),
        ("EU West", None, QueueRefusedError, "EU West"),
    ],
)
def test_why_sqs_is_not_reached_is_one_line(
    region: str, endpoint: str | None, kind: type[QueueError], words: str
) -> None:
    with pytest.raises(kind) as caught:
        SqsCalls(region, endpoint).find("q")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_permission_that_sqs_misses_is_named() -> None:
    said = (
        "User: arn:aws:iam::1:user/u is not authorized to perform: sqs:sendmessage on resource: "
        "arn:aws:sqs:eu-west-1:1:q because no identity-based policy allows the action"
    )
    answers = SqsAnswers(code="AccessDeniedException", said=said, status=403)
    named = r"sqs:sendmessage on arn:aws:sqs:eu-west-1:1:q is not allowed"
    with answers as server, pytest.raises(QueueRefusedError, match=named):
        SqsCalls("eu-west-1", server.endpoint).on_queue("q", "send_message", MessageBody="x")


# What stops an agent when it starts, and what it waits for


@pytest.fixture
def fields(moto: Moto, bucket: Bucket) -> dict[str, str]:
    """The settings of a fleet that has all it needs."""
    name = moto.name("fleet")
    create_queue(f"{name}-default", region=moto.region, endpoint=moto.endpoint)
    return {
        "store": bucket.url,
        "queue": f"sqs://{name}-{{group}}",
        "s3_endpoint": bucket.endpoint,
        "s3_region": bucket.region or "us-east-1",
        "sqs_endpoint": moto.endpoint,
        "sqs_region": moto.region,
    }


def start(folder: Path, fields: Mapping[str, str]) -> None:
    config = load_config(None, state_dir=folder / "state", **fields)
    with alone_on(config.state_dir):
        open_context(config)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"store": "s3://not-there-at-all/x"}, StoreRefusedError, "there is no bucket"),
        ({"queue": "sqs://not-there"}, QueueRefusedError, "does not exist there"),
        ({"sqs_region": "eu-central-1"}, QueueRefusedError, "eu-central-1) does not exist there"),
    ],
)
def test_what_only_people_can_mend_stops_an_agent(
    tmp_path: Path,
    fields: dict[str, str],
    change: dict[str, str],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error) as caught:
        start(tmp_path, fields | change)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("code", "status"),
    [("AccessDenied", 403), ("NotImplemented", 501), ("IllegalLocationConstraintException", 400)],
)
def test_what_s3_refuses_stops_an_agent(
    tmp_path: Path, fields: dict[str, str], code: str, status: int
) -> None:
    with S3Answers(code=code, status=status) as server, pytest.raises(StoreRefusedError):
        start(tmp_path, fields | {"s3_endpoint": server.endpoint})


@pytest.mark.parametrize(
    ("code", "status"),
    [("ExpiredToken", 400), ("RequestTimeTooSkewed", 403), ("SlowDown", 503), ("Found", 302)],
)
def test_what_passes_is_waited_for(
    tmp_path: Path, fields: dict[str, str], code: str, status: int
) -> None:
    with S3Answers(code=code, status=status) as server:
        start(tmp_path, fields | {"s3_endpoint": server.endpoint})


@contextmanager
def without_credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        yield


def test_an_agent_waits_for_the_role_of_its_machine(
    tmp_path: Path, fields: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """At boot there may be no credentials for a minute."""
    rig = Rig(tmp_path, {**fields, "allow_process": "true"})
    task = rig.submit("true")
    with without_credentials(), alone_on(rig.config().state_dir):
        context = open_context(rig.config())
        assert "the store cannot be used yet" in capsys.readouterr().out
        with pytest.raises(StoreUnavailableError, match="no credentials found"):
            context.ledger.state(task)
        with pytest.raises(QueueUnavailableError, match="no AWS credentials found"):
            context.queue.send("x")
    with rig.agent(change=lambda _ctx: context):
        assert rig.finish(task).status == "succeeded"


# Objects that were edited by hand


def test_a_task_whose_spec_was_changed_ends_and_one_whose_state_was_is_left_alone(
    tmp_path: Path, bucket: Bucket, fields: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    rig = Rig(tmp_path, {**fields, "allow_process": "true"})
    changed, broken, sound = (rig.submit("true") for _ in range(3))
    base, s3 = "a/prefix/", bucket.client()
    spec = json.loads(s3.get_object(Bucket=bucket.name, Key=base + changed.spec)["Body"].read())
    spec["commands"] = ["false"]
    s3.put_object(Bucket=bucket.name, Key=base + changed.spec, Body=json.dumps(spec).encode())
    s3.put_object(Bucket=bucket.name, Key=base + broken.state, Body=b"{oh")
    with rig.agent():
        assert rig.finish(sound).status == "succeeded"
        ended = rig.finish(changed)
        assert (ended.status, ended.reason) == ("error", "invalid_spec")
        assert "was changed after the task was submitted" in (ended.message or "")
    assert s3.get_object(Bucket=bucket.name, Key=base + broken.state)["Body"].read() == b"{oh"
    assert f"{broken.state} cannot be read" in capsys.readouterr().out


# What people see


def test_people_are_told_at_once_what_they_have_to_mend(tmp_path: Path, bucket: Bucket) -> None:
    cli = Cli(tmp_path)
    with S3Answers(code="RequestTimeTooSkewed", status=403, date=time.time() + HOUR) as server:
        cli.env |= {"SIMAGENT_STORE": bucket.url, "SIMAGENT_S3_ENDPOINT": server.endpoint}
        began = time.monotonic()
        (line,) = cli("list", code=1).stderr.splitlines()
        assert time.monotonic() - began < 30
        assert "behind the server's" in line
        (found,) = [
            check
            for check in json.loads(cli("doctor", "--json", code=1).stdout)["checks"]
            if check["name"] == "store"
        ]
    assert found["verdict"] == "missing"
    assert "behind the server's" in found["text"]
