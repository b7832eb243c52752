"""Auto Scaling groups of AWS, by moto."""

from typing import Any

from boto3.session import Session

from fakes.aws import REGION, Moto


class Group:
    """An Auto Scaling group of two instances, as moto has it."""

    def __init__(self, moto: Moto, least: int) -> None:
        self._name = moto.name()
        session = Session(region_name=REGION)
        ec2 = session.client("ec2", endpoint_url=moto.endpoint)
        self._calls = session.client("autoscaling", endpoint_url=moto.endpoint)
        subnets = ec2.describe_subnets()["Subnets"]
        image = ec2.describe_images()["Images"][0]["ImageId"]
        self._calls.create_launch_configuration(
            LaunchConfigurationName=self._name, ImageId=image, InstanceType="c7i.large"
        )
        self._calls.create_auto_scaling_group(
            AutoScalingGroupName=self._name,
            LaunchConfigurationName=self._name,
            MinSize=least,
            MaxSize=5,
            DesiredCapacity=2,
            VPCZoneIdentifier=subnets[0]["SubnetId"],
        )

    def _now(self) -> Any:
        found = self._calls.describe_auto_scaling_groups(AutoScalingGroupNames=[self._name])
        return found["AutoScalingGroups"][0]

    @property
    def instances(self) -> list[str]:
        return [instance["InstanceId"] for instance in self._now()["Instances"]]

    @property
    def wanted(self) -> int:
        return int(self._now()["DesiredCapacity"])
