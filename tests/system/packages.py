"""The Debian package of what is in the checkout, once for each release, and a newer one of it."""

import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.dockerd import Engine
from shelf.images import make_debian
from shelf.model import ROOT

CHECKOUT = ROOT.parent
_BUILD = CHECKOUT / "systemd" / "debian" / "build.sh"
_PACKAGES = CHECKOUT / "build" / "deb"
NEWER = "0.9.9"
"""What the newer package says of itself."""


class PackageError(Exception):
    """The package is not built; the text ends with what was printed."""


def build(suite: str, engine: Engine) -> Path:
    """See to the package for a release of Debian, built anew where its sources have changed.

    Others who test wait for it: they would build the same.
    """
    with _BUILD.open() as script:
        fcntl.flock(script, fcntl.LOCK_EX)
        return _built(suite, engine)


def _built(suite: str, engine: Engine) -> Path:
    note = _PACKAGES / f"{suite}.source"
    key = _fingerprint()
    if note.exists():
        made, _, of = note.read_text().partition("\n")
        if of == key and Path(made).exists():
            return Path(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", engine.host)
        make_debian(suite)
    done = subprocess.run(
        [_BUILD, suite], env=engine.env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PackageError(f"{suite}: {done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    package = done.stdout.splitlines()[-1]
    note.write_text(f"{package}\n{key}")
    return Path(package)


def newer(package: Path, folder: Path) -> Path:
    """Make a package of a later version, whose programs say so."""
    root = folder / "root"
    subprocess.run(["dpkg-deb", "--raw-extract", package, root], check=True)
    control = root / "DEBIAN" / "control"
    was = next(w[9:] for w in control.read_text().splitlines() if w.startswith("Version: "))
    control.write_text(control.read_text().replace(f"Version: {was}", f"Version: {NEWER}"))
    (source,) = root.glob("opt/simagent/lib/python3.*/site-packages/simagent/__init__.py")
    own = was.partition("-")[0]
    assert f'"{own}"' in source.read_text()
    source.write_text(source.read_text().replace(f'"{own}"', f'"{NEWER}"'))
    for compiled in source.parent.glob("__pycache__/__init__.*"):
        compiled.unlink()
    made = folder / f"simagent_{NEWER}.deb"
    options = ["--root-owner-group", "-Zgzip", "-z1"]
    subprocess.run(
        ["dpkg-deb", *options, "--build", root, made], check=True, stdout=subprocess.DEVNULL
    )
    shutil.rmtree(root)
    return made


def _fingerprint() -> str:
    """Tell one state of the package's sources from another."""
    told = hashlib.sha256()
    for path in _sources():
        told.update(f"{path.relative_to(CHECKOUT)} {path.stat().st_mode}\n".encode())
        told.update(path.read_bytes())
    return told.hexdigest()


def _sources() -> Iterator[Path]:
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        yield CHECKOUT / name
    for folder in ("agent", "docs", "systemd"):
        files = sorted((CHECKOUT / folder).rglob("*"))
        yield from (f for f in files if "__pycache__" not in f.parts and f.is_file())
