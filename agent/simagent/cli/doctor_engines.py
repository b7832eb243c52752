"""What `simagent doctor` and `simagent config check` find of the state folder, store and queue."""

import os
import secrets
from collections.abc import Iterator
from typing import Literal

from simagent.cli.finding import Check
from simagent.cli.text import size
from simagent.config import Config
from simagent.engines import open_store, try_queue
from simagent.ports.queue import QueueError
from simagent.ports.store import StoreError
from simagent.worker.disk import free_bytes

_LITTLE_SPACE = 2**30


def state_dir(config: Config) -> Iterator[Check]:
    """Tell whether the state folder can be written to, and what is free there."""
    path = config.state_dir
    existing = next(p for p in (path, *path.parents) if p.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        yield Check("state folder", "ok", str(path))
    else:
        fix = "name another with --state-dir, or SIMAGENT_STATE_DIR"
        yield Check("state folder", "missing", f"{existing} cannot be written to", fix)
    free = free_bytes(existing)
    fix = "simagent prune --older-than 30d, or name another --state-dir"
    text = f"{size(free)} free in {existing}"
    if free < config.min_free:
        text += f", less than min_free ({size(config.min_free)}): no task is taken"
        yield Check("disk", "missing", text, fix)
    elif free < _LITTLE_SPACE:
        yield Check("disk", "note", text, fix)
    else:
        yield Check("disk", "ok", text)


def store(config: Config) -> Iterator[Check]:
    """Try the store, with an object that is removed again."""
    key = f"checks/{secrets.token_hex(8)}"
    try:
        tried = open_store(config, prove=True)
        etag = tried.put(key, b"1", if_absent=True)
        tried.put(key, b"2", if_match=etag)
        works = tried.get(key).data == b"2"
        tried.delete(key)
    except (StoreError, OSError) as error:
        yield _failed("store", config.store_url, error)
        return
    verdict: Literal["ok", "missing"] = "ok" if works else "missing"
    yield Check("store", verdict, f"{config.store_url}: compare-and-swap tried")


def queue(config: Config) -> Iterator[Check]:
    """Try the queue; no agent hears it."""
    try:
        found = try_queue(config)
    except (QueueError, OSError) as error:
        yield _failed("queue", config.queue_url, error)
        return
    yield Check("queue", "ok", f"{config.queue_url}: {found}")


def _failed(name: str, url: str, error: Exception) -> Check:
    if url.startswith(("s3:", "sqs:")):  # the error says where, and what to do
        return Check(name, "missing", str(error))
    return Check(name, "missing", f"{url}: {error}", f"name another with --{name}")
