"""`simagent setup`: makes what a fleet needs on AWS, and tells what its roles may have to do."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from simagent.cli.policies import ROLES, policy
from simagent.cli.text import put, put_json
from simagent.config import Config, ConfigError
from simagent.domain.ids import check_name
from simagent.engines import queue_names, set_up_queues, set_up_store
from simagent.ports.queue import QueueRefusedError
from simagent.ports.setup import Finding, Way

_SETTINGS = (
    *("queue", "store", "sqs_region", "sqs_endpoint", "sqs_ca_bundle"),
    *("s3_region", "s3_endpoint", "s3_path_style", "s3_ca_bundle", "s3_kms_key"),
)


def set_up(
    config: Config, groups: Sequence[str], way: Way, *, policies: bool, as_json: bool
) -> int:
    """Make it, and print what was done; tell the exit code."""
    groups = _checked(config, groups)
    found = []
    for finding in _findings(config, groups, way):
        found.append(finding)
        if not as_json:
            width = max(len(f"queue {name}-dead") for name in ("", *queue_names(config, groups)))
            put(f"{finding.verdict.ljust(7)}  {finding.what.ljust(width)}  {finding.text}")
    if as_json:
        put_json(
            {
                "findings": [asdict(finding) for finding in found],
                "settings": _settings(config),
                "policies": {role: policy(role, config, groups) for role in ROLES},
            }
        )
        return 0
    _tell_more(config, groups, found)
    if policies:
        for role, whose in ROLES.items():
            put(f"\nIAM policy {role}, for {whose}:")
            put_json(policy(role, config, groups))
    return 0


def print_policy(config: Config, groups: Sequence[str], role: str) -> int:
    """Print the policy of one role, for other programs; nothing is asked of any server."""
    if role not in ROLES:
        raise ConfigError(f"--policy: {role!r} is no role: use one of {', '.join(ROLES)}")
    if config.embedded:
        raise ConfigError("--policy: queue and store are of this machine: no policy is about them")
    put_json(policy(role, config, _checked(config, groups)))
    return 0


def _checked(config: Config, groups: Sequence[str]) -> Sequence[str]:
    """Give the groups, each of which can have a queue: nothing is made where one cannot."""
    try:
        checked = [check_name(group) for group in groups or [config.group]]
    except ValueError as error:
        raise ConfigError(f"--group: {error}") from None
    try:
        queue_names(config, checked)
    except QueueRefusedError as error:
        raise ConfigError(str(error)) from None
    return checked


def _findings(config: Config, groups: Sequence[str], way: Way) -> Iterator[Finding]:
    yield from set_up_store(config, way)
    yield from set_up_queues(config, groups, way)


def _tell_more(config: Config, groups: Sequence[str], found: Sequence[Finding]) -> None:
    if config.embedded:
        put("\nnothing to set up: queue and store are of this machine, and made when they are used")
        return
    if any(finding.verdict == "differs" for finding in found):
        put("\nwhat differs was left as it is; simagent setup --update sets it right")
    put("\nagent.toml of agents and clients:")
    for name, value in _settings(config).items():
        put(f"  {name} = {_toml(value)}")
    if [*groups] != ["default"]:
        others = f"  # or another one, of each agent its own: {', '.join(groups[1:])}"
        put(f'  group = "{groups[0]}"' + (others if groups[1:] else ""))
    put("\nIAM policies of their roles: simagent setup --policy " + "|".join(ROLES))


def _settings(config: Config) -> dict[str, Any]:
    given = {name: getattr(config, name) for name in _SETTINGS}
    return {
        name: value if isinstance(value, bool) else str(value)
        for name, value in given.items()
        if value is not None
    }


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'
