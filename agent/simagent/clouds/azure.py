"""Microsoft Azure, by its Instance Metadata Service.

As in Azure's documentation: "Azure Instance Metadata Service" and "Azure Metadata Service:
Scheduled Events for Linux VMs".
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from simagent.clouds.metadata import LINK_LOCAL, ask, parse_object, seconds_until
from simagent.ports.cloud import Notice

_HEADERS: Final = {"Metadata": "true"}
_INSTANCE: Final = "/metadata/instance/compute?api-version=2021-02-01"
_EVENTS: Final = "/metadata/scheduledevents?api-version=2020-07-01"
_FORM: Final = "%a, %d %b %Y %H:%M:%S GMT"
_LEAST: Final = {"Preempt": 30.0, "Terminate": 300.0, "Reboot": 900.0, "Redeploy": 600.0}
"""Least seconds between a notice and what it tells of. A `Freeze` is only a pause."""


class Azure:
    """The metadata server of an Azure virtual machine. ``wall`` gives Unix time."""

    name = "azure"
    poll_every = 1.0

    def __init__(self, wall: Callable[[], float], base: str = LINK_LOCAL) -> None:
        self._wall = wall
        self._base = base
        self._me = ""

    def facts(self) -> Mapping[str, str]:
        """Tell what the machine is. Raises `CloudError`."""
        compute = self._get(_INSTANCE)
        found = {
            "instance": compute.get("vmId"),
            "instance_type": compute.get("vmSize"),
            "region": compute.get("location"),
        }
        price = "spot" if compute.get("priority") == "Spot" else "on-demand"
        return {name: str(value) for name, value in found.items() if value} | {"price": price}

    def notice(self) -> Notice | None:
        """Ask for the next event by which this machine ends. Raises `CloudError`."""
        return min(
            (self._notice(event) for event in self._ends()),
            key=lambda notice: notice.left,
            default=None,
        )

    def done(self) -> None:
        """Let what was announced begin, where it is about this machine alone. Raises `CloudError`.

        What is let begin begins for all machines that it is about.
        """
        mine = [
            {"EventId": event["EventId"]}
            for event in self._ends()
            if event.get("EventId") and list(event["Resources"]) == [self._me]
        ]
        if mine:
            ask(
                self._base,
                _EVENTS,
                {**_HEADERS, "Content-Type": "application/json"},
                method="POST",
                body=json.dumps({"StartRequests": mine}),
            )

    def _ends(self) -> list[Mapping[str, Any]]:
        events = self._get(_EVENTS).get("Events")
        return [event for event in events or () if self._is_end(event)]

    def _is_end(self, event: Any) -> bool:
        """Tell whether an event ends this machine: others of its set are told of it, too."""
        if not isinstance(event, dict) or str(event.get("EventType")) not in _LEAST:
            return False
        self._me = self._me or str(self._get(_INSTANCE).get("name", ""))
        return self._me in (event.get("Resources") or ())

    def _notice(self, event: Mapping[str, Any]) -> Notice:
        kind, text = event["EventType"], str(event.get("NotBefore") or "")
        what = f"Azure announces: {kind}"
        if not text:  # it has begun
            return Notice(what, 0.0)
        left = seconds_until(text, _FORM, self._wall())
        return Notice(what, left if left > 0 else _LEAST[kind])

    def _get(self, path: str) -> dict[str, Any]:
        return parse_object(ask(self._base, path, _HEADERS), "Azure")
