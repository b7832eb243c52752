"""Fixtures of real engines; a test that asks for one is skipped where it is not installed."""

import itertools
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from engines import apptainer as apptainers
from engines import dockerd, registry, s3_servers
from engines.apptainer import Apptainer
from engines.dockerd import Engine
from engines.registry import Registry
from engines.s3_servers import RGW, SWIFT, S3Server
from engines.shared import alone, shared_engine, shared_s3

TINY = "simagent-tiny:1"
"""An image of BusyBox alone: a shell and small tools, 2 MB."""

_BUSYBOX = Path("/bin/busybox")


def _needs(why_not: str | None) -> None:
    if why_not is not None:
        pytest.skip(why_not)


def _make_tiny(engine: Engine) -> str:
    _needs(None if _BUSYBOX.exists() else "busybox is missing (make engines installs it)")
    with alone("tiny"):
        if engine.run("image", "inspect", TINY, check=False).returncode:
            names = subprocess.run([_BUSYBOX, "--list"], capture_output=True, text=True, check=True)
            tools = {f"bin/{name}": "busybox" for name in names.stdout.split() if name != "busybox"}
            engine.import_image(TINY, {"bin/busybox": _BUSYBOX, **tools}, 'CMD ["sh"]')
    return TINY


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[Engine]:
    """A running engine that all tests share: leave it running, and remove what you start in it."""
    _needs(dockerd.missing())
    with shared_engine() as engine:
        yield engine


@pytest.fixture
def private_docker() -> Iterator[Callable[..., Engine]]:
    """Start an engine with no images for this test alone, to be stopped, killed and frozen."""
    _needs(dockerd.missing())
    engines = []

    def start(within: Sequence[str] = ()) -> Engine:
        folder = Path(tempfile.mkdtemp(prefix="simagent-engine-", dir="/tmp"))
        folder.chmod(0o755)
        engine = Engine(folder, folder / "data", within)
        engines.append(engine)
        engine.start()
        return engine

    try:
        yield start
    finally:
        for engine in engines:
            engine.close()


@pytest.fixture(scope="session")
def tiny_image(docker_engine: Engine) -> str:
    """The name of an image of BusyBox alone, in the shared engine."""
    return _make_tiny(docker_engine)


@pytest.fixture(scope="session")
def load_tiny(docker_engine: Engine, tiny_image: str) -> Callable[[Engine], str]:
    """Bring the image of BusyBox into another engine, too; give its name."""
    return _make_tiny


@pytest.fixture(scope="session")
def make_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Registry]]:
    """Start a registry on loopback that ends with the session; ``login=True`` makes it private."""
    _needs(registry.missing())
    made: list[Registry] = []

    def start(*, login: bool = False) -> Registry:
        started = Registry(tmp_path_factory.mktemp("registry"), login=login)
        made.append(started)
        started.start()
        return started

    try:
        yield start
    finally:
        for each in made:
            each.stop()


@pytest.fixture(scope="session")
def image_registry(make_registry: Callable[..., Registry]) -> Registry:
    """A registry on loopback that all tests of a worker share."""
    return make_registry()


@pytest.fixture(scope="session")
def apptainer(tmp_path_factory: pytest.TempPathFactory) -> Apptainer:
    """The installed Apptainer."""
    _needs(apptainers.missing())
    return Apptainer(tmp_path_factory.mktemp("apptainer"))


@pytest.fixture(scope="session")
def make_sif(
    apptainer: Apptainer, docker_engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Make an image file for Apptainer of an image in the shared engine, once for each."""
    folder, made = tmp_path_factory.mktemp("sif"), dict[str, Path]()
    numbers = itertools.count()

    def make(image: str) -> Path:
        if image not in made:
            sif = folder / f"{next(numbers)}.sif"
            archive = sif.with_suffix(".tar")
            docker_engine.run("save", "--output", str(archive), image)
            made[image] = apptainer.build(sif, f"docker-archive:{archive}")
            archive.unlink()
        return made[image]

    return make


@pytest.fixture(scope="session")
def tiny_sif(make_sif: Callable[[str], Path], tiny_image: str) -> Path:
    """The image of BusyBox alone, for Apptainer."""
    return make_sif(tiny_image)


@pytest.fixture(scope="session")
def rgw(aws_credentials: None) -> Iterator[S3Server]:
    """Ceph RGW, which all tests share, and credentials for it in the environment."""
    _needs(s3_servers.missing(RGW))
    with shared_s3(RGW) as server:
        yield server


@pytest.fixture(scope="session")
def swift_s3() -> Iterator[S3Server]:
    """Swift with its S3 API, which all tests share: a server without conditional writes."""
    _needs(s3_servers.missing(SWIFT))
    with shared_s3(SWIFT) as server:
        yield server
