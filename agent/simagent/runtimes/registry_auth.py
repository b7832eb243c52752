"""Logins at registries, from where docker keeps them: read as docker's own library does."""

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import dataclass


class LoginError(Exception):
    """The configuration cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Login:
    """A user and the password, or a ``token`` to get others by."""

    user: str = ""
    password: str = ""
    token: str = ""

    @property
    def basic(self) -> str:
        """Give the value of a header Authorization."""
        return f"Basic {self._pair()}"

    def entry(self) -> dict[str, str]:
        """Give what stands for it in a file of docker's."""
        entry = {"auth": self._pair()}
        return entry | ({"identitytoken": self.token} if self.token else {})

    def _pair(self) -> str:
        return base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find_login(registry: str, env: Mapping[str, str] = os.environ) -> Login | None:
    """Find the login for a registry; None where there is none. Raises `LoginError`.

    APPTAINER_DOCKER_USERNAME and …_PASSWORD come first, as they do for Apptainer; then the usual
    docker config, with its credential helpers.
    """
    user, password = (env.get(f"APPTAINER_DOCKER_{name}", "") for name in ("USERNAME", "PASSWORD"))
    if user and password:
        return Login(user, password)
    import docker.auth  # noqa: PLC0415 - takes a quarter of a second
    import docker.errors  # noqa: PLC0415

    try:
        found = docker.auth.load_config().resolve_authconfig(registry)
    except (docker.errors.DockerException, OSError, binascii.Error, ValueError) as error:
        raise LoginError(f"the docker login for {registry} cannot be read: {error}") from None
    if not found:
        return None
    if token := found.get("IdentityToken"):
        return Login(token=str(token))
    # It names them as the configuration does, or as helpers do.
    given = {str(name).lower(): str(value) for name, value in found.items()}
    return Login(given.get("username", ""), given.get("password", ""))
