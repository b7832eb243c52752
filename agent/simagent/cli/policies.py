"""The IAM policies of a fleet's roles: files with gaps, which are filled in for one fleet."""

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import unquote, urlsplit

from simagent.config import Config, ConfigError
from simagent.engines import queue_names, queue_region

ROLES: Mapping[str, str] = {
    "agent": "machines that run tasks",
    "client": "who submits tasks, of any project",
    "tenant": "who submits tasks of this project alone",
    "setup": "who calls simagent setup",
}
_FILES = {"tenant": "client"}

Gaps = Mapping[str, Sequence[str]]
"""What stands for ``<name>``: one value for each resource that it makes, none where there is none.
"""


def policy(role: str, config: Config, groups: Sequence[str]) -> dict[str, Any]:
    """Give the policy of a role. Raises `ConfigError`, QueueError."""
    text = (files("simagent") / "policies" / f"{_FILES.get(role, role)}.json").read_text()
    project = config.project if role == "tenant" else "*"
    return filled(json.loads(text), _gaps(config, groups, project))


def filled(document: Mapping[str, Any], gaps: Gaps) -> dict[str, Any]:
    """Fill the gaps of a policy; statements about nothing that the fleet has are left out."""
    statements = []
    for statement in document["Statement"]:
        resources = [
            found for each in _listed(statement["Resource"]) for found in _fill(each, gaps)
        ]
        if not resources:
            continue
        made = {**statement, "Resource": resources}
        if "Condition" in statement:
            made["Condition"] = {
                test: {
                    key: [found for each in _listed(values) for found in _fill(each, gaps)]
                    for key, values in keys.items()
                }
                for test, keys in statement["Condition"].items()
            }
        statements.append(made)
    return {**document, "Statement": statements}


def _fill(text: str, gaps: Gaps) -> Iterator[str]:
    before, gap, rest = text.partition("<")
    if not gap:
        yield text
        return
    name, _, after = rest.partition(">")
    for value in gaps[name]:
        yield from (before + value + end for end in _fill(after, gaps))


def _listed(value: str | Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


def _gaps(config: Config, groups: Sequence[str], project: str) -> Gaps:
    store = urlsplit(config.store_url)
    prefix = unquote(store.path).strip("/")
    queues = queue_names(config, groups)
    region = queue_region(config) if queues else config.s3_region or config.sqs_region or ""
    partition = _partition(region)
    return {
        "partition": [partition],
        "bucket": [store.netloc] if store.scheme == "s3" else [],
        "prefix": [f"{prefix}/" if prefix else ""],
        "project": [project],
        "group": groups,
        "cluster": [config.cluster] if config.cluster else [],
        "cache": ["images/cache"] if config.sif_cache else [],
        "queue": [f"arn:{partition}:sqs:{region}:*:{name}" for name in dict.fromkeys(queues)],
        "scaling": _scaling(config, partition),
        "key": [_key(config.s3_kms_key, partition)] if config.s3_kms_key else [],
    }


def _scaling(config: Config, partition: str) -> list[str]:
    """Give the Auto Scaling groups that machines may be ended in, where agents do so."""
    if config.idle_action != "terminate":
        return []
    return [f"arn:{partition}:autoscaling:*:*:autoScalingGroup:*:autoScalingGroupName/*"]


def _key(named: str, partition: str) -> str:
    if named.startswith("arn:"):
        return named
    if named.startswith("alias/"):
        raise ConfigError(f"s3_kms_key: IAM takes no alias in a policy: write the ARN of {named}")
    return f"arn:{partition}:kms:*:*:key/{named}"


def _partition(region: str) -> str:
    """Tell which of AWS's separate clouds a region is of."""
    for begins, partition in (("cn-", "aws-cn"), ("us-gov-", "aws-us-gov")):
        if region.startswith(begins):
            return partition
    return "aws"
