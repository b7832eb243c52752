"""Asks registries what a reference means: https://github.com/opencontainers/distribution-spec.

Only what is small is read here, each answer held against its digest; Apptainer fetches the rest.
"""

import hashlib
import ipaddress
import json
import re
import urllib.request
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, LocationValueError

from simagent.domain.images import DEFAULT_REGISTRY, ImageRef
from simagent.domain.reasons import Reason
from simagent.ports.images import ImageError
from simagent.runtimes.registry_auth import Login, LoginError, find_login
from simagent.runtimes.sif import architecture

_HUB = "registry-1.docker.io"
_TIMEOUT = urllib3.Timeout(connect=10, read=30)
_MOST_BYTES = 8 << 20
_MOST_REDIRECTS = 5
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_ACCEPT = ", ".join((*_INDEXES, *_MANIFESTS))
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CHALLENGE = re.compile(r'([A-Za-z_]+)="([^"]*)"')
_WRAPPING = re.compile(r"^.*?object at 0x[0-9a-f]+>: |^[A-Za-z]*\(.*?\): ")
_TRY_AGAIN = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Found:
    """What a reference means now: ``manifest`` is the digest of this machine's variant of it."""

    digest: str
    manifest: str
    size_bytes: int
    labels: Mapping[str, str] = field(default_factory=dict)


