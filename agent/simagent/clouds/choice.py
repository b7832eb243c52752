"""Which cloud is asked: the one that was named, or the one that the firmware tells of."""

from collections.abc import Callable

import structlog

from simagent.clouds.aws import Aws
from simagent.clouds.azure import Azure
from simagent.clouds.dmi import cloud_of
from simagent.clouds.gcp import Gcp
from simagent.clouds.metadata import LINK_LOCAL
from simagent.ports.cloud import Cloud, CloudError

log = structlog.get_logger()


def choose(name: str, endpoint: str | None, wall: Callable[[], float]) -> Cloud | None:
    """Give what asks a cloud, by its name or ``auto``; None where the machine is of none.

    ``endpoint`` is the URL of the metadata server, ``wall`` gives Unix time.
    """
    base = endpoint or LINK_LOCAL
    match cloud_of() if name == "auto" else name:
        case "aws":
            return Aws(wall, base)
        case "gcp":
            return Gcp(base)
        case "azure":
            return Azure(wall, base)
    return None


def facts(cloud: Cloud | None) -> dict[str, str]:
    """Tell what the machine is in its cloud; what that does not tell within seconds is left out."""
    if cloud is None:
        return {}
    try:
        return {"cloud": cloud.name, **cloud.facts()}
    except CloudError as error:
        log.warning("the cloud does not tell of the machine", error=str(error))
        return {"cloud": cloud.name}
