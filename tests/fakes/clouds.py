"""Metadata servers of the clouds, after their public documentation."""

import json
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler

from fakes.serving import Serving

TOKEN = "the-token"
_AWS = "/latest/"
_GCP = "/computeMetadata/v1/instance/"


class Metadata(Serving):
    """Serves ``answers`` by their paths; each cloud's guard decides who may ask.

    ``hangs`` makes it answer nothing until the end; ``expire`` makes AWS's token worthless.
    """

    def __init__(self, answers: Mapping[str, str] = {}, *, hangs: bool = False) -> None:
        self.answers = dict(answers)
        self.asked: list[str] = []
        self.started: list[str] = []
        """The events of Azure's that were let begin."""
        self.tokens = 0
        self.token = TOKEN
        """What AWS's tokens begin with."""
        self._token = ""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                lasting = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
                if self.path != "/latest/api/token" or not 0 < int(lasting or 0) <= 21600:
                    return self._answer(400, "")
                server.tokens += 1
                server._token = f"{server.token}-{server.tokens}"
                return self._answer(200, server._token)

            def do_GET(self) -> None:
                server.asked.append(self.path)
                if hangs:
                    server.go_on.wait(30.0)
                    return None
                if not self._may():
                    return self._answer(401 if self.path.startswith(_AWS) else 403, "no")
                body = server.answers.get(self.path)
                return self._answer(404 if body is None else 200, body or "")

            def do_POST(self) -> None:
                said = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Metadata") != "true" or self.path != AZURE_EVENTS:
                    return self._answer(400, "")
                server.started += [r["EventId"] for r in json.loads(said)["StartRequests"]]
                return self._answer(200, "")

            def _may(self) -> bool:
                if self.path.startswith(_AWS):
                    given = self.headers.get("X-aws-ec2-metadata-token")
                    return bool(server._token) and given == server._token
                if self.path.startswith(_GCP):
                    return self.headers.get("Metadata-Flavor") == "Google"
                return self.headers.get("Metadata") == "true"

            def _answer(self, status: int, body: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(Handler)

    def expire(self) -> None:
        self._token = ""


def aws(*, spot: bool = True) -> dict[str, str]:
    identity = {"instanceId": "i-1234", "instanceType": "c7i.large", "region": "eu-west-1"}
    return {
        "/latest/dynamic/instance-identity/document": json.dumps(identity),
        "/latest/meta-data/instance-life-cycle": "spot" if spot else "on-demand",
    }


def aws_interruption(at: float) -> dict[str, str]:
    form = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    told = {"action": "terminate", "time": form}
    return {"/latest/meta-data/spot/instance-action": json.dumps(told)}


def gcp(*, spot: bool = True) -> dict[str, str]:
    return {
        f"{_GCP}id": "4711",
        f"{_GCP}machine-type": "projects/1/machineTypes/c3-standard-4",
        f"{_GCP}zone": "projects/1/zones/europe-west1-b",
        f"{_GCP}scheduling/preemptible": "TRUE" if spot else "FALSE",
        f"{_GCP}preempted": "FALSE",
        f"{_GCP}maintenance-event": "NONE",
    }


def gcp_preempted() -> dict[str, str]:
    return {f"{_GCP}preempted": "TRUE"}


def gcp_maintenance(kind: str) -> dict[str, str]:
    return {f"{_GCP}maintenance-event": f"{kind}_ON_HOST_MAINTENANCE"}


AZURE_INSTANCE = "/metadata/instance/compute?api-version=2021-02-01"
AZURE_EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"


def azure(*, spot: bool = True) -> dict[str, str]:
    compute = {
        "name": "vm-7",
        "vmId": "aa-bb",
        "vmSize": "Standard_D4s_v5",
        "location": "westeurope",
        "priority": "Spot" if spot else "Regular",
    }
    return {AZURE_INSTANCE: json.dumps(compute), **azure_events()}


def azure_events(*events: Mapping[str, object]) -> dict[str, str]:
    return {AZURE_EVENTS: json.dumps({"DocumentIncarnation": 1, "Events": events})}


def azure_event(kind: str, at: float | None, *machines: str) -> dict[str, object]:
    form = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(at)) if at else ""
    return {"EventId": "e", "EventType": kind, "ResourceType": "VirtualMachine",
            "Resources": machines, "EventStatus": "Scheduled" if at else "Started",
            "NotBefore": form}  # fmt: skip


def aws_of_group(instance: str, state: str = "InService") -> dict[str, str]:
    identity = {"instanceId": instance, "instanceType": "c7i.large", "region": "eu-west-1"}
    return {
        "/latest/dynamic/instance-identity/document": json.dumps(identity),
        "/latest/meta-data/autoscaling/target-lifecycle-state": state,
    }
