"""What `simagent images` does."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import typer

from simagent.cli.progress import progress_bar
from simagent.cli.text import columns, moment, put, put_json, say, size
from simagent.client import ClientError, UsageError
from simagent.config import Config
from simagent.domain.images import ImageKind, ImageRef, parse_image
from simagent.ports.images import ImageError, Images, KeptImage
from simagent.wiring.machine import open_images, open_runtimes
from simagent.worker.choice import CONTAINERS, NoRuntimeError, choose_for
from simagent.worker.journal import Journals


@dataclass(frozen=True, slots=True)
class _Kept:
    runtime: str
    image: KeptImage


def list_images(config: Config, *, as_json: bool) -> None:
    """Print the images of all runtimes, the least recently used last."""
    kept = sorted(_kept(open_images(config)), key=lambda kept: -kept.image.used)
    if as_json:
        put_json([_described(one) for one in kept])
        return
    if not kept:
        put("no images were fetched so far")
        return
    rows = [("IMAGE", "RUNTIME", "SIZE", "USED", "DIGEST"), *map(_cells, kept)]
    for line in columns(rows):
        put(line)


def pull_images(config: Config, texts: Sequence[str], *, runtime: str | None, pin: bool) -> None:
    """Fetch images, and print their digests. Raises `ClientError`, `UsageError`."""
    refs = [_parsed(text) for text in texts]
    _check_runtime(runtime)
    wanted = config.runtimes if runtime is None else (runtime,)
    for ref in refs:
        if runtime == "docker" and ref.kind in (ImageKind.SIF, ImageKind.STORE):
            raise UsageError(f"--runtime: docker cannot run {ref}: use apptainer")
    runtimes, images = open_runtimes(config), open_images(config)
    for ref in refs:
        try:
            name = choose_for(ref, runtimes, wanted)
            with progress_bar(str(ref)) as bar:
                progress = bar.reach if bar is not None else None
                image = images[name].ensure(ref, progress=progress, pin=pin)
        except (NoRuntimeError, ImageError) as error:
            text = str(error)
            raise ClientError(text if str(ref) in text else f"{ref}: {text}") from error
        put(f"{image.ref}  {image.digest}  {size(image.size_bytes)}, for {name}")


def prune_images(config: Config, texts: Sequence[str], *, runtime: str | None, yes: bool) -> None:
    """Remove images, and print what was freed. Raises `ClientError`, `UsageError`."""
    names = {str(_parsed(text)) for text in texts}
    _check_runtime(runtime)
    images = open_images(config)
    in_use = Journals(config.state_dir).handles() if config.state_dir.exists() else set()
    found = [one for one in _kept(images) if runtime in (None, one.runtime)]
    if names:
        missing = names - {ref for one in found for ref in one.image.refs}
        if missing:
            raise UsageError(
                f"{', '.join(sorted(missing))}: no such image was fetched here "
                "(`simagent images list` lists them)"
            )
        found = [one for one in found if names & set(one.image.refs)]
    else:
        found = [one for one in found if not one.image.pinned]
    busy = [one for one in found if one.image.handle in in_use]
    found = [one for one in found if one.image.handle not in in_use]
    for one in busy:
        say(f"{_name(one.image)} is in use, and stays")
    if not found:
        put("no images to remove")
        return
    total = sum(one.image.size_bytes for one in found)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("--yes: nobody is here to be asked: add it to remove the images")
        if not typer.confirm(f"Remove {len(found)} images ({size(total)})?", err=True):
            return
    _remove(images, found)


def _remove(images: dict[str, Images], found: Sequence[_Kept]) -> None:
    stayed = []
    for one in found:
        kept = images[one.runtime]
        try:
            freed = kept.remove(one.image.digest)
        except ImageError as error:
            raise ClientError(f"{_name(one.image)}: {error}") from error
        if one.image.digest in {image.digest for image in kept.kept()}:
            stayed.append(_name(one.image))
        else:
            put(f"{_name(one.image)}  {size(freed)} freed")
    if stayed:
        raise ClientError(
            f"{', '.join(stayed)}: not removed: a container uses it, or its engine does not answer"
        )


def _kept(images: dict[str, Images]) -> Iterator[_Kept]:
    for name, kept in images.items():
        for image in kept.kept():
            yield _Kept(name, image)


def _parsed(text: str) -> ImageRef:
    try:
        return parse_image(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _check_runtime(runtime: str | None) -> None:
    if runtime is not None and runtime not in CONTAINERS:
        raise UsageError(f"--runtime: {runtime!r} runs no images: use {' or '.join(CONTAINERS)}")


def _name(image: KeptImage) -> str:
    return image.refs[0] if image.refs else image.digest


def _cells(one: _Kept) -> tuple[str, ...]:
    image = one.image
    name = f"{_name(image)} (pinned)" if image.pinned else _name(image)
    return name, one.runtime, size(image.size_bytes), moment(image.used), image.digest[:19]


def _described(one: _Kept) -> dict[str, object]:
    image = one.image
    return {
        "refs": list(image.refs),
        "runtime": one.runtime,
        "digest": image.digest,
        "bytes": image.size_bytes,
        "used": image.used,
        "pinned": image.pinned,
    }
