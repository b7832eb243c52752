"""The disk of `make vm-image` boots by its firmware, is configured, works, and powers off."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines.apptainer import Apptainer
from engines.dockerd import Engine
from fakes.aws import KEYS, Moto
from fakes.s3 import Bucket
from fleet.lab import Fleet
from shelf.images import build, image_file
from shelf.model import ROOT as SHELF
from shelf.model import load
from simagent.client import Tasks
from simagent.config_load import load_config
from simagent.domain.keys import AGENTS, TaskKeys
from simagent.domain.spec import Spec
from simagent.domain.state import State, Status
from simagent.wiring.tasks import open_tasks
from system import packages
from system.disks import HOST, Vm, build_disk, make_seed, missing

# An emulated machine, and this one may have much else to do.
BOOTS = 800.0
WORKS = 800.0
GOES = 400.0

IDLE = 10.0
STEPS = 50
MELT = f"""\
units           lj
lattice         fcc 0.8442
region          all block 0 5 0 5 0 5
create_box      1 all
create_atoms    1 box
mass            1 1.0
velocity        all create 1.44 87287 loop geom
pair_style      lj/cut 2.5
pair_coeff      1 1 1.0 1.0 2.5
fix             1 all nve
thermo          {STEPS}
run             {STEPS}
"""
AWS_KEYS = "[default]\n" + "".join(f"{name.lower()} = {value}\n" for name, value in KEYS.items())


class Servers:
    """What a machine finds on its host: a bucket, a queue."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.bucket = fleet.bucket
        self.client: Tasks = open_tasks(load_config(None, **self._settings()))

    def _settings(self, host: str = "127.0.0.1") -> dict[str, str]:
        moto, bucket = self._fleet.moto, self._fleet.bucket
        return {
            "queue": f"sqs://{self._fleet.queues}-{{group}}",
            "store": bucket.url,
            "s3_endpoint": bucket.endpoint.replace("127.0.0.1", host),
            "s3_region": bucket.region or moto.region,
            "sqs_endpoint": moto.endpoint.replace("127.0.0.1", host),
            "sqs_region": moto.region,
        }

    def agent_toml(self) -> str:
        """Write the settings of a machine's agent."""
        settings = self._settings(HOST) | {"idle_timeout": IDLE, "idle_action": "poweroff"}
        return "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())

    def is_ready(self) -> bool:
        """Tell whether an agent has shown itself."""
        found = self.bucket.client().list_objects_v2(Bucket=self.bucket.name)
        return any(AGENTS in each["Key"] for each in found.get("Contents", ()))

    def has_begun(self, task: TaskKeys) -> State | None:
        """Give the state of a task whose commands run, or have run."""
        state = self.client.state(task)
        return None if state.status in (Status.QUEUED, Status.PREPARING) else state

    def has_ended(self, task: TaskKeys) -> State | None:
        """Give the state of a task that is over."""
        state = self.client.state(task)
        return state if state.terminal else None


@pytest.fixture
def servers(moto: Moto, bucket: Bucket) -> Servers:
    return Servers(Fleet.on(bucket, moto))


@pytest.fixture(scope="session")
def lammps(docker_engine: Engine, apptainer: Apptainer) -> Path:
    """A file of LAMMPS for Apptainer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", docker_engine.host)
        simulator = load("lammps")
        build(simulator)
        image = image_file(simulator, "apptainer", SHELF.parent / "build" / "images")
    return Path(image.removeprefix("file://"))


@pytest.fixture(scope="session")
def disk(docker_engine: Engine, lammps: Path) -> Path:
    """The disk, with this checkout's agent and LAMMPS."""
    if why_not := missing():
        pytest.skip(why_not)
    return build_disk(packages.build("trixie", docker_engine), [lammps])


@pytest.fixture
def vm(disk: Path, tmp_path: Path) -> Iterator[Vm]:
    made = Vm(disk, tmp_path)
    yield made
    made.cut()


