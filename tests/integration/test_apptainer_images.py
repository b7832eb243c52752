"""Images for Apptainer: from a real registry, one that misbehaves, from files and the store."""

import base64
import hashlib
import io
import json
import os
import pwd
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from engines.apptainer import Apptainer
from engines.dockerd import Engine
from engines.fixtures import TINY
from engines.registry import PASSWORD, USER, Registry
from fakes.capsules import NOBODY, as_user
from fakes.fronts import Front, front
from fakes.steps import LIMIT, until
from simagent.domain.images import parse_image
from simagent.domain.reasons import Reason
from simagent.ports.clock import Wake
from simagent.ports.images import Image, ImageError, PullInterruptedError
from simagent.runtimes.apptainer_images import ApptainerImages
from simagent.runtimes.sif import architecture
from simagent.stores.directory import DirectoryStore

NAME = "tools/tiny:1"


@pytest.fixture
def images(apptainer: Apptainer, tmp_path: Path) -> ApptainerImages:
    return ApptainerImages("apptainer", tmp_path / "images")


@pytest.fixture
def pushed(image_registry: Registry, docker_engine: Engine, tiny_image: str) -> str:
    return image_registry.push(docker_engine, tiny_image, NAME)


@pytest.fixture
def before(image_registry: Registry, pushed: str) -> Iterator[Front]:
    with front(image_registry.address) as made:
        yield made


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "docker-config"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    return folder


def ensure(images: ApptainerImages, ref: str, *wakes: Wake, pin: bool = False) -> Image:
    return images.ensure(parse_image(ref), *wakes, pin=pin)


def refused(images: ApptainerImages, ref: str) -> ImageError:
    with pytest.raises(ImageError) as caught:
        ensure(images, ref)
    assert "\n" not in str(caught.value)
    assert leftovers(images) == []
    return caught.value


def leftovers(images: ApptainerImages) -> list[str]:
    if not images.folder.exists():
        return []
    kept = {Path(image.handle).name for image in images.kept()}
    return sorted(set(os.listdir(images.folder)) - kept - {"records"})


def is_whole(image: Image, apptainer: Apptainer) -> bool:
    done = apptainer.run("--silent", "exec", image.handle, "/bin/busybox", "echo", "works")
    return done.stdout == "works\n"


def made_at(image: Image) -> int:
    return os.stat(image.handle).st_mtime_ns


