"""Machines of disks: vm/build.sh makes one, QEMU boots it by its firmware, as a cloud would."""

import hashlib
import os
import shutil
import subprocess
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, TypeVar

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build" / "vm"
"""Of disks, kept from one run of the tests to the next."""

HOST = "10.0.2.2"
"""How a machine names the loopback of this host, in QEMU's own network."""

SIZE = 4096
"""MB of a machine's disk: more than the image has."""

_FIRMWARE = (
    # As Debian has it since bookworm, and before.
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
)
_LOOK_EVERY = 0.2
_T = TypeVar("_T")


def missing() -> str | None:
    """Say why no machine can be booted here, if that is so."""
    tools = ("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mcopy", "/usr/sbin/sfdisk")
    absent = [tool for tool in tools if shutil.which(tool) is None]
    if not any(Path(code).exists() for code, _ in _FIRMWARE):
        absent.append("OVMF")
    return f"missing: {', '.join(absent)} (make engines installs all)" if absent else None


def firmware() -> tuple[str, str]:
    """Name the files of the UEFI that is installed, and of its variables."""
    for code, variables in _FIRMWARE:
        if Path(code).exists():
            return code, variables
    raise FileNotFoundError("OVMF")


def build_disk(package: Path, images: Iterable[Path]) -> Path:
    """Build a raw disk with a package of simagent's and files of images, unless it is there."""
    images = tuple(images)
    found = hashlib.sha256()
    for file in sorted((ROOT / "vm").rglob("*")):
        if file.is_file():
            found.update(str(file).encode() + file.read_bytes())
    found.update(package.read_bytes())
    for image in images:
        found.update(f"{image.name} {image.stat().st_mtime_ns} {image.stat().st_size}".encode())
    note, disk = BUILT / "test" / "made-of", BUILT / "test" / "simagent.raw"
    if not (disk.exists() and note.exists() and note.read_text() == found.hexdigest()):
        note.unlink(missing_ok=True)
        settings = {
            "AGENT": str(package),
            "IMAGES": " ".join(map(str, images)),
            "FORMATS": "raw",
            "OUT": str(disk.parent),
        }
        subprocess.run([ROOT / "vm" / "build.sh"], env=os.environ | settings, check=True)
        note.write_text(found.hexdigest())
    return disk


class Vm:
    """A machine with a disk of its own, which is a copy."""

    def __init__(self, disk: Path, folder: Path) -> None:
        self.console = folder / "console.log"
        """What firmware, kernel, systemd and the agent say there."""
        self._folder = folder
        self._disk = folder / "disk.qcow2"
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(disk)]
        subprocess.run([*overlay, str(self._disk), f"{SIZE}M"], check=True)
        shutil.copy(firmware()[1], folder / "variables.fd")

    def switch_on(
        self, *, credentials: Mapping[str, str] | None = None, seed: Path | None = None
    ) -> None:
        """Boot it, with credentials of systemd's from the firmware, with a disk for cloud-init."""
        # No kernel is named, and none of the firmware's entries: it has to find the boot loader.
        argv = ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi"]
        argv += ["-cpu", "max", "-smp", "2", "-m", "2048", "-display", "none", "-no-reboot"]
        code = f"if=pflash,format=raw,readonly=on,file={firmware()[0]}"
        argv += ["-drive", code]
        argv += ["-drive", f"if=pflash,format=raw,file={self._folder / 'variables.fd'}"]
        argv += ["-drive", f"if=virtio,format=qcow2,cache=unsafe,file={self._disk}"]
        if seed is not None:
            argv += ["-drive", f"if=virtio,format=raw,readonly=on,file={seed}"]
        argv += ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"]
        argv += ["-device", "virtio-rng-pci", "-serial", f"file:{self.console}"]
        for name, text in (credentials or {}).items():
            file = self._folder / f"{name}.smbios"
            value = b64encode(text.encode()).decode()
            file.write_text(f"io.systemd.credential.binary:{name}={value}")
            argv += ["-smbios", f"type=11,path={file}"]
        self._log = (self._folder / "qemu.log").open("wb")
        # It ends with us, however we end.
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *argv],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    @property
    def is_on(self) -> bool:
        """Tell whether it runs."""
        return self._process is not None and self._process.poll() is None

    def until(self, look: Callable[[], _T | None], seconds: float) -> _T:
        """Look until there is something to see; where there is not, tell what the console shows."""
        deadline = time.monotonic() + seconds
        while (seen := look()) is None or seen is False:
            if time.monotonic() > deadline:
                raise AssertionError(f"waited in vain for {seconds:g} s: {self.told()}")
            if not self.is_on and not (seen := look()):
                raise AssertionError(f"it went off: {self.told()}")
            time.sleep(_LOOK_EVERY)
        return seen

    def goes_off(self, seconds: float) -> None:
        """Wait until it has powered itself off."""
        assert self._process is not None
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still on after {seconds:g} s: {self.told()}") from None
        assert code == 0, self.told()

    def said(self) -> str:
        """Give what its console shows."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def told(self) -> str:
        """Tell what may explain why something did not happen; the whole is kept."""
        kept = BUILT / f"console-{self._folder.name}.log"
        kept.write_text(self.said())
        log = (self._folder / "qemu.log").read_text(errors="replace")
        return f"{kept} has all of the console\n{self.said()[-6000:]}\n{log}"

    def cut(self) -> None:
        """Take its power away."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._log is not None:
            self._log.close()


def make_seed(file: Path, user_data: str, instance: str = "i-1") -> Path:
    """Make a disk of cloud-init's NoCloud kind."""
    folder = file.with_suffix(".d")
    folder.mkdir()
    (folder / "user-data").write_text(user_data)
    (folder / "meta-data").write_text(f"instance-id: {instance}\n")
    with file.open("wb") as made:
        made.truncate(4 * 2**20)
    subprocess.run(["/usr/sbin/mkfs.vfat", "-n", "CIDATA", file], check=True, capture_output=True)
    subprocess.run(
        ["mcopy", "-i", file, folder / "user-data", folder / "meta-data", "::"], check=True
    )
    return file
