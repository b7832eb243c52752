"""What `simagent config` does."""

import os
import shutil
import ssl
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from simagent.cli import doctor_engines
from simagent.cli.finding import Check, put_checks
from simagent.cli.options import ReadSettings
from simagent.cli.text import put, put_json
from simagent.config import Config, ConfigError
from simagent.config_origins import origin_of
from simagent.wiring.head import wanted_hosts
from simagent.wiring.life import try_end

WRONG, MISSING = 2, 1


def check_settings(read: ReadSettings, file: Path | None, *, offline: bool, as_json: bool) -> int:
    """Print what is found; tell the exit code. Raises `ConfigError` where that is not JSON."""
    try:
        config, known = read(file)
    except ConfigError as error:
        if not as_json:
            raise
        put_json({"ok": False, "mistakes": str(error).splitlines(), "checks": []})
        return WRONG
    checks = list(_checks(config, known, offline=offline))
    ok = all(check.verdict != "missing" for check in checks)
    if as_json:
        found = [asdict(check) for check in checks]
        put_json({"ok": ok, "mistakes": [], "checks": found})
    else:
        put_checks(checks)
    return 0 if ok else MISSING


def show_settings(read: ReadSettings, file: Path | None, *, as_json: bool) -> None:
    """Print each setting with its source: TOML, which can be read again. Raises `ConfigError`."""
    config, known = read(file)
    shown = {name: (value, origin_of(name, known)) for name, value in _flat(config)}
    if as_json:
        put_json({name: {"value": value, "from": of} for name, (value, of) in shown.items()})
        return
    lines = [(name, value, of) for name, (value, of) in shown.items() if "." not in name]
    _put(lines)
    tables = dict.fromkeys(name.partition(".")[0] for name in shown if "." in name)
    for table in tables:
        put(f"\n[{table}]")
        begin = f"{table}."
        _put(
            [(n.removeprefix(begin), v, of) for n, (v, of) in shown.items() if n.startswith(begin)]
        )


def _put(lines: list[tuple[str, Any, str]]) -> None:
    texts = [(f"# {n} =" if v is None else f"{n} = {_toml(v)}", of) for n, v, of in lines]
    width = min(60, max(len(text) for text, _ in texts))
    for text, of in texts:
        put(f"{text.ljust(width)}  # {of}")


def _flat(config: Config) -> Iterator[tuple[str, Any]]:
    for name in Config.model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from (
                (f"{name}.{n}", _plain(getattr(value, n))) for n in type(value).model_fields
            )
        else:
            yield name, _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value if isinstance(value, bool | int | float | None) else str(value)


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.15g}"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# --- What is checked ------------------------------------------------------------------------


def _checks(config: Config, known: Mapping[str, str], *, offline: bool) -> Iterator[Check]:
    yield _sources(known)
    yield from _files(config)
    yield from _role(config)
    yield from _end(config)
    yield from doctor_engines.state_dir(config)
    if not offline:
        yield from doctor_engines.store(config)
        yield from doctor_engines.queue(config)


def _sources(known: Mapping[str, str]) -> Check:
    if not known:
        return Check("settings", "ok", "none but the defaults")
    counted = Counter(known.values())
    text = ", ".join(f"{count} by {source}" for source, count in counted.items())
    return Check("settings", "ok", f"{text}; the others are defaults")


def _files(config: Config) -> Iterator[Check]:
    """Read the files that settings name."""
    for name in ("s3_ca_bundle", "sqs_ca_bundle"):
        bundle: Path | None = getattr(config, name)
        if bundle is not None:
            yield _certificates(name, bundle)
    if config.mpi.hostfile is not None:
        try:
            count = len(wanted_hosts(config))
        except ConfigError as error:
            yield Check("mpi.hostfile", "missing", str(error).partition(": ")[2])
        else:
            yield Check("mpi.hostfile", "ok", f"{config.mpi.hostfile}: {count} hosts")
    if config.embedded:
        return
    for variable in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        if variable in os.environ:
            yield _readable(variable, Path(os.environ[variable]).expanduser())


def _certificates(name: str, bundle: Path) -> Check:
    found = _readable(name, bundle)
    if found.verdict != "ok":
        return found
    try:
        count = len(ssl.create_default_context(cafile=str(bundle)).get_ca_certs())
    except (ssl.SSLError, OSError):
        fix = "it has to be in the PEM format, -----BEGIN CERTIFICATE-----"
        return Check(name, "missing", f"{bundle} has no certificate that can be read", fix)
    return Check(name, "ok", f"{bundle}: {count} certificates")


def _readable(name: str, path: Path) -> Check:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        fix = f"let uid {os.geteuid()} read it" if isinstance(error, PermissionError) else ""
        return Check(name, "missing", f"{path}: {error.strerror or error}", fix)
    return Check(name, "ok", f"{path} can be read")


def _role(config: Config) -> Iterator[Check]:
    if config.role == "member" and config.cluster is None:
        text = "a member needs the name of its cluster: the agent does not start"
        yield Check("role", "missing", text, "set cluster, or remove role")
    if config.role == "head" and config.cluster is not None and config.slots > 1:
        text = f"slots is {config.slots}: the head of a cluster runs one task at a time"
        yield Check("slots", "missing", text, "set slots to 1, or remove cluster")


def _end(config: Config) -> Iterator[Check]:
    """See whether what ends the machine could be done."""
    if config.idle_timeout is None and config.max_lifetime is None:
        return
    try:
        end = try_end(config)
    except ConfigError as error:
        yield Check("idle_action", "missing", str(error).partition(": ")[2])
        return
    program = {"poweroff": "systemctl", "command": next(iter(config.idle_command), "")}.get(
        config.idle_action
    )
    if program is not None and shutil.which(program) is None:
        yield Check("idle_action", "missing", f"there is no program {program}")
        return
    idle = "" if config.idle_timeout is None else f" after {config.idle_timeout:g} s without a task"
    life = "" if config.max_lifetime is None else f" after {config.max_lifetime:g} s in all"
    both = " or" if idle and life else ""
    yield Check("idle_action", "ok", f"{end.name}{idle}{both}{life}")
