"""The fault suite's machine, with its store in S3, its queue at SQS, and proxies before both."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from fakes.aws import Moto
from fakes.rig import Rig
from fakes.s3 import Bucket
from faults.lab import TIMES, Lab, Stopwatch
from faults.mirror import Servers
from faults.proxy import STALL, Proxy, Rule
from simagent.config import Config
from simagent.config_load import load_config
from simagent.domain.ids import new_id
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Spec
from simagent.ports.clock import SystemClock
from simagent.ports.store import StoreLockedOutError
from simagent.queues.sqs_setup import create_queue

GROUP = "default"
_TRIES = 50
ANSWER = 4.0
"""Seconds that agents wait for an answer of S3's, in the place of 30: stalls have to be over."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Servers that a fleet uses: a bucket, and queues whose names begin with a prefix."""

    bucket: Bucket
    moto: Moto
    queues: str

    @classmethod
    def on(cls, bucket: Bucket, moto: Moto) -> "Fleet":
        """Make the queues beside a bucket."""
        queues = moto.name("fleet")
        create_queue(f"{queues}-{GROUP}", region=moto.region, endpoint=moto.endpoint)
        return cls(bucket, moto, queues)

    @property
    def servers(self) -> Servers:
        """Say where the recorder is to look."""
        _, _, path = self.bucket.url.removeprefix("s3://").partition("/")
        return Servers(
            s3=self.bucket.endpoint,
            bucket=self.bucket.name,
            prefix=f"{path}/",
            sqs=self.moto.endpoint,
            queue=f"{self.queues}-{GROUP}",
            region=self.moto.region,
        )


class FleetLab(Lab):
    """Agents reach S3 and SQS by way of ``s3`` and ``sqs``; its client and the recorder do not."""

    def __init__(
        self,
        folder: Path,
        fleet: Fleet,
        s3: Proxy,
        sqs: Proxy,
        *,
        watch_every: float = 0.5,
        **times: float,
    ) -> None:
        self.fleet, self.s3, self.sqs = fleet, s3, sqs
        self._watch_every = watch_every
        folder.mkdir(exist_ok=True)
        (folder / "servers").write_text(json.dumps(asdict(fleet.servers)))
        super().__init__(folder, **times)

    def harmed_client(self) -> Any:
        """Make a client that is harmed as the agents are."""
        return Rig(self.folder, self._engines_by(self.s3.endpoint, self.sqs.endpoint)).client

    def config(self, name: str = "state") -> Config:
        """Give what reaches the servers themselves."""
        direct = self._engines_by(self.fleet.bucket.endpoint, self.fleet.moto.endpoint)
        return load_config(None, **(self._settings(name) | direct))

    def direct_client(self) -> Any:
        """Make a client that is not."""
        direct = self._engines_by(self.fleet.bucket.endpoint, self.fleet.moto.endpoint)
        return Rig(self.folder, direct).client

    def _submit(self, spec: Spec) -> TaskKeys:
        """Submit as a user does: again with the same id, once the clock or the keys are right."""
        task_id = new_id(SystemClock().wall())
        for _ in range(_TRIES):
            with suppress(StoreLockedOutError):
                return self.client.submit(spec, base=self.folder, task_id=task_id)
        raise AssertionError("each try to submit was refused")

    @contextmanager
    def harmed(self, *proxies: Proxy, silent: bool) -> Iterator[None]:
        """Let servers be away for a while: connections are refused, or nothing answered."""
        with ExitStack() as away:
            for proxy in proxies:
                away.enter_context(proxy.harming(Rule(STALL)) if silent else proxy.down())
            yield

    def passes(self, seconds: float) -> None:
        """Let time pass: an outage has to last."""
        watch = Stopwatch()
        self.until(lambda: watch.running() >= seconds)

    def start(self, name: str = "state", **options: object) -> Any:
        """Start an agent, which gives up waiting for an answer sooner than in earnest.

        ``direct`` is for one that has no proxies before it.
        """
        if options.pop("direct", False):
            direct = self._engines_by(self.fleet.bucket.endpoint, self.fleet.moto.endpoint)
            options["config"] = self._settings(name) | direct
        return super().start(name, **{"answer": ANSWER, "files": False} | options)

    def _settings(self, name: str) -> dict[str, Any]:
        return super()._settings(name) | self._engines_by(self.s3.endpoint, self.sqs.endpoint)

    def _engines_by(self, s3: str, sqs: str) -> dict[str, Any]:
        return {
            "queue": f"sqs://{self.fleet.queues}-{{group}}",
            "store": self.fleet.bucket.url,
            "s3_endpoint": s3,
            "s3_region": self.fleet.bucket.region,
            "sqs_endpoint": sqs,
            "sqs_region": self.fleet.moto.region,
            "allow_process": True,
        }


FLEET_TIMES = TIMES | {
    # Polls wait for whole seconds. An agent turns to its suspects at each heartbeat at least, and
    # begins to watch anew after a pause of two renewals: a busy machine is to have room for that.
    "lease_ttl": 9.0,
    "renew_every": 2.0,
    "heartbeat_every": 1.0,
    "bell_visibility": 4.0,
}


class Labs:
    """Makes labs beneath a folder, each with a bucket, queues and proxies of its own."""

    def __init__(self, folder: Path, make_bucket: Callable[[], Bucket], moto: Moto) -> None:
        self._folder, self._make_bucket, self._moto = folder, make_bucket, moto
        self._numbers = count()

    @contextmanager
    def __call__(self, *, watch_every: float = 0.5, **times: float) -> Iterator[FleetLab]:
        """Make a lab whose proxies harm nothing as yet."""
        bucket = self._make_bucket()
        with ExitStack() as held:
            s3 = held.enter_context(Proxy(bucket.endpoint))
            sqs = held.enter_context(Proxy(self._moto.endpoint))
            fleet = Fleet.on(bucket, self._moto)
            folder = self._folder / str(next(self._numbers))
            lab = FleetLab(folder, fleet, s3, sqs, watch_every=watch_every, **FLEET_TIMES | times)
            held.enter_context(lab)
            yield lab
