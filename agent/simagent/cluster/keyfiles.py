"""Keys for ssh, and the small files around them."""

import fcntl
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_KEYGEN_LIMIT = 30.0


class KeyFileError(Exception):
    """A key cannot be made or read; the message says where and why."""


def make_key(path: Path) -> str:
    """Give the public half of the key in the file ``path``, which is made if there is none.

    Without a comment. Any thread or process may ask first. Raises `KeyFileError`.
    """
    public = path.with_name(f"{path.name}.pub")
    try:
        if not (path.exists() and public.exists()):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _alone(path.parent):
                if not path.exists():
                    _make(path, public)
                if not public.exists():
                    write(public, _keygen("-y", "-f", str(path)), 0o644)
        return " ".join(public.read_text(encoding="ascii").split()[:2])
    except FileNotFoundError as error:
        what = "install openssh-client" if error.filename == "ssh-keygen" else error
        raise KeyFileError(f"ssh-keygen not found: {what}") from None
    except (OSError, ValueError) as error:
        raise KeyFileError(f"{path}: {error}") from None
    except subprocess.SubprocessError as error:
        said = getattr(error, "stderr", None)
        raise KeyFileError(f"{path}: ssh-keygen: {said.strip() if said else error}") from None


def write(path: Path, text: str, mode: int) -> None:
    """Write a file as a whole. Raises OSError."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(fd, mode)
    part.replace(path)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the only one who makes a key there: halves of two would not fit each other."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _make(path: Path, public: Path) -> None:
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    part_public = part.with_name(f"{part.name}.pub")
    try:
        _keygen("-q", "-t", "ed25519", "-N", "", "-C", "simagent", "-f", str(part))
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        part_public.replace(public)
        part.replace(path)
    finally:
        for left in (part, part_public):
            with suppress(FileNotFoundError):
                left.unlink()


def _keygen(*args: str) -> str:
    return subprocess.run(
        ["ssh-keygen", *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_KEYGEN_LIMIT,
        check=True,
    ).stdout
