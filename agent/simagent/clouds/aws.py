"""Amazon EC2, by version 2 of its instance metadata service (IMDSv2).

As in the EC2 User Guide: "Use the Instance Metadata Service", "Spot Instance interruption
notices" and "EC2 instance rebalance recommendations"; in that of EC2 Auto Scaling: "Retrieve the
target lifecycle state through instance metadata".
"""

from collections.abc import Callable, Mapping
from typing import Final

from simagent.clouds.metadata import (
    LINK_LOCAL,
    DeniedError,
    NothingThereError,
    ask,
    parse_object,
    seconds_until,
)
from simagent.ports.cloud import Notice

_TOKEN_SECONDS: Final = 21_600
_NOTICE_SECONDS: Final = 120.0
_FORM: Final = "%Y-%m-%dT%H:%M:%SZ"


class Aws:
    """The metadata server of an EC2 instance. ``wall`` gives Unix time."""

    name = "aws"
    poll_every = 5.0

    def __init__(self, wall: Callable[[], float], base: str = LINK_LOCAL) -> None:
        self._wall = wall
        self._base = base
        self._token = ""

    def facts(self) -> Mapping[str, str]:
        """Tell what the instance is. Raises `CloudError`."""
        document = parse_object(self._get("/latest/dynamic/instance-identity/document"), "AWS")
        found = {
            "instance": document.get("instanceId"),
            "instance_type": document.get("instanceType"),
            "region": document.get("region"),
        }
        life = self._found("/latest/meta-data/instance-life-cycle")
        if life is not None:
            found["price"] = "spot" if life.strip() == "spot" else "on-demand"
        return {name: str(value) for name, value in found.items() if value}

    def notice(self) -> Notice | None:
        """Ask for an interruption, then for a recommendation to go. Raises `CloudError`."""
        action = self._found("/latest/meta-data/spot/instance-action")
        if action is not None:
            told = parse_object(action, "AWS")
            left = seconds_until(str(told.get("time")), _FORM, self._wall())
            what = f"AWS is going to {told.get('action')} this spot instance"
            return Notice(what, _believable(left))
        if self._found("/latest/meta-data/events/recommendations/rebalance") is not None:
            return Notice("AWS may soon interrupt this spot instance", 0.0, certain=False)
        return None

    def in_group(self) -> bool:
        """Tell whether an Auto Scaling group looks after the instance. Raises `CloudError`."""
        state = self._found("/latest/meta-data/autoscaling/target-lifecycle-state")
        return state is not None and state.strip() != "Detached"

    def done(self) -> None:
        """Nothing: AWS does not wait for anybody."""

    def _found(self, path: str) -> str | None:
        try:
            return self._get(path)
        except NothingThereError:
            return None

    def _get(self, path: str) -> str:
        """Ask with a token; with a new one where it is refused: it lasts six hours."""
        if self._token:
            try:
                return ask(self._base, path, self._with_token())
            except DeniedError:
                self._token = ""
        lasting = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
        self._token = ask(self._base, "/latest/api/token", lasting, method="PUT").strip()
        return ask(self._base, path, self._with_token())

    def _with_token(self) -> dict[str, str]:
        return {"X-aws-ec2-metadata-token": self._token}


def _believable(left: float) -> float:
    """Give the time left; notices come two minutes before: else this machine's clock is wrong."""
    return left if 0.0 < left <= _NOTICE_SECONDS else _NOTICE_SECONDS - Aws.poll_every
