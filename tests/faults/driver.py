"""A real agent whose engines are wrapped, so that each call is a point at which it can be hurt.

    python driver.py JSON

The product's code runs as it is. What is wrapped are its ports, its journals and, by an audit
hook of the interpreter, what it does to the names of files, asks of servers by HTTP (such as a
Docker Engine), and lets Apptainer do. A point is called after what happens
there, as in ``store.put state.json:running before``; ids and numbers are left out of the names, so
that the points of two runs have the same.
"""

import json
import os
import random
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

from fakes.faults import CUT, DROP, LOST_ANSWER, UNAVAILABLE, Fault, Faults, FaultyStore, delay
from simagent.cli.agentlog import to_stderr
from simagent.config_load import load_config
from simagent.domain.images import ImageRef
from simagent.ledger import Ledger
from simagent.ports.clock import SystemClock, Waitable
from simagent.ports.images import Image, Images, KeptImage, Progress
from simagent.ports.queue import Message, Queue, QueueUnavailableError
from simagent.ports.runtime import Runtime, Step, StepPlan
from simagent.ports.store import Blob, Body, Entry, Store, StoreUnavailableError
from simagent.wiring.agent import open_context
from simagent.worker import journal as journals
from simagent.worker.context import Context
from simagent.worker.control import Looks
from simagent.worker.identity import alone_on
from simagent.worker.journal import Journal, Journals
from simagent.worker.loop import Agent
from simagent.worker.orders import Detached