@pytest.mark.skipif(os.geteuid() != 0, reason="machine: another user is root's to be")
def test_roots_agent_has_it_made_by_a_user_of_its_own(
    apptainer: Apptainer, docker_engine: Engine, tiny_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = {"simagent": pwd.getpwuid(NOBODY)}
    monkeypatch.setattr(pwd, "getpwnam", users.__getitem__)
    folder = Path(tempfile.mkdtemp(prefix="simagent-test-"))
    program, seen = folder / "apptainer", folder / "seen"
    program.write_text(f'#!/bin/sh\necho $1 $(id -u) >>{seen}\nexec apptainer "$@"\n')
    program.chmod(0o755)
    seen.touch()
    seen.chmod(0o666)
    try:
        folder.chmod(0o711)
        archive = folder / "tiny.tar"
        docker_engine.run("save", "--output", str(archive), tiny_image)
        archive.chmod(0o644)
        images = ApptainerImages(str(program), folder / "state" / "images")
        image = ensure(images, f"docker-archive:{archive}")
        assert f"--silent {NOBODY}\n" in seen.read_text()
        assert "--silent 0\n" not in seen.read_text()
        assert os.stat(image.handle).st_uid == 0
        assert leftovers(images) == []
        assert is_whole(image, apptainer)
        archive.chmod(0o600)
        os.utime(archive, (1, 1))
        images.remove(image.digest)
        assert ensure(images, f"docker-archive:{archive}").digest == image.digest
    finally:
        shutil.rmtree(folder)


def test_an_image_is_pulled_once(
    images: ApptainerImages, before: Front, apptainer: Apptainer, image_registry: Registry
) -> None:
    told: list[tuple[int, int | None]] = []
    ref = parse_image(f"{before.address}/{NAME}")
    image = images.ensure(ref, progress=lambda *args: told.append(args))
    assert image.digest == image_registry.digest(NAME)
    assert is_whole(image, apptainer)
    assert told[-1][1]
    assert image.size_bytes == os.path.getsize(image.handle)
    asked = len(before.asked)
    again = images.ensure(ref)
    assert (again.handle, again.digest) == (image.handle, image.digest)
    assert len(before.asked) == asked + 1, "to see what the tag means now"
    assert before.asked[-1].startswith("HEAD")
    (kept,) = images.kept()
    assert (kept.digest, kept.refs, kept.pinned) == (image.digest, (str(ref),), False)
    assert leftovers(images) == []


def test_by_digest_nobody_is_asked_for_what_is_here(
    images: ApptainerImages, before: Front, image_registry: Registry
) -> None:
    digest = image_registry.digest(NAME)
    ref = f"docker://{before.address}/tools/tiny@{digest}"
    image = ensure(images, ref)
    assert image.digest == digest
    asked = len(before.asked)
    ensure(images, ref)
    assert len(before.asked) == asked


def test_a_tag_that_moved_is_noticed(
    images: ApptainerImages, docker_engine: Engine, image_registry: Registry, pushed: str
) -> None:
    old = ensure(images, pushed)
    other = docker_engine.import_image("simagent-other:1", {"bin/sh": Path("/bin/busybox")})
    image_registry.push(docker_engine, other, NAME)
    try:
        new = ensure(images, pushed)
        assert new.digest == image_registry.digest(NAME) != old.digest
        assert Path(new.handle) != Path(old.handle)
        assert [image.refs for image in images.kept() if image.digest == old.digest] == [()]
    finally:
        image_registry.push(docker_engine, TINY, NAME)


def test_what_a_tag_last_meant_will_do_while_the_registry_is_away(
    images: ApptainerImages, before: Front
) -> None:
    ref = f"{before.address}/{NAME}"
    image = ensure(images, ref)
    before.status = 503
    assert ensure(images, ref).handle == image.handle
    error = refused(images, f"{before.address}/tools/other:1")
    assert (error.reason, error.retryable) == (Reason.IMAGE_PULL, True)


def test_an_image_that_does_not_exist(images: ApptainerImages, image_registry: Registry) -> None:
    for name in ("nothing/here:1", f"tools/tiny@sha256:{'0' * 64}"):
        error = refused(images, f"docker://{image_registry.address}/{name}")
        assert (error.reason, error.retryable) == (Reason.IMAGE_NOT_FOUND, False)
        assert name in str(error)


def test_a_registry_that_is_not_there(images: ApptainerImages, apptainer: Apptainer) -> None:
    error = refused(images, "127.0.0.1:9/tools/tiny:1")
    assert (error.reason, error.retryable) == (Reason.IMAGE_PULL, True)
    assert "refused" in str(error)


def test_a_private_registry(
    images: ApptainerImages,
    make_registry: Callable[..., Registry],
    docker_engine: Engine,
    pushed: str,
    no_login: Path,
) -> None:
    registry = make_registry(login=True)
    ref = registry.push(docker_engine, TINY, NAME)
    error = refused(images, ref)
    assert (error.reason, error.retryable) == (Reason.IMAGE_DENIED, False)
    assert "docker login" in str(error)
    for password, good in (("wrong", False), (PASSWORD, True)):
        auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
        config = {"auths": {registry.address: {"auth": auth}}}
        (no_login / "config.json").write_text(json.dumps(config))
        if good:
            assert ensure(images, ref).size_bytes
        else:
            error = refused(images, ref)
            assert error.reason is Reason.IMAGE_DENIED
            assert password not in str(error)


def test_a_manifest_that_lies(images: ApptainerImages, before: Front) -> None:
    before.alter = lambda path, body: body + b" " if "/manifests/" in path else body
    error = refused(images, f"{before.address}/{NAME}")
    assert error.reason is Reason.IMAGE_CORRUPT
    assert not error.retryable


def test_a_layer_that_lies(images: ApptainerImages, before: Front) -> None:
    before.alter = lambda path, body: (
        body[:-9] + b"x" * 9 if "/blobs/" in path and len(body) > 5000 else body
    )
    error = refused(images, f"{before.address}/{NAME}")
    assert error.reason is Reason.IMAGE_CORRUPT, str(error)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"no JSON", b'{"manifests": []}'])
def test_manifests_of_no_known_kind(images: ApptainerImages, before: Front, body: bytes) -> None:
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    before.alter = lambda _path, _body: body
    error = refused(images, f"docker://{before.address}/tools/tiny@{digest}")
    assert error.reason in (Reason.IMAGE_CORRUPT, Reason.IMAGE_PLATFORM)


