"""Images of a real Docker Engine, from real registries and files."""

import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from engines import registry as registries
from engines.dockerd import Engine
from engines.registry import Registry
from fakes.registry import FakeRegistry
from simagent.domain.images import parse_image
from simagent.domain.reasons import Reason
from simagent.ports.clock import Wake
from simagent.ports.images import ImageError, PullInterruptedError
from simagent.runtimes.docker_engine import DockerEngine
from simagent.runtimes.docker_images import DockerImages


@pytest.fixture
def engine(private_docker: Callable[[], Engine]) -> Engine:
    """An engine without images: what is pulled is new to it."""
    return private_docker()


@pytest.fixture
def images(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DockerImages:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "config"))
    return DockerImages(DockerEngine(engine.host), tmp_path / "images")


def failure(images: DockerImages, ref: str) -> ImageError:
    with pytest.raises(ImageError) as caught:
        images.ensure(parse_image(ref))
    assert "\n" not in str(caught.value)
    return caught.value


def variant(engine: Engine, name: str, text: bytes, *changes: str) -> str:
    """Make a small image that differs from others by a file."""
    return engine.import_image(name, {"bin/busybox": Path("/bin/busybox"), "text": text}, *changes)


@pytest.fixture
def pushed(docker_engine: Engine, tiny_image: str, image_registry: Registry) -> str:
    return image_registry.push(docker_engine, tiny_image, "tiny:1")


def test_a_tag_becomes_a_digest(
    images: DockerImages, image_registry: Registry, pushed: str, tmp_path: Path
) -> None:
    told: list[tuple[int, int | None]] = []
    ref = parse_image(f"docker://{pushed}")
    image = images.ensure(ref, progress=lambda *numbers: told.append(numbers))
    assert image.digest == image_registry.digest("tiny:1")
    assert image.ref == str(ref)
    assert image.user == ""
    assert told[-1][0] > 100_000
    (kept,) = images.kept()
    assert (kept.refs, kept.digest, kept.handle) == ((str(ref),), image.digest, image.handle)
    assert images.ensure(ref) == image, "the second time it is here"


def test_an_image_that_was_built_here_is_asked_for_at_no_registry(
    engine: Engine, images: DockerImages, tmp_path: Path
) -> None:
    variant(engine, "127.0.0.1:1/built/here:1", b"mine")
    image = images.ensure(parse_image("127.0.0.1:1/built/here:1"))
    assert image.digest == image.handle
    assert images.kept() == [], "it is not the agent's to remove"
    assert failure(images, "127.0.0.1:1/built/here:2").reason is Reason.IMAGE_PULL


def test_a_digest_needs_no_registry_once_it_is_here(
    engine: Engine, images: DockerImages, docker_engine: Engine, tiny_image: str,
    make_registry: Callable[..., Registry],
) -> None:  # fmt: skip
    registry = make_registry()
    full = registry.push(docker_engine, tiny_image, "tiny:1")
    ref = parse_image(f"{full}@{registry.digest('tiny:1')}")
    first = images.ensure(ref)
    registry.stop()
    assert images.ensure(ref) == first


def test_a_digest_is_the_same_image_wherever_it_is_from(
    images: DockerImages, docker_engine: Engine, image_registry: Registry, pushed: str
) -> None:  # fmt: skip
    other = image_registry.push(docker_engine, "simagent-tiny:1", "other:1")
    digest = image_registry.digest("other:1")
    assert digest == image_registry.digest("tiny:1")
    first = images.ensure(parse_image(pushed))
    again = images.ensure(parse_image(f"{other}@{digest}"))
    assert (again.handle, again.digest) == (first.handle, digest)
    (kept,) = images.kept()
    assert len(kept.refs) == 2
    assert images.remove(digest) > 1_000_000, "it is gone, by both names"


def test_while_the_registry_is_away_a_tag_is_what_it_last_was(
    images: DockerImages, docker_engine: Engine, tiny_image: str,
    make_registry: Callable[..., Registry],
) -> None:  # fmt: skip
    registry = make_registry()
    full = registry.push(docker_engine, tiny_image, "tiny:1")
    first = images.ensure(parse_image(full))
    registry.stop()
    assert images.ensure(parse_image(full)) == first
    error = failure(images, f"{registry.address}/tiny:2")
    assert (error.reason, error.retryable) == (Reason.IMAGE_PULL, True)


