"""The end of an EC2 instance by its Auto Scaling group, which may be at its least size."""

import pytest

from fakes import clouds
from fakes.aws import Moto
from fakes.clouds import Metadata
from fakes.scaling import Group
from simagent.clouds.aws import Aws
from simagent.clouds.aws_autoscaling import AwsGroup
from simagent.ports.cloud import CloudError, StaysError


@pytest.fixture
def scaling(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Moto:
    monkeypatch.setenv("AWS_ENDPOINT_URL_AUTO_SCALING", moto.endpoint)
    return moto


def asked(answers: dict[str, str], *, replace: bool = False) -> bool:
    with Metadata(answers) as server:
        return AwsGroup(Aws(lambda: 0.0, server.endpoint)).terminate(replace=replace)


def test_the_group_gets_smaller_by_an_instance_that_is_not_needed(scaling: Moto) -> None:
    group = Group(scaling, least=1)
    me, other = group.instances
    assert asked(clouds.aws_of_group(me))
    assert (group.instances, group.wanted) == ([other], 1)


def test_a_group_at_its_least_size_keeps_its_instances(scaling: Moto) -> None:
    group = Group(scaling, least=2)
    both = group.instances
    with pytest.raises(StaysError, match="least size"):
        asked(clouds.aws_of_group(both[0]))
    assert (group.instances, group.wanted) == (both, 2)


def test_an_instance_whose_time_is_over_is_replaced_also_then(scaling: Moto) -> None:
    group = Group(scaling, least=2)
    me, other = group.instances
    assert asked(clouds.aws_of_group(me), replace=True)
    assert me not in group.instances
    assert other in group.instances
    assert group.wanted == 2


def test_no_group_is_asked_for_an_instance_that_is_of_none() -> None:
    assert not asked(clouds.aws())
    assert not asked(clouds.aws_of_group("i-1", "Detached"))


def test_other_mistakes_are_no_refusal(scaling: Moto) -> None:
    with pytest.raises(CloudError, match="AWS does not end i-0: ValidationError: ") as caught:
        asked(clouds.aws_of_group("i-0"))
    assert not isinstance(caught.value, StaysError)


def test_a_group_that_cannot_be_asked_is_told_of(
    aws_credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_AUTO_SCALING", "http://127.0.0.1:1")
    with pytest.raises(CloudError, match="AWS cannot be asked to end i-0"):
        asked(clouds.aws_of_group("i-0"))