def test_an_image_for_another_processor(images: ApptainerImages, before: Front) -> None:
    entry = {"digest": f"sha256:{'1' * 64}", "platform": {"os": "linux", "architecture": "vax"}}
    index = json.dumps({"manifests": [entry]}).encode()
    digest = f"sha256:{hashlib.sha256(index).hexdigest()}"
    before.alter = lambda _path, _body: index
    error = refused(images, f"docker://{before.address}/tools/tiny@{digest}")
    assert error.reason is Reason.IMAGE_PLATFORM
    assert "is for vax" in str(error)
    assert architecture() in str(error)


@pytest.mark.parametrize("part", ["/manifests/", "/blobs/"])
def test_a_registry_that_stalls(
    apptainer: Apptainer, tmp_path: Path, before: Front, part: str
) -> None:
    images = ApptainerImages("apptainer", tmp_path / "images", patience=2.0)
    before.alter = lambda path, body: None if part in path and len(body) != 0 else body
    begun = time.monotonic()
    error = refused(images, f"{before.address}/{NAME}")
    assert (error.reason, error.retryable) == (Reason.IMAGE_PULL, True)
    assert time.monotonic() - begun < LIMIT
    until(lambda: working(images) == [], "the end of what makes images")


def test_a_pull_is_interrupted_at_once_and_leaves_nothing(
    images: ApptainerImages, before: Front
) -> None:
    stalled = threading.Event()

    def alter(path: str, body: bytes) -> bytes | None:
        if "/blobs/" in path and len(body) > 5000:
            stalled.set()
            return None
        return body

    before.alter = alter
    wake = Wake()

    def interrupt() -> None:
        stalled.wait(LIMIT)
        wake.set()

    threading.Thread(target=interrupt).start()
    with pytest.raises(PullInterruptedError):
        ensure(images, f"{before.address}/{NAME}", wake)
    assert leftovers(images) == []
    assert images.kept() == []
    until(lambda: working(images) == [], "the end of what makes images")