def test_a_tag_that_moved_is_fetched_anew(
    images: DockerImages, docker_engine: Engine, image_registry: Registry
) -> None:
    found = []
    for text in (b"one", b"two"):
        variant(docker_engine, "simagent-moving:1", text)
        full = image_registry.push(docker_engine, "simagent-moving:1", "moving:1")
        found.append(images.ensure(parse_image(full)))
    docker_engine.run("rmi", "simagent-moving:1")
    assert found[0].digest != found[1].digest
    old, new = images.kept()
    assert (old.digest, old.refs) == (found[0].digest, ())
    assert (new.digest, new.refs) == (found[1].digest, (found[1].ref,))
    for image in found:
        assert images.remove(image.digest) > 0
    assert images.kept() == []


def test_what_a_container_uses_is_not_removed(
    engine: Engine, images: DockerImages, pushed: str
) -> None:
    image = images.ensure(parse_image(pushed))
    engine.run("create", "--name", "user", image.handle, "true")
    assert images.remove(image.digest) == 0
    assert images.ensure(parse_image(pushed)) == image
    engine.run("rm", "user")
    assert images.remove(image.digest) > 1_000_000
    assert images.kept() == []
    assert engine.run("images", "--quiet", "--all").stdout == ""


def test_images_of_others_are_neither_listed_nor_removed(
    engine: Engine, images: DockerImages, pushed: str
) -> None:
    engine.run("pull", pushed)
    image = images.ensure(parse_image(pushed))
    assert images.kept() == []
    assert images.remove(image.digest) == 0
    engine.run("image", "inspect", pushed)


def test_a_name_that_others_gave_keeps_the_image(
    engine: Engine, images: DockerImages, pushed: str
) -> None:
    image = images.ensure(parse_image(pushed))
    engine.run("tag", pushed, "mine:1")
    assert images.remove(image.digest) == 0
    assert engine.run("images", "--format", "{{.Repository}}").stdout.split() == ["mine"]
    assert images.kept() == []


def test_a_pinned_image_stays(images: DockerImages, pushed: str) -> None:
    image = images.ensure(parse_image(pushed), pin=True)
    images.ensure(parse_image(pushed))
    assert [kept.pinned for kept in images.kept()] == [True]
    images.unpin(image.digest)
    assert [kept.pinned for kept in images.kept()] == [False]


def test_a_pinned_image_is_removed_by_who_names_it(images: DockerImages, pushed: str) -> None:
    image = images.ensure(parse_image(pushed), pin=True)
    assert images.remove(image.digest) > 0
    assert images.kept() == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [("tiny:none", Reason.IMAGE_NOT_FOUND), ("none:1", Reason.IMAGE_NOT_FOUND)],
)
def test_missing_images(
    images: DockerImages, image_registry: Registry, pushed: str, name: str, reason: Reason
) -> None:
    error = failure(images, f"{image_registry.address}/{name}")
    assert (error.reason, error.retryable) == (reason, False)
    assert name.split(":", maxsplit=1)[0] in str(error)


def test_a_digest_that_the_registry_does_not_have(images: DockerImages, pushed: str) -> None:
    assert failure(images, f"{pushed}@sha256:{'ab' * 32}").reason is Reason.IMAGE_NOT_FOUND


def test_a_private_registry(
    images: DockerImages, docker_engine: Engine, tiny_image: str, tmp_path: Path,
    make_registry: Callable[..., Registry],
) -> None:  # fmt: skip
    registry = make_registry(login=True)
    full = registry.push(docker_engine, tiny_image, "tiny:1")
    error = failure(images, full)
    assert error.reason is Reason.IMAGE_DENIED
    assert "docker login" in str(error)
    argv = ["--config", str(tmp_path / "config"), "login", "--password-stdin"]
    argv += ["--username", registries.USER, registry.address]
    docker_engine.run(*argv, stdin=registries.PASSWORD.encode())
    assert images.ensure(parse_image(full)).size_bytes > 0