class Registry:
    """The registry that an image is in. Every method raises `ImageError`."""

    def __init__(self, ref: ImageRef, insecure: Collection[str] = ()) -> None:
        """Registries of this machine, and those in ``insecure``, are asked without encryption."""
        self._ref = ref
        self.plain = ref.registry in insecure or _is_local(ref.registry)
        host = _HUB if ref.registry == DEFAULT_REGISTRY else ref.registry
        self._base = f"{'http' if self.plain else 'https'}://{host}/v2/{ref.name}"
        self._authorization: str | None = None
        try:
            self.login = find_login(ref.registry)
        except LoginError as error:
            raise ImageError(Reason.IMAGE_DENIED, str(error)) from None
        self._pool = _pool(self._base)

    def logins(self) -> tuple[tuple[str, dict[str, str]], ...]:
        """Give what a file of docker's has to hold for it."""
        return () if self.login is None else ((self._ref.registry, self.login.entry()),)

    def digest(self) -> str:
        """Tell what the tag means now; costs no pull where those are counted."""
        if self._ref.digest:
            return self._ref.digest
        path = f"/manifests/{self._ref.tag}"
        status, headers, _ = self._ask("HEAD", path)
        said = headers.get("Docker-Content-Digest", "")
        if status == 200 and _DIGEST.fullmatch(said):
            return said
        return _sha256(self._get(path))

    def find(self, digest: str) -> Found:
        """Read the manifest of a digest, and which variant of it is for this machine."""
        chosen = digest
        manifest = self._read(f"/manifests/{digest}", digest)
        if "manifests" in manifest:
            chosen = self._choose(manifest)
            manifest = self._read(f"/manifests/{chosen}", chosen)
        try:
            config = str(manifest["config"]["digest"])
            size = sum(int(layer["size"]) for layer in manifest["layers"])
        except (LookupError, TypeError, ValueError):
            raise self._corrupt("it has a manifest of no known kind") from None
        about = self._read(f"/blobs/{config}", config)
        made_for = about.get("architecture")
        if made_for and made_for != architecture():
            raise self._other_platform([str(made_for)])
        labels = (about.get("config") or {}).get("Labels") or {}
        return Found(digest, chosen, size, {str(k): str(v) for k, v in labels.items()})

    def _choose(self, index: Mapping[str, Any]) -> str:
        offered = []
        for entry in index["manifests"]:
            target = entry.get("platform") or {}
            if target.get("os") == "linux":
                if target.get("architecture") == architecture():
                    return str(entry["digest"])
                offered.append(str(target.get("architecture")))
        raise self._other_platform(offered)

    def _other_platform(self, offered: list[str]) -> ImageError:
        kinds = ", ".join(sorted(set(offered))) or "another system"
        return ImageError(
            Reason.IMAGE_PLATFORM, f"{self._ref} is for {kinds}; this machine is {architecture()}"
        )

    def _corrupt(self, why: str) -> ImageError:
        return ImageError(Reason.IMAGE_CORRUPT, f"{self._ref}: {why}: push it again")

    def _read(self, path: str, digest: str) -> dict[str, Any]:
        """Read a small object, and see that it is what its digest says."""
        body = self._get(path)
        if _sha256(body) != digest:
            raise self._corrupt(f"the registry gave {_sha256(body)} for {digest}")
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._corrupt("its manifest cannot be read")
        return found

    def _get(self, path: str) -> bytes:
        status, _, body = self._ask("GET", path)
        if status == 200:
            return body
        if status == 404:
            raise ImageError(Reason.IMAGE_NOT_FOUND, f"{self._ref} is not in the registry")
        raise self._failure(f"it answers {status}", again=status >= 500 or status in _TRY_AGAIN)

    def _failure(self, why: str, *, again: bool = True) -> ImageError:
        return ImageError(
            Reason.IMAGE_PULL,
            f"the registry {self._ref.registry} cannot be asked for {self._ref}: {why}",
            retryable=again,
        )

    def _ask(self, method: str, path: str) -> tuple[int, Mapping[str, str], bytes]:
        answer = self._request(method, self._base + path, self._authorization)
        if answer[0] == 401 and self._authorization is None:
            self._authorize(answer[1].get("WWW-Authenticate", ""))
            answer = self._request(method, self._base + path, self._authorization)
        if answer[0] in (401, 403):
            whose = f"the login of {self.login.user or 'a token'}" if self.login else "no login"
            raise ImageError(
                Reason.IMAGE_DENIED,
                f"{self._ref.registry} refuses {self._ref}, if there is such an image, to {whose}: "
                f"docker login {self._ref.registry} as the agent's user",
            )
        return answer

    def _authorize(self, challenge: str) -> None:
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic":
            self._authorization = self.login.basic if self.login else ""
            return
        asked = dict(_CHALLENGE.findall(rest))
        realm = asked.get("realm", "")
        if kind.lower() != "bearer" or not (realm.startswith("https://") or self.plain):
            why = f"it asks for a login by {kind or 'nothing'} at {realm or '-'}"
            raise self._failure(why, again=False)
        query = {"service": asked.get("service", ""), "client_id": "simagent"}
        query["scope"] = asked.get("scope") or f"repository:{self._ref.name}:pull"
        status, _, body = self._token(realm, query, self.login or Login())
        try:
            answer = json.loads(body) if status == 200 else {}
            token = answer.get("token") or answer.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if token is None and (status >= 500 or status in _TRY_AGAIN):
            raise self._failure(f"{urlsplit(realm).hostname} answers {status}")
        self._authorization = f"Bearer {token}" if token else ""

    def _token(
        self, realm: str, query: dict[str, str], login: Login
    ) -> tuple[int, Mapping[str, str], bytes]:
        if login.token:
            fields = query | {"grant_type": "refresh_token", "refresh_token": login.token}
            return self._request("POST", realm, None, urlencode(fields))
        url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}"
        return self._request("GET", url, login.basic if login.user else None)

    def _request(
        self, method: str, url: str, authorization: str | None, form: str | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        headers = {"User-Agent": "simagent", "Accept": _ACCEPT}
        if authorization:
            headers["Authorization"] = authorization
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        retries = urllib3.Retry(
            total=None, connect=0, read=0, status=0, other=0, redirect=_MOST_REDIRECTS
        )
        try:
            answer = self._pool.request(
                method, url, headers=headers, body=form, retries=retries, preload_content=False
            )
            try:
                body = answer.read(_MOST_BYTES + 1)
            finally:
                answer.close()
        except (HTTPError, LocationValueError, OSError) as error:
            raise self._failure(_said(error)) from error
        if len(body) > _MOST_BYTES:
            raise self._corrupt("its manifest is larger than any can be")
        return answer.status, answer.headers, body


def _is_local(registry: str) -> bool:
    host = urlsplit(f"//{registry}").hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _pool(url: str) -> urllib3.PoolManager:
    """Make a pool that goes by the proxy which the environment names for the URL."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy is None or _is_local(parts.netloc) or urllib.request.proxy_bypass(parts.netloc):
        return urllib3.PoolManager(timeout=_TIMEOUT)
    address = urllib3.util.parse_url(proxy)
    headers = urllib3.make_headers(proxy_basic_auth=address.auth) if address.auth else None
    return urllib3.ProxyManager(proxy, proxy_headers=headers, timeout=_TIMEOUT)


def _sha256(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def _said(error: BaseException) -> str:
    """Say what went wrong on the way, without the library's wrappings."""
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        return _said(reason)
    return re.sub(_WRAPPING, "", str(error)) or repr(error)
