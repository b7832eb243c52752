"""The end of an EC2 instance, by the Auto Scaling group that it is of.

As in the reference of Amazon EC2 Auto Scaling: `TerminateInstanceInAutoScalingGroup`. A group at
its least size refuses to get smaller, with the code that it has for all mistakes,
`ValidationError`.
"""

from typing import Final

from boto3.session import Session
from botocore import exceptions as boto
from botocore.config import Config as BotoConfig

from simagent.clouds.aws import Aws
from simagent.ports.cloud import CloudError, StaysError

_BOUNDED: Final = BotoConfig(
    connect_timeout=5, read_timeout=15, retries={"total_max_attempts": 2, "mode": "standard"}
)
_DENIED: Final = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}
_LEAST: Final = ("minsize", "min size")
"""In the message that a group has its least size, in lower case: it has no code of its own."""


class AwsGroup:
    """The group that an instance is of, if it is of one."""

    def __init__(self, instance: Aws) -> None:
        self._instance = instance

    def terminate(self, *, replace: bool) -> bool:
        """Have the group end the instance. Raises `StaysError`, `CloudError`.

        The group gets smaller by one, or starts another in its place if it is to be
        ``replaced``. False where the instance is of no group.
        """
        if not self._instance.in_group():
            return False
        facts = self._instance.facts()
        if not {"instance", "region"} <= facts.keys():
            raise CloudError("AWS does not tell which instance this is, and of which region")
        _terminate(facts["instance"], facts["region"], smaller=not replace)
        return True


def _terminate(instance: str, region: str, *, smaller: bool) -> None:
    try:
        client = Session().client("autoscaling", region_name=region, config=_BOUNDED)
        client.terminate_instance_in_auto_scaling_group(
            InstanceId=instance, ShouldDecrementDesiredCapacity=smaller
        )
    except boto.ClientError as error:
        told = error.response.get("Error", {})
        code, text = str(told.get("Code", "")), str(told.get("Message", "")) or str(error)
        if code == "ValidationError" and any(words in text.lower() for words in _LEAST):
            raise StaysError(f"the Auto Scaling group has its least size: {text}") from error
        if code in _DENIED:
            raise CloudError(
                "autoscaling:TerminateInstanceInAutoScalingGroup is not allowed to this machine: "
                "simagent setup --policy agent prints what it needs"
            ) from error
        raise CloudError(f"AWS does not end {instance}: {code}: {text}") from error
    except boto.BotoCoreError as error:
        raise CloudError(f"AWS cannot be asked to end {instance}: {error}") from error