_FILE_EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the agent is to be hurt.

    At the ``times``-th pass of each point that matches ``point``: ``kill`` (SIGKILL), ``stop``
    (SIGSTOP), or ``lose`` (the call has been made, its answer is lost). ``record`` is a file that
    the names of all points passed are added to. ``rate`` is the share of store calls that go
    wrong, by the random numbers of ``seed``; ``slow`` the seconds some take. ``wall`` is how many
    seconds the wall clock is off. ``note`` is the file that tells the process id. ``answer``
    is how many seconds S3 has for an answer, where it is to have less than in earnest.
    """

    config: dict[str, Any]
    note: str
    point: str = ""
    act: str = ""
    times: int = 1
    record: str = ""
    rate: float = 0.0
    seed: int = 0
    slow: float = 0.0
    wall: float = 0.0
    slots: int = 1
    look_every: float = 0.5
    files: bool = True
    answer: float = 0.0


@dataclass
class Points:
    """Counts passes, and does what is to be done at the one that was asked for."""

    options: Options
    put: dict[str, str] = field(default_factory=dict)
    """The status last written to each state."""
    _passed: Counter[str] = field(default_factory=Counter)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def reach(self, name: str) -> bool:
        """Pass a point; True where an answer is to be lost."""
        with self._mutex:
            self._passed[name] += 1
            count = self._passed[name]
            if count == 1 and self.options.record:
                with open(self.options.record, "a") as file:
                    file.write(f"{name}\n")
        if count != self.options.times or not fnmatchcase(name, self.options.point):
            return False
        if self.options.act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.options.act == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        return self.options.act == "lose"

    @contextmanager
    def around(self, name: str, error: type[Exception] = StoreUnavailableError) -> Iterator[None]:
        """Pass the points before and after a call."""
        self.reach(f"{name} before")
        yield
        if self.reach(f"{name} after"):
            raise error(f"the answer to {name} was lost")


def kind(key: str) -> str:
    """Leave out of a key or a path what differs from run to run."""
    key = re.sub(r"p/default/tasks/[^/]+/", "", key)
    key = re.sub(r"open/default/.+", "open/ID", key)
    key = re.sub(r"\b[0-9A-HJKMNP-TV-Z]{26}\b", "ID", key)
    key = re.sub(r"[0-9a-f]{32}", "H", key)
    key = re.sub(r"(checkpoints/\d+)\.[0-9a-f]{16}", r"\1.H", key)
    key = re.sub(r"\.[0-9a-f]{8}\.part", ".H.part", key)
    key = re.sub(r"[0-9a-f]{24}-(?=\d)", "H-", key)
    return re.sub(r"\d+", "N", key)


class PointedStore:
    """A store that passes points."""

    def __init__(self, inner: Store, points: Points) -> None:
        self._inner = inner
        self._points = points

    def get(self, key: str) -> Blob:
        with self._points.around(f"store.get {kind(key)}"):
            return self._inner.get(key)

    def put(
        self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        name = kind(key)
        if name == "state.json":
            status = json.loads(data)["status"]
            name += f":{status}{' again' if status == self._points.put.get(key) else ''}"
            self._points.put[key] = status
        with self._points.around(f"store.put {name}"):
            return self._inner.put(key, data, if_match=if_match, if_absent=if_absent)

    def delete(self, key: str) -> None:
        with self._points.around(f"store.delete {kind(key)}"):
            self._inner.delete(key)

    def scan(self, prefix: str, *, after: str = "", limit: int | None = None) -> Iterator[Entry]:
        with self._points.around(f"store.scan {kind(prefix)}"):
            return self._inner.scan(prefix, after=after, limit=limit)

    def head(self, key: str) -> Entry:
        with self._points.around(f"store.head {kind(key)}"):
            return self._inner.head(key)

    @contextmanager
    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        name = f"store.open {kind(key)}"
        self._points.reach(f"{name} before")
        with self._inner.open(key, start=start, length=length) as stream:
            yield stream
        self._points.reach(f"{name} after")

    def upload(self, key: str, body: Body) -> Entry:
        name = f"store.upload {kind(key)}"

        def within() -> Iterable[bytes]:
            for chunk in body():
                yield chunk
                self._points.reach(f"{name} within")

        with self._points.around(name):
            return self._inner.upload(key, within)


class PointedQueue:
    """A queue that passes points."""

    def __init__(self, inner: Queue, points: Points) -> None:
        self._inner = inner
        self._points = points

    def send(self, body: str, *, delay: float = 0.0) -> None:
        with self._points.around("queue.send", QueueUnavailableError):
            self._inner.send(body, delay=delay)

    def send_many(self, bodies: Sequence[str]) -> None:
        with self._points.around("queue.send_many", QueueUnavailableError):
            self._inner.send_many(bodies)

    def receive(self, *, visibility: float, wait: float, wake: Waitable) -> Message | None:
        self._points.reach("queue.receive before")
        message = self._inner.receive(visibility=visibility, wait=wait, wake=wake)
        if message is not None and self._points.reach("queue.receive a message after"):
            raise QueueUnavailableError("the answer to receive was lost")
        return message

    def hide(self, receipt: str, seconds: float) -> None:
        with self._points.around("queue.hide", QueueUnavailableError):
            self._inner.hide(receipt, seconds)

    def delete(self, receipt: str) -> None:
        with self._points.around("queue.delete", QueueUnavailableError):
            self._inner.delete(receipt)

    def reject(self, message: Message, reason: str) -> None:
        with self._points.around("queue.reject", QueueUnavailableError):
            self._inner.reject(message, reason)


class PointedRuntime:
    """A runtime that passes points."""

    def __init__(self, inner: Runtime, points: Points) -> None:
        self.name = inner.name
        self._inner = inner
        self._points = points

    def trouble(self) -> str | None:
        return self._inner.trouble()

    def about(self) -> list[str]:
        return self._inner.about()

    def start(self, plan: StepPlan) -> Step:
        with self._points.around(f"runtime.start step {plan.number}"):
            return self._inner.start(plan)

    def attach(self, plan: StepPlan) -> Step | None:
        with self._points.around(f"runtime.attach step {plan.number}"):
            return self._inner.attach(plan)

    def keep_alive(self, folder: Path) -> None:
        self._inner.keep_alive(folder)

    def reap(self, known: Callable[[Path], bool]) -> int:
        return self._inner.reap(known)


class PointedImages:
    """An image cache that passes points."""

    def __init__(self, inner: Images, points: Points) -> None:
        self.name = inner.name
        self._inner = inner
        self._points = points

    def ensure(
        self, ref: ImageRef, *wakes: Waitable, progress: Progress | None = None, pin: bool = False
    ) -> Image:
        with self._points.around("images.ensure"):
            return self._inner.ensure(ref, *wakes, progress=progress, pin=pin)

    def disk(self) -> Path | None:
        return self._inner.disk()

    def kept(self) -> list[KeptImage]:
        return self._inner.kept()

    def remove(self, digest: str, *, unused_since: float | None = None) -> int:
        return self._inner.remove(digest, unused_since=unused_since)

    def unpin(self, digest: str) -> None:
        self._inner.unpin(digest)


class PointedJournals(Journals):
    """Journals that pass points."""

    def __init__(self, state_dir: Path, points: Points) -> None:
        super().__init__(state_dir)
        self._points = points

    def create(self, entry: journals.Entry) -> Journal:
        with self._points.around("journal.create"):
            made = super().create(entry)
        return _PointedJournal(made.folder, made.entry, self._points)

    def all(self, *arguments: Any, **options: Any) -> Iterator[Journal]:
        for found in super().all(*arguments, **options):
            yield _PointedJournal(found.folder, found.entry, self._points)

    def set_aside(self, folder: Path, why: str) -> None:
        with self._points.around("journal.set_aside"):
            super().set_aside(folder, why)


class _PointedJournal(Journal):
    def __init__(self, folder: Path, entry: journals.Entry, points: Points) -> None:
        super().__init__(folder, entry)
        self._points = points

    def write(self, **changes: object) -> None:
        with self._points.around(f"journal.write {','.join(sorted(changes))}"):
            super().write(**changes)

    def remove(self) -> None:
        with self._points.around("journal.remove"):
            super().remove()


class ShiftedClock(SystemClock):
    """A clock whose wall time is off."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def wall(self) -> float:
        return super().wall() + self._seconds


