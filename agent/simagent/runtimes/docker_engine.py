"""The connection to a Docker Engine: made when it is first needed, its errors classified."""

import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import docker
import docker.auth
import docker.errors
import requests
from docker.types.daemon import CancellableStream

T = TypeVar("T")

# Of a credential helper that is missing; the error that follows says so, too.
warnings.filterwarnings("ignore", message="docker-credential-")

DEFAULT_HOST = "unix:///var/run/docker.sock"

_CONNECTIONS = 100  # each running container has one
_PING_LIMIT = 5.0  # seconds
_HINTS = (
    ("permission denied", "let the agent's user into the group docker, and start it again"),
    ("no such file", "install or start Docker Engine, or set docker_host"),
    ("connection refused", "is the engine running? (systemctl start docker)"),
    ("bind address", "docker_host or DOCKER_HOST has to be unix:///PATH or tcp://HOST:PORT"),
    ("timed out", "it runs, but does not answer"),
)


class EngineAwayError(Exception):
    """The engine cannot be reached, or did not answer: whether it did what it was asked is open."""


class EngineRefusedError(Exception):
    """The engine answered with an error; ``status`` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class DockerEngine:
    """One Docker Engine, for all threads of the agent.

    ``host`` is as in DOCKER_HOST, which counts where it is None. Calls end after ``timeout``
    seconds, unless they say otherwise.
    """

    def __init__(self, host: str | None = None, *, timeout: float = 30.0) -> None:
        self.host = host or os.environ.get("DOCKER_HOST") or DEFAULT_HOST
        self._timeout = timeout
        self._lock = threading.Lock()
        self._client: Any = None

    def ask(self, call: Callable[[Any], T]) -> T:
        """Give what ``call`` makes of the SDK's client.

        Raises `EngineAwayError` and `EngineRefusedError`.
        """
        try:
            return call(self._connected())
        except docker.errors.APIError as error:
            status = error.status_code or 500
            raise EngineRefusedError(status, _one_line(error.explanation or error)) from error
        except (requests.exceptions.RequestException, OSError, ValueError) as error:
            raise self._away(error) from error

    def find(self, container: str) -> dict[str, Any] | None:
        """Inspect a container; None if there is none. Raises as `ask` does."""
        try:
            found: dict[str, Any] = self.ask(lambda client: client.inspect_container(container))
        except EngineRefusedError as error:
            if error.status == 404:
                return None
            raise
        return found

    def events(
        self, container: str, kinds: Sequence[str], *, since: int, until: int
    ) -> list[dict[str, Any]]:
        """List what happened to a container between two Unix times. Raises as `ask` does.

        Not by the SDK, which would wait for an engine that hangs without an end.
        """
        filters = json.dumps({"container": [container], "event": list(kinds)})
        params = {"since": str(since), "until": str(until), "filters": filters}

        def get(client: Any) -> list[dict[str, Any]]:
            url = f"{client.base_url}/v{client.api_version}/events"
            response = client.get(url, params=params, timeout=self._timeout)
            if response.status_code >= 400:
                raise EngineRefusedError(response.status_code, _error_text(response.text))
            return [json.loads(line) for line in response.text.splitlines() if line]

        return self.ask(get)

    def stream(
        self,
        path: str,
        params: Mapping[str, str],
        *,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        silence: float,
    ) -> "EngineStream":
        """POST something that is answered by JSON lines while it goes on. Raises as `ask` does.

        It fails, also while the lines are read, when the engine is silent for ``silence`` seconds.
        """

        def post(client: Any) -> EngineStream:
            url = f"{client.base_url}/v{client.api_version}{path}"
            response = client.post(
                url, params=params, headers=headers, data=data, stream=True, timeout=silence
            )
            if response.status_code >= 400:
                raise EngineRefusedError(response.status_code, _error_text(response.text))
            return EngineStream(response)

        return self.ask(post)

    def trouble(self) -> str | None:
        """Tell why the engine cannot be used now, None where it can."""

        def ping(client: Any) -> None:
            # By a connection of its own: those there are work on while the engine goes down.
            fresh = self._connect(client.api_version, _PING_LIMIT)
            try:
                fresh.ping()
            finally:
                fresh.close()

        try:
            self.ask(ping)
        except (EngineAwayError, EngineRefusedError) as error:
            return str(error)
        return None

    def version(self) -> dict[str, Any]:
        """Give its version, and for which kind of processor it is. Raises as `ask` does."""
        found: dict[str, Any] = self.ask(lambda client: client.version())
        return found

    def data_folder(self) -> Path:
        """Tell where it keeps images, on its own machine. Raises as `ask` does."""
        return Path(self.ask(lambda client: client.info())["DockerRootDir"])

    def live_restore(self) -> bool:
        """Tell whether containers outlive the engine's daemon. Raises as `ask` does."""
        return bool(self.ask(lambda client: client.info()).get("LiveRestoreEnabled"))

    def login(self, registry: str) -> dict[str, str]:
        """Give the header by which the engine logs in to a registry; empty where there is no login.

        Read from the usual docker config each time. Raises ValueError: it cannot be read, or its
        credential helper fails.
        """
        try:
            found = docker.auth.load_config().resolve_authconfig(registry)
        except (docker.errors.DockerException, OSError) as error:
            raise ValueError(_one_line(error)) from error
        if not found:
            return {}
        header: bytes = docker.auth.encode_header(found)
        return {"X-Registry-Auth": header.decode()}

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                # Its version is asked for: one that is too old is refused by new engines.
                client = self._connect("auto", min(_PING_LIMIT, self._timeout))
                client.timeout = self._timeout
                self._client = client
            return self._client

    def _connect(self, version: str, timeout: float) -> Any:
        settings = docker.utils.kwargs_from_env() if "DOCKER_TLS_VERIFY" in os.environ else {}
        settings |= {"base_url": self.host, "timeout": timeout, "max_pool_size": _CONNECTIONS}
        try:
            client = docker.APIClient(version=version, **settings)
        except docker.errors.APIError:
            raise
        except docker.errors.DockerException as error:
            raise self._away(error) from error
        client.trust_env = False  # a proxy for the internet is none for the engine
        return client

    def _away(self, error: Exception) -> EngineAwayError:
        text = _one_line(error)
        hint = next((hint for sign, hint in _HINTS if sign in text.lower()), text)
        return EngineAwayError(f"the Docker Engine at {self.host} does not answer: {hint}")


class EngineStream:
    """The answer to something that takes long: what happens, one dictionary after the other."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self._closer = CancellableStream(iter(()), response)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield what happens, to the end or until `close`. Raises `EngineAwayError`."""
        try:
            for line in self._response.iter_lines():
                if line:
                    yield json.loads(line)
        except (requests.exceptions.RequestException, OSError, ValueError, AttributeError) as error:
            raise EngineAwayError(f"the Docker Engine broke off: {_one_line(error)}") from error

    def close(self) -> None:
        """Break off, also from another thread: the engine ends what it does."""
        try:
            self._closer.close()
        except (OSError, AttributeError):
            return


def _error_text(body: str) -> str:
    try:
        return _one_line(json.loads(body)["message"])
    except (ValueError, LookupError, TypeError):
        return _one_line(body)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
