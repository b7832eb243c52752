"""IAM in front of moto: says which permission each call needs, and refuses those a policy lacks.

As at AWS a missing object is a 403 for who may not list the bucket. Knows the calls that this
project makes, and fails loudly at any other.
"""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_SETTINGS = {
    "lifecycle": "LifecycleConfiguration",
    "publicAccessBlock": "BucketPublicAccessBlock",
    "encryption": "EncryptionConfiguration",
    "versioning": "BucketVersioning",
}
_KEY = "x-amz-server-side-encryption-aws-kms-key-id"
_OBJECTS = {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject", "DELETE": "DeleteObject"}


@dataclass(frozen=True, slots=True)
class Need:
    """A permission that a call needs; ``prefix`` is that of a listing, None where it has none."""

    action: str
    resource: str
    prefix: str | None = None


class Policy:
    """Judges as IAM does, as far as these policies go."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._statements = document["Statement"]

    def allows(self, need: Need) -> bool:
        return any(self._matching(need))

    def grants(self, need: Need) -> Iterator[tuple[str, str]]:
        """Yield the grants that allow it: the statement's name, and the action."""
        for statement in self._matching(need):
            for action in _listed(statement["Action"]):
                if fnmatchcase(need.action, action):
                    yield statement["Sid"], action

    def all_grants(self) -> set[tuple[str, str]]:
        return {(s["Sid"], action) for s in self._statements for action in _listed(s["Action"])}

    def _matching(self, need: Need) -> Iterator[Mapping[str, Any]]:
        for statement in self._statements:
            assert statement["Effect"] == "Allow"
            named = any(fnmatchcase(need.action, a) for a in _listed(statement["Action"]))
            about = any(fnmatchcase(need.resource, r) for r in _listed(statement["Resource"]))
            if named and about and _holds(statement.get("Condition", {}), need):
                yield statement


def _holds(conditions: Mapping[str, Any], need: Need) -> bool:
    for test, keys in conditions.items():
        assert test == "StringLikeIfExists"
        assert list(keys) == ["s3:prefix"]
        if need.prefix is not None and not any(
            fnmatchcase(need.prefix, pattern) for pattern in _listed(keys["s3:prefix"])
        ):
            return False
    return True


def _listed(value: str | Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


def needs(method: str, target: str, headers: Mapping[str, str], body: bytes) -> list[Need]:
    """Tell the permissions that a call needs: to S3 (by paths), SQS (by JSON), Auto Scaling."""
    operation = headers.get("x-amz-target", "")
    if operation:
        return [_of_sqs(operation.partition(".")[2], json.loads(body), headers)]
    if headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return [_of_scaling(parse_qs(body.decode()))]
    parts = urlsplit(target)
    asked = parse_qs(parts.query, keep_blank_values=True)
    bucket, _, key = unquote(parts.path).removeprefix("/").partition("/")
    arn = f"arn:aws:s3:::{bucket}"
    if not key:
        return [_of_bucket(method, arn, asked)]
    if "uploads" in asked or "uploadId" in asked:
        action = "AbortMultipartUpload" if method == "DELETE" else "PutObject"
        return [Need(f"s3:{action}", f"{arn}/{key}")]
    found = [Need(f"s3:{_OBJECTS[method]}", f"{arn}/{key}")]
    if "if-match" in headers and method == "PUT":
        found.append(Need("s3:GetObject", f"{arn}/{key}"))
    if method == "PUT" and "x-amz-copy-source" in headers:
        found.append(Need("s3:GetObject", f"arn:aws:s3:::{headers['x-amz-copy-source']}"))
    if _KEY in headers:
        found.append(Need("kms:GenerateDataKey", headers[_KEY]))
    return found


def _of_bucket(method: str, arn: str, asked: Mapping[str, list[str]]) -> Need:
    for setting, name in _SETTINGS.items():
        if setting in asked:
            return Need(f"s3:{'Get' if method == 'GET' else 'Put'}{name}", arn)
    if method == "PUT" and not asked:
        return Need("s3:CreateBucket", arn)
    if method == "POST" and "delete" in asked:
        return Need("s3:DeleteObject", f"{arn}/*")
    assert method == "HEAD" or asked.get("list-type") == ["2"], (method, asked)
    return Need("s3:ListBucket", arn, asked.get("prefix", [None])[0])


def _of_sqs(operation: str, asked: Mapping[str, Any], headers: Mapping[str, str]) -> Need:
    name = asked.get("QueueName") or asked["QueueUrl"].rpartition("/")[2]
    # Batches are permitted as what is in them.
    action = operation.removesuffix("Batch")
    region = headers["authorization"].partition("Credential=")[2].split("/")[2]
    return Need(f"sqs:{action}", f"arn:aws:sqs:{region}:123456789012:{name}")


def _of_scaling(asked: Mapping[str, list[str]]) -> Need:
    group = "autoScalingGroup:7b3a:autoScalingGroupName/any"
    (action,) = asked["Action"]
    return Need(f"autoscaling:{action}", f"arn:aws:autoscaling:eu-west-1:123456789012:{group}")


def listing(need: Need) -> Need:
    """What it takes to be told that an object is missing."""
    return Need("s3:ListBucket", need.resource.partition("/")[0])


@dataclass
class Guard:
    """A server that passes on to moto what the policy allows; ``denied`` is what it did not."""

    upstream: str
    policy: Policy
    denied: list[Need] = field(default_factory=list)
    used: set[tuple[str, str]] = field(default_factory=set)
    calls: list[Need] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def __enter__(self) -> "Guard":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def unused(self) -> set[tuple[str, str]]:
        return self.policy.all_grants() - self.used

    def permits(self, found: Sequence[Need]) -> bool:
        self.calls += found
        denied = [need for need in found if not self.policy.allows(need)]
        self.denied += denied
        for need in found:
            self.used |= set(self.policy.grants(need))
        return not denied

    def sees(self, status: int, found: Sequence[Need]) -> int:
        """Tell what is answered: that an object is missing only to who may list the bucket."""
        if status != 404 or found[0].action != "s3:GetObject":
            return status
        return 404 if self.permits([listing(found[0])]) else 403

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        guard = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                body = self._body()
                try:
                    found = needs(
                        self.command,
                        self.path,
                        {n.lower(): v for n, v in self.headers.items()},
                        body,
                    )
                except Exception as error:
                    guard.broken.append(f"{self.command} {self.path}: {error!r}")
                    raise
                with suppress(OSError):  # who asked may have left
                    if guard.permits(found):
                        self._pass_on(found, body)
                    else:
                        self._deny(found)

            def _body(self) -> bytes:
                if self.headers.get("Expect", "").lower() == "100-continue":
                    pass  # the base class has said so
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def _pass_on(self, found: Sequence[Need], body: bytes) -> None:
                at = urlsplit(guard.upstream)
                assert at.hostname
                connection = HTTPConnection(at.hostname, at.port, timeout=60)
                connection.putrequest(
                    self.command, self.path, skip_host=True, skip_accept_encoding=True
                )
                for name, value in self.headers.items():
                    if name.lower() not in ("connection", "expect"):
                        connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                data = answer.read()
                status = guard.sees(answer.status, found)
                if status != answer.status:
                    return self._deny([listing(found[0])])
                key = answer.headers.get(_KEY)
                if self.command == "GET" and key and not guard.permits([Need("kms:Decrypt", key)]):
                    return self._deny([Need("kms:Decrypt", key)])
                self.send_response_only(status)
                length = str(len(data))
                for name, value in answer.getheaders():
                    if name.lower() == "content-length" and self.command == "HEAD":
                        length = value
                    if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                        self.send_header(name, value)
                if status not in (204, 304):
                    self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(data)
                connection.close()
                return None

            def _deny(self, found: Sequence[Need]) -> None:
                need = next((n for n in found if not guard.policy.allows(n)), found[0])
                said = f"User: me is not authorized to perform: {need.action} on {need.resource}"
                if need.action.startswith("sqs:"):
                    told = {"__type": "com.amazonaws.sqs#AccessDeniedException", "message": said}
                    data, kind = json.dumps(told).encode(), "application/x-amz-json-1.0"
                else:
                    error = f"<Error><Code>AccessDenied</Code><Message>{said}</Message></Error>"
                    data, kind = error.encode(), "application/xml"
                self.send_response_only(403)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _any

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