@pytest.mark.filterwarnings("ignore:docker-credential-")
def test_a_docker_config_that_cannot_be_used(images: DockerImages, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    helper = {"credHelpers": {"registry.example": "no-such-helper"}}
    (tmp_path / "config" / "config.json").write_text(json.dumps(helper))
    error = failure(images, "registry.example/x:1")
    assert error.reason is Reason.IMAGE_DENIED
    assert "no-such-helper" in str(error)


def test_another_kind_of_processor(
    images: DockerImages, docker_engine: Engine, tiny_image: str, image_registry: Registry,
    tmp_path: Path,
) -> None:  # fmt: skip
    archive = tmp_path / "tiny.tar"
    docker_engine.run("save", "--output", str(archive), tiny_image)
    foreign = rewritten(archive, tmp_path / "foreign.tar", architecture="s390x")
    docker_engine.run("load", "--input", str(foreign))
    full = image_registry.push(docker_engine, "simagent-foreign:1", "foreign:1")
    docker_engine.run("rmi", "simagent-foreign:1")
    for ref in (full, f"docker-archive:{foreign}"):
        error = failure(images, ref)
        assert (error.reason, error.retryable) == (Reason.IMAGE_PLATFORM, False)
        assert "s390x" in str(error)
    assert images.kept() == []


def rewritten(archive: Path, target: Path, **changes: str) -> Path:
    """Write an archive of ``docker save`` anew, its image's settings changed."""
    with tarfile.open(archive) as source, tarfile.open(target, "w") as sink:
        (entry,) = json.loads(source.extractfile("manifest.json").read())  # type: ignore[union-attr]
        config = json.loads(source.extractfile(entry["Config"]).read()) | changes  # type: ignore[union-attr]
        text = json.dumps(config).encode()
        name = f"{hashlib.sha256(text).hexdigest()}.json"
        entry |= {"Config": name, "RepoTags": ["simagent-foreign:1"]}
        for path, content in ((name, text), ("manifest.json", json.dumps([entry]).encode())):
            member = tarfile.TarInfo(path)
            member.size = len(content)
            sink.addfile(member, io.BytesIO(content))
        for layer in entry["Layers"]:
            member = source.getmember(layer)
            sink.addfile(member, source.extractfile(member))
    return target


def test_a_file_of_docker_save_changes_no_name(
    engine: Engine, images: DockerImages, docker_engine: Engine, tiny_image: str, tmp_path: Path
) -> None:
    archive = tmp_path / "tiny.tar"
    docker_engine.run("save", "--output", str(archive), tiny_image)
    ref = parse_image(f"docker-archive:{archive}")
    image = images.ensure(ref)
    assert image.digest == f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    assert engine.run("image", "inspect", tiny_image, check=False).returncode != 0
    engine.run("image", "prune", "--force")
    assert images.ensure(ref) == image
    assert engine.run("run", "--rm", "--network", "none", image.handle, "echo", "runs").stdout
    assert images.remove(image.digest) > 1_000_000
    assert engine.run("images", "--quiet", "--all").stdout == ""


def oci_layout(saved: Path, target: Path, *, lie: bool = False) -> str:
    """Make an OCI layout of a file of ``docker save``; give the digest of its manifest."""
    blobs: dict[str, bytes] = {}

    def blob(content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"digest": f"sha256:{digest}", "size": len(content)}

    with tarfile.open(saved) as source:
        (entry,) = json.loads(source.extractfile("manifest.json").read())  # type: ignore[union-attr]
        config = blob(source.extractfile(entry["Config"]).read())  # type: ignore[union-attr]
        layers = [blob(source.extractfile(name).read()) for name in entry["Layers"]]  # type: ignore[union-attr]
    manifest = blob(json.dumps({"schemaVersion": 2, "config": config, "layers": layers}).encode())
    if lie:
        blobs[f"blobs/sha256/{str(config['digest'])[7:]}"] = b'{"a": "lie"}'
    blobs["index.json"] = json.dumps({"manifests": [manifest]}).encode()
    with tarfile.open(target, "w") as sink:
        for path, content in blobs.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            sink.addfile(member, io.BytesIO(content))
    return str(manifest["digest"])


def test_an_oci_archive(
    engine: Engine, images: DockerImages, docker_engine: Engine, tiny_image: str, tmp_path: Path
) -> None:
    saved, layout = tmp_path / "saved.tar", tmp_path / "layout.tar"
    docker_engine.run("save", "--output", str(saved), tiny_image)
    digest = oci_layout(saved, layout)
    image = images.ensure(parse_image(f"oci-archive:{layout}"))
    assert image.digest == digest
    assert engine.run("run", "--rm", "--network", "none", image.handle, "echo", "runs").stdout


def test_damaged_files(
    images: DockerImages, docker_engine: Engine, tiny_image: str, tmp_path: Path
) -> None:
    saved, bad = tmp_path / "saved.tar", tmp_path / "bad.tar"
    docker_engine.run("save", "--output", str(saved), tiny_image)
    oci_layout(saved, bad, lie=True)
    assert failure(images, f"oci-archive:{bad}").reason is Reason.IMAGE_CORRUPT
    content = saved.read_bytes()
    for damaged in (b"", b"no archive", content[: len(content) // 2]):
        bad.write_bytes(damaged)
        assert failure(images, f"docker-archive:{bad}").reason is Reason.IMAGE_CORRUPT
    bad.unlink()
    assert failure(images, f"docker-archive:{bad}").reason is Reason.IMAGE_NOT_FOUND
    assert images.kept() == []


@pytest.mark.parametrize("ref", ["file:///x/y.sif", "store://images/x.sif"])
def test_images_of_apptainer(images: DockerImages, ref: str) -> None:
    assert failure(images, ref).reason is Reason.IMAGE_UNUSABLE


def test_of_many_only_one_fetches(
    images: DockerImages, engine: Engine, pushed: str, tmp_path: Path
) -> None:
    found = []
    others = DockerImages(DockerEngine(engine.host), tmp_path / "images")
    threads = [
        threading.Thread(target=lambda i=i: found.append(i.ensure(parse_image(pushed))))
        for i in (images, others, images, others)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({image.digest for image in found}) == 1
    (kept,) = images.kept()
    assert kept.digest == found[0].digest


@pytest.mark.parametrize("stall_at", ["manifest", "layer"])
def test_a_registry_that_stalls(engine: Engine, tmp_path: Path, stall_at: str) -> None:
    with FakeRegistry(stall_at=stall_at) as registry:
        impatient = DockerImages(DockerEngine(engine.host), tmp_path / "images", silence=2.0)
        error = failure(impatient, f"{registry.address}/x:1")
        assert (error.reason, error.retryable) == (Reason.IMAGE_PULL, True)
        assert "2 s" in str(error)
    assert impatient.kept() == []


@pytest.mark.parametrize("stall_at", ["manifest", "layer"])
def test_a_pull_is_interrupted(engine: Engine, images: DockerImages, stall_at: str) -> None:
    wake = Wake()
    with FakeRegistry(stall_at=stall_at) as registry:

        def interrupt() -> None:
            registry.stalled.wait(60)
            wake.set()

        threading.Thread(target=interrupt).start()
        with pytest.raises(PullInterruptedError):
            images.ensure(parse_image(f"{registry.address}/x:1"), wake)
    assert images.kept() == []


def test_a_waiting_turn_is_interrupted(images: DockerImages, tmp_path: Path) -> None:
    wake = Wake()
    with FakeRegistry(stall_at="manifest") as registry:
        ref = parse_image(f"{registry.address}/x:1")
        first = Wake()

        def pull() -> None:
            with pytest.raises(PullInterruptedError):
                images.ensure(ref, first)

        thread = threading.Thread(target=pull)
        thread.start()
        assert registry.stalled.wait(60)
        wake.set()
        with pytest.raises(PullInterruptedError):
            images.ensure(ref, wake)
        first.set()
        thread.join()


@pytest.mark.parametrize("lie", ["layer", "manifest", "config"])
def test_a_registry_that_lies(images: DockerImages, engine: Engine, lie: str) -> None:
    with FakeRegistry(lie=lie) as registry:
        ref = f"{registry.address}/x@{registry.digest}"
        assert failure(images, ref).reason is Reason.IMAGE_CORRUPT
    assert images.kept() == []
    assert engine.run("images", "--quiet", "--all").stdout == ""


def test_an_honest_registry_of_ours(images: DockerImages) -> None:
    """The fake is right where it does not lie."""
    with FakeRegistry() as registry:
        image = images.ensure(parse_image(f"{registry.address}/x:1"))
        assert image.digest == registry.digest


def test_no_engine(tmp_path: Path) -> None:
    images = DockerImages(DockerEngine(f"unix://{tmp_path}/none.sock"), tmp_path / "images")
    error = failure(images, "127.0.0.1:1/x:1")
    assert (error.reason, error.retryable) == (Reason.RUNTIME_FAILED, True)
    assert "none.sock" in str(error)


def test_the_engine_dies_in_the_pull(engine: Engine, images: DockerImages) -> None:
    caught: list[ImageError] = []
    with FakeRegistry(stall_at="layer") as registry:

        def pull() -> None:
            caught.append(failure(images, f"{registry.address}/x:1"))

        thread = threading.Thread(target=pull)
        thread.start()
        assert registry.stalled.wait(60)
        engine.kill()
        thread.join(60)
    engine.start()
    assert [error.reason for error in caught] == [Reason.RUNTIME_FAILED]
    assert images.kept() == []


def test_the_disk_fills_in_the_pull(docker_engine: Engine, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("machine: a small disk is mounted by root alone")
    del docker_engine  # says whether an engine can be had
    folder = Path(tempfile.mkdtemp(prefix="simagent-engine-", dir="/tmp"))
    folder.chmod(0o755)
    small = Engine(folder, folder / "data")
    small.data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", small.data], check=True)
    try:
        small.start()
        images = DockerImages(DockerEngine(small.host), tmp_path / "images")
        with FakeRegistry(size=60_000_000) as registry:
            error = failure(images, f"{registry.address}/x:1")
        assert (error.reason, error.retryable) == (Reason.DISK_FULL, True)
        assert images.kept() == []
    finally:
        small.close(keep_data=True)
        subprocess.run(["umount", "-l", small.data], check=False)
        small.close()
