"""Registries that ask for logins, and where those are found."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from simagent.domain.images import parse_image
from simagent.domain.reasons import Reason
from simagent.ports.images import ImageError
from simagent.runtimes.registry import Registry
from simagent.runtimes.registry_auth import Login, LoginError, find_login

MANIFEST = json.dumps({"schemaVersion": 2}).encode()
DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
PAIR = f"Basic {base64.b64encode(b'me:secret').decode()}"


class Guarded:
    """A registry that lets in whoever has a token, which its own server gives to `me`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.status = 200
        self.realm = ""
        guarded = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path, given = self.path, self.headers.get("Authorization", "")
                guarded.asked.append(f"{self.command} {urlsplit(path).path}")
                if path.startswith("/token"):
                    guarded.scope = parse_qs(urlsplit(path).query)["scope"]
                    good = given == PAIR
                    self.answer(200 if good else 401, b'{"token": "t0"}' if good else b"{}")
                elif given != "Bearer t0":
                    self.answer(401, b"", f'Bearer realm="{guarded.realm}",service="here"')
                else:
                    self.answer(guarded.status, MANIFEST)

            def do_POST(self) -> None:
                fields = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                good = fields.get("refresh_token") == ["r0"]
                self.answer(200 if good else 401, b'{"access_token": "t0"}' if good else b"{}")

            do_HEAD = do_GET

            def answer(self, status: int, body: bytes, challenge: str = "") -> None:
                self.send_response(status)
                if challenge:
                    self.send_header("WWW-Authenticate", challenge)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        self.realm = f"http://{self.address}/token"
        self.scope: list[str] = []


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    made = Guarded()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path / "config.json"


def log_in(config: Path, address: str, **entry: str) -> None:
    config.write_text(json.dumps({"auths": {address: entry}}))


def auth(password: str) -> str:
    return base64.b64encode(f"me:{password}".encode()).decode()


def test_a_login_gets_a_token(guarded: Guarded, config: Path) -> None:
    log_in(config, guarded.address, auth=auth("secret"))
    registry = Registry(parse_image(f"{guarded.address}/a/b:1"))
    assert registry.digest() == DIGEST
    assert guarded.scope == ["repository:a/b:pull"]
    assert guarded.asked.count("GET /token") == 1
    assert registry.logins() == ((guarded.address, {"auth": auth("secret")}),)


def test_an_identity_token_gets_others(guarded: Guarded, config: Path) -> None:
    log_in(config, guarded.address, identitytoken="r0")
    registry = Registry(parse_image(f"{guarded.address}/a/b:1"))
    assert registry.digest() == DIGEST
    ((_, entry),) = registry.logins()
    assert entry["identitytoken"] == "r0"


@pytest.mark.parametrize("password", ["wrong", None])
def test_whoever_is_not_let_in_is_told_how(
    guarded: Guarded, config: Path, password: str | None
) -> None:
    if password is not None:
        log_in(config, guarded.address, auth=auth(password))
    with pytest.raises(ImageError) as caught:
        Registry(parse_image(f"{guarded.address}/a/b:1")).digest()
    assert (caught.value.reason, caught.value.retryable) == (Reason.IMAGE_DENIED, False)
    assert f"docker login {guarded.address}" in str(caught.value)
    assert (password or "no login") in str(caught.value) or "the login of me" in str(caught.value)


@pytest.mark.parametrize(
    ("status", "reason", "again"),
    [
        (404, Reason.IMAGE_NOT_FOUND, False),
        (403, Reason.IMAGE_DENIED, False),
        (429, Reason.IMAGE_PULL, True),
        (500, Reason.IMAGE_PULL, True),
        (400, Reason.IMAGE_PULL, False),
    ],
)
def test_each_answer_has_its_reason(
    guarded: Guarded, config: Path, status: int, reason: Reason, again: bool
) -> None:
    log_in(config, guarded.address, auth=auth("secret"))
    guarded.status = status
    with pytest.raises(ImageError) as caught:
        Registry(parse_image(f"{guarded.address}/a/b:1")).digest()
    assert (caught.value.reason, caught.value.retryable) == (reason, again)


def test_a_password_goes_to_no_plain_server_of_an_encrypted_registry(
    guarded: Guarded, config: Path
) -> None:
    log_in(config, "registry.example", auth=auth("secret"))
    registry = Registry(parse_image("registry.example/a:1"))
    with pytest.raises(ImageError, match="asks for a login by Bearer at http://"):
        registry._authorize(f'Bearer realm="{guarded.realm}",service="x"')
    assert guarded.asked == []


def test_only_registries_of_this_machine_and_those_named_are_asked_plainly(config: Path) -> None:
    for name, plain in (
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("[::1]:5000", True),
        ("registry.example", False),
        ("10.0.0.1:5000", True),
        ("localhost.example", False),
    ):
        registry = Registry(parse_image(f"{name}/a:1"), insecure=["10.0.0.1:5000"])
        assert registry.plain is plain, name


def test_logins_are_those_of_docker(config: Path, tmp_path: Path) -> None:
    assert find_login("docker.io", {}) is None
    log_in(config, "https://index.docker.io/v1/", auth=auth("hub"))
    assert find_login("docker.io", {}) == Login("me", "hub")
    assert find_login("registry.example", {}) is None
    env = {"APPTAINER_DOCKER_USERNAME": "you", "APPTAINER_DOCKER_PASSWORD": "own"}
    assert find_login("registry.example", env) == Login("you", "own")
    config.write_text('{"auths": {"registry.example": {"auth": "%%%"}}}')
    with pytest.raises(LoginError, match=r"the docker login for registry\.example cannot be read"):
        find_login("registry.example", {})


def test_helpers_keep_passwords(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        "#!/bin/sh\nread -r name\n"
        'if [ "$name" != registry.example ]; then\n'
        "echo credentials not found in native keychain; exit 1; fi\n"
        'echo \'{"Username": "me", "Secret": "kept"}\'\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    config.write_text('{"credsStore": "test"}')
    assert find_login("registry.example", {}) == Login("me", "kept")
    assert find_login("other.example", {}) is None
