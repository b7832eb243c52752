"""Builds images in the Docker Engine that DOCKER_HOST names, and files for Apptainer of them."""

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shelf.model import ROOT, Simulator

MPI_OF_DEBIAN = {"trixie": "5.0.7", "bookworm": "4.1.4"}
"""Debian's Open MPI, by release."""

_BASE = ROOT / "base" / "Dockerfile"

# Many times as fast as the default, for a few percent more bytes.
_FAST = ("--mksquashfs-args", "-comp zstd -Xcompression-level 1")


class BuildError(Exception):
    """An image was not built; the text ends with what was printed."""


def _run(*argv: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise BuildError(f"{' '.join(argv)}: exit code {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def _exists(image: str) -> bool:
    argv = ["docker", "image", "inspect", image]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def _docker_build(folder: Path, image: str, *options: str) -> None:
    # The network of the host, so that packages are fetched the way the host does.
    _run("docker", "build", "--network", "host", "--tag", image, *options, str(folder))


def make_debian(suite: str) -> None:
    """See to debian:SUITE-slim: there, pulled, or made of Debian's packages.

    Raises:
        BuildError: None of these.
    """
    image, script = f"debian:{suite}-slim", ROOT / "base-image.sh"
    # A second one would be another image, upon which all would be built anew.
    with _alone(script):
        if not _exists(image):
            try:
                _run("docker", "pull", "--quiet", image)
            except BuildError:
                _run(str(script), suite)


def build_base(suite: str) -> None:
    """Build simagent/base:SUITE.

    Raises:
        BuildError: It failed.
    """
    make_debian(suite)
    versions = [
        "--build-arg",
        f"SUITE={suite}",
        "--build-arg",
        f"MPI_VERSION={MPI_OF_DEBIAN[suite]}",
    ]
    _docker_build(ROOT / "base", f"simagent/base:{suite}", *versions)


def build(simulator: Simulator) -> None:
    """Build a simulator's image, and what it is based on.

    Raises:
        BuildError: It failed.
    """
    with _alone(_BASE):
        _build(simulator)


@contextmanager
def _alone(source: Path) -> Iterator[None]:
    """Wait for others who build of this: they would fetch and make the same things twice."""
    with source.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(simulator: Simulator) -> None:
    build_base(simulator.base)
    labels = {
        "org.opencontainers.image.title": simulator.name,
        "org.opencontainers.image.version": simulator.version,
        "org.opencontainers.image.description": simulator.about,
        "org.opencontainers.image.licenses": simulator.licence,
        "org.opencontainers.image.url": str(simulator.homepage),
    }
    options = [word for name, value in labels.items() for word in ("--label", f"{name}={value}")]
    _docker_build(simulator.folder, simulator.image, *options)


def image_file(simulator: Simulator, runtime: str, folder: Path) -> str:
    """Give the reference of a file of a simulator's image that a runtime takes, made if need be.

    Raises:
        BuildError: It failed.
    """
    with _alone(_BASE):
        return _image_file(simulator, runtime, folder)


def _image_file(simulator: Simulator, runtime: str, folder: Path) -> str:
    kind, ending, make = _FORMS[runtime]
    file = folder / f"{simulator.name}-{simulator.version}.{ending}"
    source = _run("docker", "image", "inspect", "--format", "{{.Id}}", simulator.image)
    note = file.with_name(f"{file.name}.source")
    if not (file.exists() and note.exists() and note.read_text() == source):
        folder.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        make(simulator, file)
        note.write_text(source)
    return f"{kind}{file}"


def _save(simulator: Simulator, archive: Path) -> None:
    _run("docker", "save", "--output", str(archive), simulator.image)
    archive.chmod(0o644)


def _make_sif(simulator: Simulator, sif: Path) -> None:
    env = dict(os.environ) | ({} if os.geteuid() else {"APPTAINER_USERNS": "1"})
    definition = simulator.folder / f"{simulator.name}.def"
    _run("apptainer", "build", "--force", *_FAST, str(sif), str(definition), env=env)


_FORMS = {
    "docker": ("docker-archive:", "tar", _save),
    "apptainer": ("file://", "sif", _make_sif),
}