def point_at_files(folder: Path, points: Points) -> None:
    """Pass a point before each change of a file's name beneath the folder."""
    root = f"{folder}/"

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in _FILE_EVENTS:
            return
        names = [os.fsdecode(a) for a in arguments[:2] if isinstance(a, str | bytes | Path)]
        if names and names[0].startswith(root):
            short = " ".join(kind(name.removeprefix(root)) for name in names)
            points.reach(f"{event} {short} before")

    sys.addaudithook(hook)


def point_at_engines(points: Points) -> None:
    """Pass a point before each request by HTTP, and before each start of Apptainer."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "http.client.send" and isinstance(arguments[1], bytes):
            method, _, rest = arguments[1][:500].decode(errors="replace").partition(" ")
            if method in _METHODS:
                path = re.sub(r"\?.*", "", rest.partition(" ")[0])
                points.reach(f"http {method} {kind(path)} before")
        elif event == "subprocess.Popen":
            argv = [os.fsdecode(word) for word in arguments[1]]
            if Path(argv[0]).name == "apptainer":
                named = [word for word in argv[1:] if not word.startswith("-")]
                points.reach(f"run apptainer {named[0] if named else argv[1]} before")

    sys.addaudithook(hook)


def trouble(options: Options) -> Faults:
    """Make the faults of a bad network: some calls dropped, lost, cut or slow, by chance."""
    dice = random.Random(options.seed)
    kinds = [UNAVAILABLE, LOST_ANSWER, replace(DROP, seconds=0.05), CUT]

    def plan(call: str, key: str) -> Fault | None:
        if dice.random() < options.rate:
            chosen = dice.choice(kinds)
            return replace(chosen, seconds=min(chosen.seconds, 0.05))
        return delay(dice.uniform(0, options.slow)) if options.slow else None

    return Faults(SystemClock(), plan=plan)


def hurt(ctx: Context, options: Options, points: Points, state_dir: Path) -> Context:
    """Wrap what the agent works with."""

    def ledger(store: Store) -> Ledger:
        if options.rate or options.slow:
            store = FaultyStore(store, trouble(options))
        return Ledger(PointedStore(store, points))

    runtimes: Mapping[str, Runtime] = {
        name: PointedRuntime(runtime, points) for name, runtime in ctx.runtimes.items()
    }
    images: Mapping[str, Images] = {
        name: PointedImages(each, points) for name, each in ctx.images.items()
    }
    return replace(
        ctx,
        ledger=ledger(ctx.ledger.store),
        lease_ledger=ledger(ctx.lease_ledger.store),
        queue=PointedQueue(ctx.queue, points),
        clock=ShiftedClock(options.wall),
        journals=PointedJournals(state_dir, points),
        runtimes=runtimes,
        images=images,
        settings=replace(
            ctx.settings, looks=Looks(every=options.look_every, attended=options.look_every)
        ),
    )


def hurry(seconds: float) -> None:
    """Let no call to S3 wait for an answer for longer: tests of stalls wait for their ends."""
    from simagent.stores import s3, s3_calls

    def connect(access: s3_calls.Access, tries: int) -> Any:
        return s3_calls.connect(replace(access, answer=min(access.answer, seconds)), tries)

    s3.S3Store.__init__.__kwdefaults__["connect"] = connect  # type: ignore[index]


def main() -> None:
    """Run the agent until SIGTERM, or until it is hurt."""
    options = Options(**json.loads(sys.argv[1]))
    config = load_config(None, **options.config)
    to_stderr(config)
    Path(options.note).write_text(f"{os.getpid()}")
    points = Points(options)
    if options.answer:
        hurry(options.answer)
    with alone_on(config.state_dir):
        ctx = hurt(open_context(config), options, points, config.state_dir)
        if options.files:
            point_at_files(config.state_dir.parent, points)
            point_at_engines(points)
        agent = Agent(ctx, slots=options.slots)
        order = Detached("the agent was told to stop")
        signal.signal(signal.SIGTERM, lambda *_: agent.interrupt(order))
        agent.run()


if __name__ == "__main__":
    main()
