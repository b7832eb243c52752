"""Google Compute Engine, by its metadata server.

As in the documentation of Compute Engine: "Predefined metadata keys" and "Preemptible VM
instances" (a machine has 30 s from the notice on), "Live migration and host maintenance events".
"""

from collections.abc import Mapping
from typing import Final

from simagent.clouds.metadata import LINK_LOCAL, NothingThereError, ask
from simagent.ports.cloud import Notice

_HEADERS: Final = {"Metadata-Flavor": "Google"}
_NOTICE_SECONDS: Final = 30.0
_MAINTENANCE_SECONDS: Final = 60.0
"""An instance with GPUs has an hour, which is not told."""


class Gcp:
    """The metadata server of a Compute Engine instance."""

    name = "gcp"
    poll_every = 1.0

    def __init__(self, base: str = LINK_LOCAL) -> None:
        self._base = base

    def facts(self) -> Mapping[str, str]:
        """Tell what the instance is. Raises `CloudError`."""
        zone = self._get("zone").rpartition("/")[2]
        found = {
            "instance": self._get("id"),
            "instance_type": self._get("machine-type").rpartition("/")[2],
            "region": zone.rpartition("-")[0],
        }
        try:
            spot = self._get("scheduling/preemptible") == "TRUE"
        except NothingThereError:
            return found
        return found | {"price": "spot" if spot else "on-demand"}

    def notice(self) -> Notice | None:
        """Ask whether the instance is being preempted. Raises `CloudError`."""
        if self._get("preempted") == "TRUE":
            left = _NOTICE_SECONDS - self.poll_every
            return Notice("Google Cloud is going to preempt this instance", left)
        try:
            event = self._get("maintenance-event")
        except NothingThereError:
            return None
        if event != "TERMINATE_ON_HOST_MAINTENANCE":  # others move it while it runs
            return None
        left = _MAINTENANCE_SECONDS - self.poll_every
        return Notice("Google Cloud is going to stop this instance for maintenance", left)

    def done(self) -> None:
        """Nothing: Google Cloud does not wait for anybody."""

    def _get(self, key: str) -> str:
        return ask(self._base, f"/computeMetadata/v1/instance/{key}", _HEADERS).strip()
