"""Lets an engine fetch an image, watches that it gets on, and says what went wrong."""

import select
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from simagent.domain.images import ImageRef
from simagent.domain.reasons import Reason
from simagent.ports.clock import Waitable, Wake, poll_timeout
from simagent.ports.images import ImageError, Progress, PullInterruptedError
from simagent.runtimes.docker_engine import (
    DockerEngine,
    EngineAwayError,
    EngineRefusedError,
    EngineStream,
)

_LOCAL = ("Extracting", "Verifying Checksum", "Download complete", "Pull complete")
LOCAL_SILENCE = 180.0
"""Seconds without news while all is here and the engine's disk is at work."""

# What an engine says, in lower case, and what it means; the first that fits counts.
_MEANINGS = (
    ("no space left on device", Reason.DISK_FULL, "make room where the engine keeps its data"),
    ("disk quota exceeded", Reason.DISK_FULL, "make room where the engine keeps its data"),
    # Docker Hub's answer to both, so that nobody learns which private images there are.
    ("repository does not exist or may require", Reason.IMAGE_NOT_FOUND, "check the name, log in"),
    ("no matching manifest", Reason.IMAGE_PLATFORM, "build it for this machine's processor, too"),
    ("does not match the specified platform", Reason.IMAGE_PLATFORM, "build it for this machine"),
    ("cannot be used on this platform", Reason.IMAGE_PLATFORM, "build it for this machine"),
    ("verification failed", Reason.IMAGE_CORRUPT, "push the image again"),
    ("invalid checksum digest", Reason.IMAGE_CORRUPT, "push the image again"),
    ("does not match digest", Reason.IMAGE_CORRUPT, "push the image again"),
    ("unexpected commit digest", Reason.IMAGE_CORRUPT, "push the image again"),
    ("layers from manifest don't match", Reason.IMAGE_CORRUPT, "push the image again"),
    ("invalid diffid for layer", Reason.IMAGE_CORRUPT, "push the image again"),
    ("mismatch", Reason.IMAGE_CORRUPT, "push the image again"),
    ("invalid manifest", Reason.IMAGE_CORRUPT, "push the image again"),
    ("unsupported manifest", Reason.IMAGE_CORRUPT, "push the image again"),
    ("unsupported media type", Reason.IMAGE_CORRUPT, "push the image again"),
    ("mediatype in manifest", Reason.IMAGE_CORRUPT, "push the image again"),
    ("missing schemaversion", Reason.IMAGE_CORRUPT, "push the image again"),
    ("invalid tar header", Reason.IMAGE_CORRUPT, "push the image again"),
    ("gzip: invalid", Reason.IMAGE_CORRUPT, "push the image again"),
    ("error processing tar file", Reason.IMAGE_CORRUPT, "push the image again"),
    ("invalid character", Reason.IMAGE_CORRUPT, "is this a registry at all?"),
    ("permission denied", Reason.RUNTIME_FAILED, "the engine may not do that: see its log"),
    ("toomanyrequests", Reason.IMAGE_PULL, "the registry asks to come back later"),
    ("unauthorized", Reason.IMAGE_DENIED, "log in as the agent's user: docker login"),
    ("denied", Reason.IMAGE_DENIED, "log in as the agent's user: docker login"),
    ("no basic auth credentials", Reason.IMAGE_DENIED, "log in as the agent's user: docker login"),
    ("authentication required", Reason.IMAGE_DENIED, "log in as the agent's user: docker login"),
    ("forbidden", Reason.IMAGE_DENIED, "may this user read it?"),
    ("manifest unknown", Reason.IMAGE_NOT_FOUND, "check the name and the tag"),
    ("name unknown", Reason.IMAGE_NOT_FOUND, "check the name"),
    ("not found", Reason.IMAGE_NOT_FOUND, "check the name and the tag"),
    ("http response to https client", Reason.IMAGE_PULL, "list it as one of insecure-registries"),
    ("x509:", Reason.IMAGE_PULL, "give the engine the registry's certificate (certs.d)"),
)
_HOPELESS = ("http response to https client", "x509:")


