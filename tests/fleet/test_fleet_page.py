"""docs/fleet.md, literally: two machines with systemd and one to submit from, in containers."""

import io
import re
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines.dockerd import Engine
from fakes.aws import KEYS, Moto
from shelf.images import make_debian

pytestmark = pytest.mark.timeout(1800)  # it builds an image with systemd and the agent

ROOT = Path(__file__).parents[2]
IMAGE = "simagent-vm:1"
CHECKOUT = "/root/simagent"
# What the page takes for granted: Debian with systemd, and a checkout.
DOCKERFILE = f"""\
FROM debian:trixie-slim
RUN apt-get update -qq \\
    && apt-get install -qq -y --no-install-recommends ca-certificates systemd-sysv
COPY . {CHECKOUT}
WORKDIR {CHECKOUT}
RUN ["bash", "page/install.sh"]
"""
# PID 1 is systemd, whose tree of cgroups is the container's own.
BOOT = "umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; exec /sbin/init"
MACHINE = (
    *("--network", "host", "--cgroupns", "private", "--cap-add", "ALL"),
    *("--cap-drop", "SYS_RESOURCE", "--security-opt", "seccomp=unconfined"),
    *("--tmpfs", "/run", "--tmpfs", "/run/lock", "--entrypoint", "/bin/sh"),
)


def blocks() -> dict[str, list[str]]:
    """Give the commands of the page by the headings that they stand under."""
    page = (ROOT / "docs" / "fleet.md").read_text()
    found = {}
    for section in page.split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        found[title] = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return found


class Machine:
    """A container that commands are run in as on a machine of one's own."""

    def __init__(self, engine: Engine, name: str, env: dict[str, str]) -> None:
        self._engine = engine
        self.name = name
        self._env = [word for item in env.items() for word in ("--env", "=".join(item))]

    def __call__(self, script: str, *, check: bool = True) -> str:
        argv = ("exec", *self._env, self.name, "bash", "-euc", script)
        done = self._engine.run(*argv, check=False)
        said = done.stdout + done.stderr
        assert not check or done.returncode == 0, f"{script}\n{said}"
        return said


def packed(install: str) -> bytes:
    """Give what the image is built of, as `docker build` takes it."""
    kept = io.BytesIO()
    # Docker knows an archive by its first block, which must not be a PAX header.
    with tarfile.open(fileobj=kept, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("agent/simagent", "systemd", "pyproject.toml", "README.md", "LICENSE"):
            archive.add(ROOT / name, name, filter=lambda i: None if "__pycache__" in i.name else i)
        for name, text in (("Dockerfile", DOCKERFILE), ("page/install.sh", install)):
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return kept.getvalue()


@pytest.fixture
def machines(
    docker_engine: Engine, moto: Moto, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Machine]]:
    """Three machines on which the page's first block was run."""
    engine = docker_engine
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    make_debian("trixie")
    install = "set -eu\nexport DEBIAN_FRONTEND=noninteractive\n" + blocks()["1. Install"][0]
    build = ("build", "--network", "host", "--tag", IMAGE, "-")
    engine.run(*build, stdin=packed(install), seconds=1500)
    # In the place of AWS; nothing that the page writes names it.
    env = {"AWS_ENDPOINT_URL": moto.endpoint, "AWS_EC2_METADATA_DISABLED": "true"}
    made = [Machine(engine, f"{what}-{uuid.uuid4().hex[:8]}", env) for what in ("one", "two", "me")]
    secrets = "\n".join(["[default]", *(f"{k.lower()} = {v}" for k, v in KEYS.items())])
    variables = "\n".join(f"{name}={value}" for name, value in env.items())
    try:
        for machine in made:
            host = machine.name.partition("-")[0]
            argv = ("run", "--detach", "--name", machine.name, "--hostname", f"vm-{host}")
            engine.run(*argv, *MACHINE, IMAGE, "-c", BOOT)
            machine(f"mkdir -p ~/.aws; echo '{secrets}' >~/.aws/credentials")
            machine(f"mkdir -p /etc/simagent; echo '{variables}' >/etc/simagent/agent.env")
        # They have the network of this host, and leave the firewall of the agent's unit there.
        had_rules = made[0]("nft list table inet simagent", check=False).startswith("table")
        yield made
        if not had_rules:
            made[0]("nft delete table inet simagent", check=False)
    finally:
        for machine in made:
            engine.run("rm", "--force", "--volumes", machine.name, check=False)


def until(machine: Machine, command: str, *words: str) -> None:
    """Ask systemd until it says one of the words."""
    wait(lambda: machine(f"systemctl {command} || true").strip() in words)


def wait(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not met():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.2)


def test_the_page_leads_to_a_fleet(machines: list[Machine]) -> None:
    page = blocks()
    one, two, me = machines
    for machine in machines:
        machine(page["1. Install"][1])
    (commands,) = page["2. Bucket and queues"]
    assert "compare-and-swap tried" in me(commands)
    (commands,) = page["3. Credentials"]
    me(commands + "grep -q s3:PutObject agent-policy.json; grep -q sqs:Send client-policy.json")
    (commands,) = page["4. The agents"]
    for machine in (one, two):
        until(machine, "is-system-running", "running", "degraded")
        assert "\nmissing" not in machine(commands)

    wait(lambda: me("simagent agents").count(" idle ") == 2)  # each shows itself once it has begun
    (commands,) = page["5. The first task"]
    said = me(commands)
    assert said.count(" idle ") == 2
    assert re.search(r"^vm-(one|two)$", said, re.MULTILINE)
    assert " succeeded" in said
    assert me("cat results/stdout.txt").startswith("vm-")

    drain, upgrade = page["From day to day"]
    two(drain)
    until(two, "is-active simagent", "inactive")
    one(upgrade)
    until(one, "is-active simagent", "active")
    again = me("simagent wait $(simagent submit task.toml)")
    assert " succeeded" in again