def test_from_power_on_to_power_off_by_credentials(
    vm: Vm, servers: Servers, lammps: Path, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    (tmp_path / "in.melt").write_text(MELT)
    task = submit(servers, lammps, tmp_path, ["lmp", "-in", "in.melt"], inputs=["in.melt"])
    began = time.monotonic()
    credentials = {"simagent.config": servers.agent_toml(), "simagent.aws": AWS_KEYS}
    vm.switch_on(credentials=credentials | REPORT)
    vm.until(servers.is_ready, BOOTS)
    ready = time.monotonic() - began
    vm.until(lambda: servers.has_begun(task), WORKS)
    first = time.monotonic() - began
    state = vm.until(lambda: servers.has_ended(task), WORKS)
    ended = time.monotonic() - began
    assert (state.status, state.reason) == (Status.SUCCEEDED, None), vm.told()
    assert state.attempts[-1].machine["limits"] == "cgroup"
    servers.client.download(task, [], tmp_path / "results")
    log = (tmp_path / "results" / "log.lammps").read_text()
    energies = [float(line.split()[4]) for line in log.splitlines() if IS_THERMO.match(line)]
    assert len(energies) == 2
    assert energies[0] == pytest.approx(energies[1], abs=0.01)  # it is conserved
    vm.goes_off(IDLE + GOES)
    off = time.monotonic() - began
    measured(
        f"from power-on, emulated: ready {ready:.0f} s, first command {first:.0f} s, "
        f"task over {ended:.0f} s, power off {off:.0f} s"
    )
    said = vm.said()
    starts, active = (
        int(found[1]) / 1e6
        for name in ("InactiveExit", "ActiveEnter")
        if (found := re.search(rf"{name}TimestampMonotonic=(\d+)", said))
    )
    measured(f"the agent took {active - starts:.1f} s, {starts:.0f} s after the kernel")
    assert re.search(r"EXT4-fs \(vda2\): resized filesystem", said), "its disk did not grow"
    assert "no unit has failed" in said, vm.told()
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in said


def test_cloud_init_configures_it(
    vm: Vm, servers: Servers, lammps: Path, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    task = submit(servers, lammps, tmp_path, ["lmp", "-help"])
    began = time.monotonic()
    files = [
        {"path": "/etc/simagent/agent.toml", "content": servers.agent_toml()},
        {"path": "/etc/credstore/simagent.aws", "content": AWS_KEYS, "permissions": "0600"},
    ]
    user_data = {"write_files": files, "hostname": "worker-7"}
    vm.switch_on(seed=make_seed(tmp_path / "seed.img", "#cloud-config\n" + json.dumps(user_data)))
    vm.until(servers.is_ready, BOOTS)
    ready = time.monotonic() - began
    state = vm.until(lambda: servers.has_ended(task), WORKS)
    assert (state.status, state.reason) == (Status.SUCCEEDED, None), vm.told()
    assert state.attempts[-1].agent.startswith("worker-7-")
    vm.goes_off(IDLE + GOES)
    measured(f"by cloud-init, from power-on, emulated: ready {ready:.0f} s")


def test_no_identity_no_keys_no_logs_are_on_the_disk(disk: Path) -> None:
    for path in (
        "/etc/hostname",
        "/var/lib/dbus/machine-id",
        "/etc/ssh/ssh_host_ed25519_key",
        "/etc/ssh/ssh_host_rsa_key",
        "/var/lib/systemd/random-seed",
        "/var/lib/systemd/credential.secret",
        "/etc/simagent/agent.toml",
        "/etc/simagent/agent.env",
        "/var/lib/simagent/identity.json",
        "/root/.ssh",
        "/var/lib/cloud/instance",
        "/var/tmp/simagent-vm",
        "/usr/sbin/policy-rc.d",
    ):
        assert "File not found" in look(disk, f"stat {path}"), path
    assert re.search(r"\bSize: 0$", look(disk, "stat /etc/machine-id"), re.MULTILINE)
    for folder in ("/var/log/journal", "/var/lib/cloud", "/var/tmp", "/tmp", "/root/.cache"):
        assert names(disk, folder) == set(), folder
    assert names(disk, "/var/log") <= {"README", "apt", "journal", "private", "runit"}
    assert names(disk, "/var/lib/simagent") <= {"images"}
    assert not any("mmdebstrap" in name for name in names(disk, "/etc/apt/apt.conf.d"))
    assert "stub-resolv.conf" in look(disk, "stat /etc/resolv.conf")
    users = [line.split(":") for line in look(disk, "cat /etc/shadow").splitlines() if ":" in line]
    assert all(user[1][:1] in ("!", "*") for user in users)


IS_THERMO = re.compile(rf" +(0|{STEPS})( +-?[\d.]+){{5}} *$")

REPORT = {
    # What the machine says of itself, on its console.
    "systemd.extra-unit.report.service": r"""
[Unit]
After=multi-user.target
[Service]
Type=oneshot
StandardOutput=journal+console
ExecStart=sh -c 'set -- $$(systemctl --failed --plain --no-legend | cut -d " " -f 1); \
    [ $$# = 0 ] && echo no unit has failed || systemctl status --no-pager --full "$$@"'
ExecStart=systemctl show simagent.service --property=InactiveExitTimestampMonotonic \
    --property=ActiveEnterTimestampMonotonic
""",
    "systemd.unit-dropin.multi-user.target": "[Unit]\nWants=report.service\n",
}


def submit(
    servers: Servers, image: Path, folder: Path, command: list[str], **fields: object
) -> TaskKeys:
    there = f"file:///usr/share/simagent/images/{image.name}"
    spec = {"image": there, "commands": [command], "time_limit": "10 min"} | fields
    return servers.client.submit(Spec.model_validate(spec), base=folder)


def look(disk: Path, request: str) -> str:
    """Look into the file system of the disk, without mounting it."""
    table = json.loads(run("/usr/sbin/sfdisk", "--json", str(disk)))["partitiontable"]
    at = next(each["start"] for each in table["partitions"] if each["name"] == "root") * 512
    return run("/usr/sbin/debugfs", "-R", request, f"{disk}?offset={at}")


def names(disk: Path, folder: str) -> set[str]:
    lines = look(disk, f"ls -p {folder}").splitlines()
    if any("File not found" in line for line in lines):
        return set()
    return {line.split("/")[5] for line in lines if line.count("/") > 5} - {".", ".."}


def run(*argv: str) -> str:
    return subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    ).stdout
