"""Writes agent.toml: every setting as a comment, with what it means and its default.

``python systemd/agent_toml.py``, after a setting was added or described anew; a test compares.
"""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from simagent.config import Config

FILE = Path(__file__).with_name("agent.toml")

HEAD = """\
# The settings of simagent's agent: /etc/simagent/agent.toml, which commands of root read, too.
#
# Each is here with its meaning. What begins with "#" alone is the default, or an example where that
# is said. docs/configuration.md tells more, `simagent config check` whether all is right, and
# `simagent config show` what holds. The agent reads it when it starts: systemctl restart simagent.
"""
# Of those without a default, or with one that is found out.
EXAMPLES: dict[str, object] = {
    "state_dir": "/var/lib/simagent",
    "queue": "sqs://simagent-{group}",
    "store": "s3://my-bucket/simagent",
    "sqs_region": "eu-west-1",
    "sqs_endpoint": "https://sqs.example.org",
    "sqs_ca_bundle": "/etc/ssl/our-ca.pem",
    "s3_endpoint": "https://s3.example.org",
    "s3_region": "eu-west-1",
    "s3_path_style": True,
    "s3_ca_bundle": "/etc/ssl/our-ca.pem",
    "s3_kms_key": "alias/simagent",
    "agent": "big-machine-1",
    "cluster": "blue",
    "allow_process": True,
    "docker_host": "unix:///run/docker.sock",
    "task_uid": 1500,
    "allow_root_process": False,
    "cloud_endpoint": "http://169.254.169.254",
    "idle_timeout": 900,
    "max_lifetime": 86400,
    "max_lifetime_grace": 3600,
    "metrics_listen": "127.0.0.1:9101",
    "mpi.hostfile": "/etc/simagent/hosts",
    "mpi.size": 2,
    "mpi.slots": 8,
    "mpi.interface": "10.0.0.0/24",
    "mpi.shared_dir": "/srv/shared",
    "mpi.ssh_user": "simagent-mpi",
    "mpi.check_image": "registry.example.org/lammps:20250204",
}


def text() -> str:
    """Give what the file has to be."""
    return "\n".join([HEAD, *_settings(Config, "")])


def _settings(model: type[BaseModel], table: str) -> Iterator[str]:
    tables = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            tables.append((name, field, inner))
            continue
        yield from _setting(f"{table}{name}", name, field)
    for name, field, inner in tables:
        yield from _comment(field.description or "")
        yield f"#[{name}]\n"
        yield from _settings(inner, f"{name}.")


def _setting(path: str, name: str, field: FieldInfo) -> Iterator[str]:
    value = field.default
    example = path in EXAMPLES
    if example:
        value = EXAMPLES[path]
    elif value is None or field.default_factory is not None:
        raise SystemExit(f"{path} has no default to show: add it to EXAMPLES in {__file__}")
    yield from _comment(field.description or "")
    if example:
        yield "# Example:"
    yield f"#{name} = {_toml(value)}\n"


def _comment(words: str) -> Iterator[str]:
    yield from textwrap.wrap(words, 100, initial_indent="# ", subsequent_indent="# ")


def _toml(value: object) -> str:
    match value:
        case float() if value.is_integer():
            return str(int(value))
        case bool() | int() | float() | str():
            return json.dumps(value)
        case tuple():
            return json.dumps(list(value))
    raise SystemExit(f"{value!r}: how is that written in TOML?")


if __name__ == "__main__":
    FILE.write_text(text())
