"""Containers without an engine: steps run on this host, images are only names."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from simagent.domain.images import ImageRef
from simagent.domain.reasons import Reason
from simagent.ports.clock import SystemClock, Waitable
from simagent.ports.images import Image, ImageError, KeptImage, Progress, PullInterruptedError
from simagent.ports.runtime import RuntimeFailedError, Step, StepPlan
from simagent.runtimes.process import ProcessRuntime

DIGEST = "sha256:" + "ab" * 32


@dataclass
class FakeImages:
    """Has every image at once, unless it is told to fail or to stall."""

    name: str = "docker"
    user: str = ""
    errors: list[ImageError] = field(default_factory=list)
    stalls: bool = False
    fetched: list[str] = field(default_factory=list)
    pins: set[str] = field(default_factory=set)
    asked: threading.Event = field(default_factory=threading.Event)

    def ensure(
        self, ref: ImageRef, *wakes: Waitable, progress: Progress | None = None, pin: bool = False
    ) -> Image:
        self.asked.set()
        if self.stalls:
            SystemClock().wait(None, *wakes)
            raise PullInterruptedError
        if self.errors:
            raise self.errors.pop(0)
        self.fetched.append(str(ref))
        if pin:
            self.pins.add(str(ref))
        if progress is not None:
            progress(1000, 1000)
        return Image(ref=str(ref), digest=DIGEST, handle="an image", size_bytes=1, user=self.user)

    def disk(self) -> Path | None:
        return None

    def kept(self) -> list[KeptImage]:
        return []

    def remove(self, digest: str, *, unused_since: float | None = None) -> int:
        return 0

    def unpin(self, digest: str) -> None:
        return


class FakeContainers:
    """A container runtime: only what its sandbox mounts is where the plan says."""

    def __init__(self, name: str = "docker") -> None:
        self.name = name
        self.broken: str | None = None
        self.away = threading.Event()
        """Whether it cannot tell what runs."""
        self.asked_in_vain = threading.Event()
        self.loses_answers = False
        """Whether it goes away before it says that it has started something."""
        self.plans: list[StepPlan] = []
        self._host = ProcessRuntime()

    def trouble(self) -> str | None:
        return self.broken

    def about(self) -> list[str]:
        return [self.broken or "containers without an engine"]

    def start(self, plan: StepPlan) -> Step:
        self.plans.append(plan)
        step = self._host.start(self._on_host(plan))
        if self.loses_answers:
            raise RuntimeFailedError(Reason.RUNTIME_FAILED, "the engine went away")
        return step

    def attach(self, plan: StepPlan) -> Step | None:
        if self.away.is_set():
            self.asked_in_vain.set()
            raise RuntimeFailedError(Reason.RUNTIME_FAILED, "the engine does not answer")
        return self._host.attach(self._on_host(plan) if plan.sandbox else plan)

    def keep_alive(self, folder: Path) -> None:
        self._host.keep_alive(folder)

    def reap(self, known: Callable[[Path], bool]) -> int:
        return 0

    @staticmethod
    def _on_host(plan: StepPlan) -> StepPlan:
        assert plan.sandbox is not None
        for mount in plan.sandbox.mounts:
            if plan.cwd.is_relative_to(mount.target):
                host = mount.source / plan.cwd.relative_to(mount.target)
                return replace(plan, cwd=host, sandbox=None)
        raise AssertionError(f"{plan.cwd} is not mounted")