def working(images: ApptainerImages) -> list[int]:
    """The processes that make images in the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(images.folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


PULL = """
import sys
from pathlib import Path
from simagent.domain.images import parse_image
from simagent.runtimes.apptainer_images import ApptainerImages
images = ApptainerImages("apptainer", Path(sys.argv[1]))
print(images.ensure(parse_image(sys.argv[2])).handle)
"""


def test_agents_and_threads_that_want_one_image_pull_it_once(
    images: ApptainerImages, before: Front, apptainer: Apptainer
) -> None:
    ref = f"{before.address}/{NAME}"
    argv = [sys.executable, "-c", PULL, str(images.folder), ref]
    others = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found: list[Image] = []
    threads = [threading.Thread(target=lambda: found.append(ensure(images, ref))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    handles = {other.communicate(timeout=LIMIT)[0].strip() for other in others}
    assert handles | {image.handle for image in found} == {found[0].handle}
    layers = [line for line in before.asked if "/blobs/" in line and line.startswith("GET")]
    assert len(layers) == len(set(layers)) + 1, "its configuration: by us, by Apptainer"
    assert is_whole(found[0], apptainer)


def test_what_an_agent_leaves_that_is_killed_in_a_pull_is_never_used(
    images: ApptainerImages, before: Front, apptainer: Apptainer
) -> None:
    stalled = threading.Event()

    def alter(path: str, body: bytes) -> bytes | None:
        if "/blobs/" in path and len(body) > 5000:
            stalled.set()
            return None
        return body

    before.alter = alter
    ref = f"{before.address}/{NAME}"
    agent = subprocess.Popen([sys.executable, "-c", PULL, str(images.folder), ref])
    assert stalled.wait(LIMIT)
    agent.kill()
    agent.wait()
    until(lambda: working(images) == [], "the end of what it had begun")
    assert leftovers(images)
    before.alter = lambda _path, body: body
    assert is_whole(ensure(images, ref), apptainer)
    assert leftovers(images) == []


@pytest.mark.parametrize("damage", ["empty", "short", "long", "gone", "other"])
def test_an_image_that_is_damaged_is_made_again(
    images: ApptainerImages, pushed: str, apptainer: Apptainer, damage: str
) -> None:
    image = ensure(images, pushed)
    file = Path(image.handle)
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(
            {
                "empty": b"",
                "short": content[:-1],
                "long": content + b"x",
                "other": b"x" * len(content),
            }[damage]
        )
    assert is_whole(ensure(images, pushed), apptainer)


def test_archives(
    images: ApptainerImages,
    docker_engine: Engine,
    tiny_image: str,
    tmp_path: Path,
    apptainer: Apptainer,
) -> None:
    archive = tmp_path / "tiny.tar"
    docker_engine.run("save", "--output", str(archive), tiny_image)
    image = ensure(images, f"docker-archive:{archive}")
    assert image.digest == f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    assert is_whole(image, apptainer)
    made = made_at(image)
    assert made_at(ensure(images, f"docker-archive:{archive}")) == made
    archive.write_bytes(archive.read_bytes()[:-20000])
    error = refused(images, f"docker-archive:{archive}")
    assert error.reason is Reason.IMAGE_CORRUPT
    archive.unlink()
    assert refused(images, f"oci-archive:{archive}").reason is Reason.IMAGE_NOT_FOUND


def test_an_oci_archive(
    images: ApptainerImages,
    image_registry: Registry,
    pushed: str,
    tmp_path: Path,
    apptainer: Apptainer,
) -> None:
    def blob(kind: str, digest: str) -> bytes:
        url = f"http://{image_registry.address}/v2/tools/tiny/{kind}/{digest}"
        docker = "application/vnd.docker.distribution.manifest.v2+json"
        with urlopen(Request(url, headers={"Accept": docker})) as answer:
            return bytes(answer.read())

    manifest = json.loads(blob("manifests", "1"))
    manifest["mediaType"] = "application/vnd.oci.image.manifest.v1+json"
    manifest["config"]["mediaType"] = "application/vnd.oci.image.config.v1+json"
    for layer in manifest["layers"]:
        layer["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip"
    described = json.dumps(manifest).encode()
    digest = f"sha256:{hashlib.sha256(described).hexdigest()}"
    entry = {"mediaType": manifest["mediaType"], "digest": digest, "size": len(described)}
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode(),
        f"blobs/{digest.replace(':', '/')}": described,
    }
    for part in (manifest["config"], *manifest["layers"]):
        files[f"blobs/{part['digest'].replace(':', '/')}"] = blob("blobs", part["digest"])
    archive = tmp_path / "tiny.tar"
    with tarfile.open(archive, "w") as packed:
        for name in ("blobs", "blobs/sha256"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            packed.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    assert is_whole(ensure(images, f"oci-archive:{archive}"), apptainer)


def test_a_file_is_used_where_it_lies(
    images: ApptainerImages, tiny_sif: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.sif"
    own.write_bytes(tiny_sif.read_bytes())
    image = ensure(images, f"file://{own}")
    assert image.handle == str(own)
    assert image.digest == f"sha256:{hashlib.sha256(own.read_bytes()).hexdigest()}"
    assert images.kept() == []
    assert images.remove(image.digest) == 0
    for content, why in ((b"", "0 bytes only"), (b"x" * 999, "is no SIF file")):
        own.write_bytes(content)
        error = refused(images, f"file://{own}")
        assert error.reason is Reason.IMAGE_CORRUPT
        assert why in str(error)
    cut = tiny_sif.read_bytes()[:-1]
    own.write_bytes(cut)
    assert f"{len(cut)} bytes of" in str(refused(images, f"file://{own}"))
    foreign = bytearray(tiny_sif.read_bytes())
    foreign[45:47] = b"11"
    own.write_bytes(foreign)
    error = refused(images, f"file://{own}")
    assert (error.reason, "is for s390x" in str(error)) == (Reason.IMAGE_PLATFORM, True)
    own.unlink()
    assert refused(images, f"file://{own}").reason is Reason.IMAGE_NOT_FOUND


def test_a_file_in_the_store(apptainer: Apptainer, tiny_sif: Path, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    images = ApptainerImages("apptainer", tmp_path / "images", store)
    content = tiny_sif.read_bytes()
    store.upload("images/tiny.sif", lambda: [content])
    image = ensure(images, "store://images/tiny.sif")
    assert image.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert is_whole(image, apptainer)
    made = made_at(image)
    assert made_at(ensure(images, "store://images/tiny.sif")) == made
    store.upload("images/tiny.sif", lambda: [b""])
    assert refused(images, "store://images/tiny.sif").reason is Reason.IMAGE_CORRUPT
    assert refused(images, "store://images/none.sif").reason is Reason.IMAGE_NOT_FOUND


def test_a_fleet_converts_an_image_once(
    apptainer: Apptainer, tmp_path: Path, before: Front
) -> None:
    store = DirectoryStore(tmp_path / "store")
    ref = f"{before.address}/{NAME}"

    def agent(name: str) -> ApptainerImages:
        return ApptainerImages("apptainer", tmp_path / name, store, sif_cache=True)

    def layers() -> int:
        return sum("/blobs/" in line for line in before.asked)

    first = ensure(agent("one"), ref)
    entries = [entry.key for entry in store.scan("images/cache/")]
    assert len(entries) == 2
    assert all(first.digest.replace(":", "_") in key for key in entries)
    once = layers()
    second = ensure(agent("two"), ref)
    assert layers() == once + 1, "its configuration alone"
    assert Path(second.handle).read_bytes() == Path(first.handle).read_bytes()
    (sif,) = [key for key in entries if key.endswith(".sif")]
    damaged = bytearray(Path(first.handle).read_bytes())
    damaged[-1] ^= 255
    store.upload(sif, lambda: [bytes(damaged)])
    third = ensure(agent("three"), ref)
    assert layers() > once + 2, "what is not what was written is not used"
    assert is_whole(third, apptainer)


def test_pinned_and_used_images_stay(
    images: ApptainerImages, pushed: str, apptainer: Apptainer
) -> None:
    image = ensure(images, pushed, pin=True)
    assert [kept.pinned for kept in images.kept()] == [True]
    images.unpin(image.digest)
    assert [kept.pinned for kept in images.kept()] == [False]
    argv = ["apptainer", "--silent", "exec", image.handle, "/bin/busybox", "sh", "-c"]
    user = subprocess.Popen(
        [*argv, "echo up; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=apptainer.env,
    )
    assert user.stdout is not None
    assert user.stdout.readline() == b"up\n"
    assert images.remove(image.digest) == 0
    user.communicate(b"\n", timeout=LIMIT)
    until(lambda: images.remove(image.digest) == image.size_bytes)
    assert images.kept() == []
    assert not Path(image.handle).exists()
    assert images.remove(image.digest) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_is_full(apptainer: Apptainer, tmp_path: Path, pushed: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "simagent", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("machine: a tmpfs cannot be mounted")
    try:
        images = ApptainerImages("apptainer", disk / "images")
        error = refused(images, pushed)
        assert (error.reason, error.retryable) == (Reason.DISK_FULL, True), str(error)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_agents_of_any_user_make_images(
    pushed: str, apptainer: Apptainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = (NOBODY, NOBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    folder = Path(tempfile.mkdtemp(prefix="simagent-test-"))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    import docker.auth  # noqa: F401 - what other users may not be able to read
    import spython.main.base  # noqa: F401

    try:
        os.chown(folder, *user)
        images = ApptainerImages("apptainer", folder / "images")
        image = as_user(user, lambda: ensure(images, pushed))
        assert os.stat(image.handle).st_uid == user[0]
        assert is_whole(image, apptainer)
        assert leftovers(images) == []
    finally:
        shutil.rmtree(folder)


def test_the_disk_they_will_lie_on_is_known_before(tmp_path: Path) -> None:
    assert ApptainerImages("apptainer", tmp_path / "a" / "b").disk() == tmp_path


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to be root's agent")
def test_the_files_are_for_the_tasks_user_and_nothing_else_is(
    images: ApptainerImages, pushed: str
) -> None:
    images.folder.parent.chmod(0o700)
    before = os.umask(0o077)
    try:
        image = ensure(images, pushed)
    finally:
        os.umask(before)
    assert os.stat(image.handle).st_mode & 0o777 == 0o644
    assert os.stat(images.folder).st_mode & 0o777 == 0o711
    assert os.stat(images.folder.parent).st_mode & 0o777 == 0o711
    assert os.stat(images.folder / "records").st_mode & 0o077 == 0


def test_a_proxy_is_used(
    images: ApptainerImages, before: Front, monkeypatch: pytest.MonkeyPatch, apptainer: Apptainer
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{before.address}")
    images = ApptainerImages("apptainer", images.folder, insecure_registries=["registry.example"])
    assert is_whole(ensure(images, "registry.example/tools/tiny:1"), apptainer)
    assert all(" http://registry.example/v2/" in line for line in before.asked)