class Job:
    """Something that the engine does, and tells of line by line, in a thread of its own."""

    def __init__(self, begin: Callable[[], EngineStream]) -> None:
        self.news = Wake()
        self.failure: Exception | None = None
        self.error = ""
        self.said: list[str] = []
        self.moved = 0
        self.over = False
        self._begin = begin
        self._stream: EngineStream | None = None
        self._layers: dict[str, tuple[str, int, int | None]] = {}
        self._aborted = False
        threading.Thread(target=self._run, name="image job", daemon=True).start()

    @property
    def done(self) -> tuple[int, int | None]:
        """Give how many bytes have come, and of how many, where that is known."""
        layers = list(self._layers.values())
        totals = [total for _, _, total in layers]
        known = bool(totals) and None not in totals
        return sum(current for _, current, _ in layers), sum(
            filter(None, totals)
        ) if known else None

    @property
    def local(self) -> bool:
        """Tell whether all has come, and only the engine's disk is at work."""
        layers = list(self._layers.values())
        return bool(layers) and all(status in _LOCAL for status, _, _ in layers)

    def abort(self) -> None:
        """Break it off. What hangs without having said anything gives up by itself."""
        self._aborted = True
        if self._stream is not None:
            self._stream.close()

    def _run(self) -> None:
        try:
            self._stream = self._begin()
            if self._aborted:
                self._stream.close()
            for event in self._stream:
                self._note(event)
                self.news.set()
        except Exception as error:  # noqa: BLE001 - nothing that fails may pass for done
            self.failure = error
        finally:
            self.over = True
            self.news.set()

    def _note(self, event: Mapping[str, Any]) -> None:
        if event.get("error"):
            self.error = " ".join(str(event["error"]).split())
        text = str(event.get("status") or event.get("stream") or "").strip()
        layer, detail = event.get("id"), event.get("progressDetail") or {}
        if layer is None or text.startswith("Pulling from"):
            self.said.append(text)
            self.moved += 1
            return
        if text.startswith("Retrying"):
            return  # it says so each second, and gets nowhere
        before = self._layers.get(layer, ("", 0, None))
        current, total = before[1:]
        if text == "Downloading":
            current, total = detail.get("current", current), detail.get("total", total)
        elif text in _LOCAL:
            current = total if total is not None else current
        elif text == "Already exists":
            text, total = _LOCAL[-1], 0
        now = (text, current, total)
        if now != before or text == "Extracting":
            self.moved += 1
        self._layers[layer] = now


def attend(
    job: Job, *wakes: Waitable, progress: Progress | None, silence: float, what: str
) -> None:
    """Wait until the job is over.

    Raises `PullInterruptedError`, and `ImageError` where it made no progress for ``silence``
    seconds or failed; ``what`` says what it is about.
    """
    moved, since = -1, time.monotonic()
    while not job.over:
        poller = select.poll()
        for source in (job.news, *wakes):
            poller.register(source.fileno(), select.POLLIN)
        ready = {fd for fd, _ in poller.poll(poll_timeout(1.0))}
        if ready - {job.news.fileno()}:
            job.abort()
            raise PullInterruptedError
        job.news.clear()
        if job.moved != moved:
            moved, since = job.moved, time.monotonic()
            if progress is not None:
                progress(*job.done)
        limit = max(silence, LOCAL_SILENCE) if job.local else silence
        if time.monotonic() - since > limit:
            job.abort()
            message = f"{what}: nothing came for {limit:g} s: is the registry in order?"
            raise ImageError(Reason.IMAGE_PULL, message, retryable=True)
    if progress is not None:
        progress(*job.done)
    if job.failure is not None:
        raise explain(what, job.failure)
    if job.error:
        raise _meaning(what, job.error)


def pull(
    engine: DockerEngine, ref: ImageRef, *wakes: Waitable, progress: Progress | None, silence: float
) -> tuple[str, bool]:
    """Fetch an image of a registry; give its digest, and whether it was not here before.

    Raises `PullInterruptedError` and `ImageError`.
    """
    what = f"image {ref}"

    def begin() -> EngineStream:
        try:
            login = engine.login(ref.registry)
        except ValueError as error:
            raise ImageError(
                Reason.IMAGE_DENIED, f"{what}: the docker config cannot be used: {error}"
            ) from error
        params = {"fromImage": ref.repository, "tag": ref.digest or ref.tag}
        return engine.stream("/images/create", params, headers=login, silence=LOCAL_SILENCE)

    job = Job(begin)
    attend(job, *wakes, progress=progress, silence=silence, what=what)
    digest = next((s.split()[1] for s in job.said if s.startswith("Digest: ")), ref.digest)
    if not digest or (ref.digest and digest != ref.digest):
        message = f"{what}: the engine fetched {digest or 'something without a digest'} instead"
        raise ImageError(Reason.IMAGE_CORRUPT, message)
    return digest, any(s.startswith("Status: Downloaded") for s in job.said)


def explain(what: str, failure: Exception) -> ImageError:
    """Say what an engine's failure means."""
    if isinstance(failure, ImageError):
        return failure
    if isinstance(failure, EngineRefusedError):
        return _meaning(what, str(failure))
    why = str(failure) if isinstance(failure, EngineAwayError) else repr(failure)
    return ImageError(Reason.RUNTIME_FAILED, f"{what}: {why}", retryable=True)


def _meaning(what: str, text: str) -> ImageError:
    lower = text.lower()
    for sign, reason, hint in _MEANINGS:
        if sign in lower:
            retryable = reason in (Reason.IMAGE_PULL, Reason.DISK_FULL) and sign not in _HOPELESS
            return ImageError(reason, f"{what}: {text} ({hint})", retryable=retryable)
    message = f"{what}: {text} (can the engine reach the registry?)"
    return ImageError(Reason.IMAGE_PULL, message, retryable=True)
