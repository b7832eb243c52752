"""What the agent adds to Apptainer: steps against `apptainer exec`, pulls against its own."""

import gzip
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from shutil import which
from urllib.request import Request, urlopen

from bench.report import Result, show

_STEPS, _PULLS = 30, 2
_LAYER_BYTES = 200 << 20
_NOBODY = 65534


def run() -> list[Result]:
    """Measure both; nothing where Apptainer or a registry is missing."""
    missing = [name for name in ("apptainer", "docker-registry") if which(name) is None]
    if missing:
        print(f"apptainer: left out: {' and '.join(missing)} not installed", file=sys.stderr)
        return []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        return [_steps(folder), _pulls(folder)]


def _steps(folder: Path) -> Result:
    """Run `true` in turns: as a step of the runtime, and by hand with the same options."""
    from simagent.ports.runtime import Mount, Sandbox, StepPlan
    from simagent.runtimes.apptainer import ApptainerRuntime
    from simagent.runtimes.apptainer_box import Box
    from simagent.runtimes.process import ProcessRuntime

    root = folder / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "true").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin" / "true").chmod(0o755)
    sif = folder / "true.sif"
    subprocess.run(["apptainer", "--silent", "build", str(sif), str(root)], check=True)
    uid = os.geteuid() or _NOBODY
    runtime = ApptainerRuntime("apptainer", ProcessRuntime())
    bare, steps = [], []
    for number in range(_STEPS):
        attempt = folder / f"attempt-{number}"
        (attempt / "tmp").mkdir(parents=True)
        plan = StepPlan(
            folder=attempt / "steps",
            number=0,
            argv=("true",),
            cwd=Path("/"),
            stdout=attempt / "out",
            stderr=attempt / "err",
            sandbox=Sandbox(
                image=str(sif),
                uid=uid,
                gid=uid,
                mounts=(Mount(source=attempt / "tmp", target=PurePosixPath("/tmp")),),
            ),
        )
        began = time.perf_counter()
        ended = runtime.start(plan).wait(60)
        steps.append(time.perf_counter() - began)
        assert ended is not None
        assert ended.exit_code == 0, ended
        # The very same container, without the shim.
        box = Box(plan)
        box.write()
        outer = runtime._outer(plan, box)
        user = {} if os.geteuid() else {"user": uid, "group": uid, "extra_groups": []}
        began = time.perf_counter()
        subprocess.run(outer.argv, env=dict(outer.env), check=True, **user)  # type: ignore[call-overload]
        bare.append(time.perf_counter() - began)
    added = statistics.median(step - plain for step, plain in zip(steps, bare, strict=True))
    step, plain = statistics.median(steps), statistics.median(bare)
    return Result(
        "step `true` in Apptainer against `apptainer exec`",
        "≤ + 150 ms",
        f"{step * 1e3:.0f} ms, bare {plain * 1e3:.0f} ms, + {added * 1e3:.0f} ms",
        step / plain,
        added <= 0.150,
    )


def _pulls(folder: Path) -> Result:
    """Pull one image in turns, by the image cache and by hand, from a registry on loopback."""
    from simagent.domain.images import parse_image
    from simagent.runtimes.apptainer_images import ApptainerImages

    with _registry(folder) as address:
        _push(address)
        ours, plain = [], []
        for number in range(_PULLS):
            images = ApptainerImages("apptainer", folder / f"images-{number}")
            ours.append(_timed(lambda: images.ensure(parse_image(f"{address}/bench:1"))))  # noqa: B023
            argv = ["apptainer", "--silent", "pull", "--disable-cache", "--no-https"]
            argv += [str(folder / f"{number}.sif"), f"docker://{address}/bench:1"]
            plain.append(_timed(lambda: subprocess.run(argv, check=True)))  # noqa: B023
    mine, theirs = statistics.median(ours), statistics.median(plain)
    return Result(
        f"pull of {_LAYER_BYTES >> 20} MB for Apptainer against `apptainer pull`",
        "≤ 1 ×",
        f"{mine:.1f} s, bare {theirs:.1f} s",
        mine / theirs,
        mine <= theirs,
    )


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


class _registry:
    def __init__(self, folder: Path) -> None:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._settings = folder / "registry.json"
        storage = {"filesystem": {"rootdirectory": str(folder / "registry")}}
        self._settings.write_text(
            json.dumps({"version": 0.1, "storage": storage, "http": {"addr": self.address}})
        )

    def __enter__(self) -> str:
        argv = ["docker-registry", "serve", str(self._settings)]
        self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with suppress(OSError), urlopen(f"http://{self.address}/v2/", timeout=2):
                return self.address
            time.sleep(0.05)
        raise RuntimeError("the registry does not start")

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.wait()


def _push(address: str) -> None:
    """Push an image of this machine's libraries, as large as one of a simulator."""
    packed, size = io.BytesIO(), 0
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for file in sorted(Path("/usr/lib").rglob("*")):
            if size >= _LAYER_BYTES:
                break
            if file.is_file() and not file.is_symlink() and os.access(file, os.R_OK):
                archive.add(file)
                size += file.stat().st_size
    plain = packed.getvalue()
    layer = gzip.compress(plain, 1)
    config = {
        "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [_digest(plain)]},
    }
    about = json.dumps(config).encode()
    kind = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": _described(f"{kind}.config.v1+json", about),
        "layers": [_described(f"{kind}.layer.v1.tar+gzip", layer)],
    }
    for blob in (about, layer):
        with urlopen(Request(f"http://{address}/v2/bench/blobs/uploads/", method="POST")) as begun:
            place = str(begun.headers["Location"])
        _put(f"{place}&digest={_digest(blob)}", blob, "application/octet-stream")
    url = f"http://{address}/v2/bench/manifests/1"
    _put(url, json.dumps(manifest).encode(), f"{kind}.manifest.v1+json")


def _put(url: str, body: bytes, kind: str) -> None:
    with urlopen(Request(url, body, {"Content-Type": kind}, method="PUT")):
        pass


def _described(kind: str, content: bytes) -> dict[str, object]:
    return {"mediaType": kind, "digest": _digest(content), "size": len(content)}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


if __name__ == "__main__":
    show(run())
