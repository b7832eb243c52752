"""Looks at what a run has left behind and holds it against the promise. Knows nothing of simagent.

    PYTHONPATH=tests python -m faults.recorder RUN [--calm]

RUN is a folder with ``store/``, ``queue.db``, the agents' state folders beside them, ``truth/``
(see payload.py) and ``accepted`` (the ids of the tasks whose submission succeeded, one a line).
Where the store is a bucket and the queue one of SQS, the file ``servers`` says where (mirror.py).
Where tasks run in containers of a Docker Engine, the path of its socket is in ``engine``.
With ``--calm`` no attempt may have been lost or repeated: all faults were such that none has to.
Prints what it finds; the exit code is 1 if that is anything.
"""

import argparse
import hashlib
import http.client
import json
import os
import socket
import sqlite3
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from faults.mirror import Mirror

ENDED = {"succeeded", "failed", "killed", "timed_out", "error"}
ORDER = {
    "submitted": {"queued", "killed", "error"},
    "queued": {"preparing", "killed", "error"},
    "preparing": {"running", "finalizing", "queued", "killed", "error"},
    "running": {"preparing", "finalizing", "queued", "killed", "error"},
    "finalizing": {"preparing"} | ENDED,
}
STREAMS = ("stdout", "stderr")
STATES = "store/p/*/tasks/*/state.json"
EXTRAS = {"stdout.txt", "stderr.txt", "system_metrics.csv"}
_PIECE = 2**20
_LOOK_EVERY = 0.2
"""Seconds: a look at all processes takes 4 ms of a core, and a dozen runs do so at a time."""


@dataclass
class Step:
    """What one step says of itself."""

    epoch: int
    number: int
    starts: int
    said: dict[str, tuple[int, str]]
    files: dict[str, tuple[int, str]] | None

    @classmethod
    def read(cls, folder: Path) -> "Step":
        """Read the account that the payload kept."""
        epoch, number = folder.name.split(".")
        said = {}
        for stream in STREAMS:
            with suppress(FileNotFoundError):
                size, digest = (folder / stream).read_text().split()
                said[stream] = (int(size), digest)
        files = None
        with suppress(FileNotFoundError):
            listed = json.loads((folder / "done").read_text())
            files = {path: (size, digest) for path, (size, digest) in listed.items()}
        starts = len((folder / "ran").read_text().split())
        return cls(int(epoch), int(number), starts, said, files)


@dataclass
class Task:
    """One task: its state, its objects, its ground truth."""

    id: str
    folder: Path
    state: dict[str, Any]
    steps: list[Step] = field(default_factory=list)

    def attempt(self) -> Path:
        """Give the folder of the last attempt's objects."""
        return self.folder / "a" / str(self.state["epoch"])


class Engines(Protocol):
    """Where the run's tasks are: the objects beneath ``store/``, once they were refreshed."""

    def refresh(self, *endings: str) -> None:
        """Bring the objects up to date, at least those whose names end so."""

    def markers(self) -> list[str]:
        """List what stands for tasks that have not ended."""

    def bells(self) -> int:
        """Count the messages."""

    def dead(self) -> list[str]:
        """Read the dead letters."""


class Embedded:
    """A store that is a folder, and a queue that is a file."""

    def __init__(self, run: Path) -> None:
        self._run = run

    def refresh(self, *endings: str) -> None:
        """Do nothing: the folder is looked at itself."""

    def markers(self) -> list[str]:
        """List what stands for tasks that have not ended."""
        return [marker.name for marker in _find(self._run, "store/open/*/*")]

    def bells(self) -> int:
        """Count the messages."""
        return len(self._query("SELECT 1 FROM messages"))

    def dead(self) -> list[str]:
        """Read the dead letters."""
        return [body for (body,) in self._query("SELECT body FROM dead_letters")]

    def _query(self, query: str) -> list[tuple[Any, ...]]:
        path = self._run / "queue.db"
        if not path.exists():
            return []
        with closing(sqlite3.connect(path, timeout=60)) as database:
            return database.execute(query).fetchall()


class Recorder:
    """All that there is to see of one run. ``engines`` may be shared with others who look at it."""

    def __init__(self, run: Path, *, calm: bool = False, engines: Engines | None = None) -> None:
        self._run = run
        self._calm = calm
        self._engines = engines or engines_of(run)

    def findings(self) -> list[str]:
        """Tell everything that is not as it was promised."""
        return self.wrong() + self.unsettled()

    def wrong(self) -> list[str]:
        """Tell what is wrong for good: of the tasks that have ended, and of what is gone."""
        self._engines.refresh()
        found = [f"{task.id}: {wrong}" for task in self.tasks() for wrong in self._look_at(task)]
        return found + list(self._accepted()) + list(self._set_aside()) + list(self._twice_dead())

    def unsettled(self) -> list[str]:
        """Tell what may still be under way: tasks that run, and what is there for them only."""
        self._engines.refresh("state.json")
        return list(self._open()) + list(self._left_behind())

    def settled(self, seconds: float) -> list[str]:
        """Judge once nothing is under way any more, after so many seconds at the latest.

        A bell may still come then, from an agent that looked while the task ran: it is waited for
        anew where that is all there is to find.
        """
        deadline = time.monotonic() + seconds
        while True:
            while self.unsettled() and time.monotonic() < deadline:
                threading.Event().wait(_LOOK_EVERY)
            wrong, left = self.wrong(), self.unsettled()
            if wrong or not left or time.monotonic() >= deadline:
                return wrong + left

    def tasks(self) -> Iterator[Task]:
        """Read all tasks that have a state."""
        for path in sorted(_find(self._run, STATES)):
            task = Task(path.parent.name, path.parent, json.loads(path.read_bytes()))
            truth = self._run / "truth" / task.id
            if truth.is_dir():
                task.steps = sorted(
                    (Step.read(folder) for folder in truth.iterdir() if (folder / "ran").exists()),
                    key=lambda step: (step.epoch, step.number),
                )
            yield task

    # --- One task ------------------------------------------------------------------------------

    def _look_at(self, task: Task) -> Iterator[str]:
        try:
            yield from self._task(task)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            yield f"cannot be read: {error}"

    def _task(self, task: Task) -> Iterator[str]:
        state = task.state
        if state["status"] not in ENDED:
            return
        if state["outcome"] != state["status"] or state["lease"] is not None:
            yield f"ended as {state['status']} with {state['outcome']}, {state['lease']}"
        if state["status"] != "succeeded" and not state["reason"]:
            yield f"{state['status']} without a reason"
        yield from self._executions(task)
        if state["output"] is not None:
            yield from self._published(task)
        elif state["status"] == "succeeded":
            yield "succeeded without outputs"
        # The log of an attempt whose agent was lost may end early, and its record says so.
        lost = state["attempts"] and state["attempts"][-1]["reason"] == "agent_lost"
        for stream in STREAMS if not lost else ():
            yield from _log(task, stream)

    def _executions(self, task: Task) -> Iterator[str]:
        epochs = [attempt["epoch"] for attempt in task.state["attempts"]]
        if epochs != sorted(set(epochs)):
            yield f"the attempts are {epochs}"
        for step in task.steps:
            if step.starts > 1:  # 0 where it was killed before it had noted its start
                yield f"step {step.number} of epoch {step.epoch} was started {step.starts} times"
            if step.epoch not in epochs:
                yield f"epoch {step.epoch} ran, and the attempts are {epochs}"
        if task.state["status"] == "succeeded" and not all(
            step.files is not None for step in task.steps if step.epoch == task.state["epoch"]
        ):
            yield "succeeded, and not all of its steps are done"
        if self._calm and epochs not in ([], [1]):
            yield f"it was begun anew: {task.state['counters']}, attempts {epochs}"

    def _published(self, task: Task) -> Iterator[str]:
        output, state = task.state["output"], task.state
        if output["epoch"] != state["epoch"]:
            yield f"the outputs are of epoch {output['epoch']}, the state of {state['epoch']}"
        archive, manifest = task.attempt() / "output.zip", task.attempt() / "manifest.json"
        if not (archive.exists() and manifest.exists()):
            yield "its outputs are not there"
            return
        if _sha256(manifest) != output["manifest_sha256"]:
            yield "the manifest is not the one that was published"
        listed = json.loads(manifest.read_bytes())
        if (archive.stat().st_size, _sha256(archive)) != tuple(
            listed["archive"][name] for name in ("size", "sha256")
        ):
            yield "the archive is not the one in the manifest"
        yield from self._files(task, archive, {c["path"] for c in listed["changed"]})

    def _files(self, task: Task, archive: Path, changed: set[str]) -> Iterator[str]:
        made: dict[str, tuple[int, str]] = {}
        for step in task.steps:
            if step.epoch == task.state["epoch"]:
                made |= step.files or {}
        with zipfile.ZipFile(archive) as packed:
            names = [info.filename for info in packed.infolist() if not info.is_dir()]
            if len(set(names)) != len(names):
                yield "a file is twice in the archive"
            for path, expected in made.items():
                if path not in names:
                    yield f"{path!r} is not in the archive"
                elif path not in changed and _member(packed, path) != expected:
                    yield f"{path!r} is not as it was made"
            if task.state["status"] == "succeeded" and (more := set(names) - set(made) - EXTRAS):
                yield f"nobody made {sorted(more)}"
            for stream in STREAMS:
                log = hashlib.sha256()
                size = 0
                for data in _chunks(task.attempt() / "logs" / stream):
                    log.update(data)
                    size += len(data)
                if f"{stream}.txt" in names and _member(packed, f"{stream}.txt") != (
                    size,
                    log.hexdigest(),
                ):
                    yield f"{stream}.txt is not the log"

    # --- All of the run ------------------------------------------------------------------------

    def _accepted(self) -> Iterator[str]:
        accepted = self._run / "accepted"
        ids = set(accepted.read_text().split()) if accepted.exists() else set()
        for missing in ids - {task.id for task in self.tasks()}:
            yield f"{missing}: it was accepted and is gone"

    def _open(self) -> Iterator[str]:
        for path in sorted(_find(self._run, STATES)):
            state = json.loads(path.read_bytes())
            if state["status"] not in ENDED:
                yield f"{path.parent.name}: not ended: {state['status']}, epoch {state['epoch']}"

    def _set_aside(self) -> Iterator[str]:
        for folder in _find(self._run, "*/set-aside/*") if self._calm else ():
            yield f"something was set aside: {folder.relative_to(self._run)}"

    def _left_behind(self) -> Iterator[str]:
        for pid, what in self.processes():
            yield f"process {pid} is left: {what}"
        for name, what in self.containers():
            yield f"container {name} is left: {what}"
        for marker in self._engines.markers():
            yield f"a marker is left: {marker}"
        for folder in _find(self._run, "*/attempts/*"):
            yield f"an attempt's folder is left: {folder.relative_to(self._run)}"
        if bells := self._engines.bells():
            yield f"{bells} bells are left"

    def _twice_dead(self) -> Iterator[str]:
        for body, count in Counter(self._engines.dead()).items():
            if count > 1:
                yield f"it lies {count} times with the dead letters: {body}"

    def processes(self) -> Iterator[tuple[int, str]]:
        """List what runs for the tasks, on behalf of agents that live or not: ids, commands."""
        ids = {path.name.encode() for path in _find(self._run, "store/p/*/tasks/*")}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            with suppress(OSError):
                environ = dict(
                    line.partition(b"=")[::2]
                    for line in (folder / "environ").read_bytes().split(b"\0")
                )
                line = (folder / "cmdline").read_bytes()
                shim = b"/shim" in line and bytes(self._run) in line
                if shim or environ.get(b"SIMAGENT_TASK_ID") in ids:
                    yield int(folder.name), line.replace(b"\0", b" ").decode(errors="replace")

    def containers(self) -> Iterator[tuple[str, str]]:
        """List the containers that there are of the tasks, whether they run or not."""
        engine = self._run / "engine"
        if not engine.exists():
            return
        ids = {path.name for path in _find(self._run, "store/p/*/tasks/*")}
        try:
            found = _all_containers(engine.read_text())
        except (OSError, ValueError, http.client.HTTPException) as error:
            yield "?", f"the engine does not tell: {error}"
            return
        for container in found:
            if container["Labels"].get("simagent.task") in ids:
                yield container["Id"], container["Status"]


class Watch:
    """Reads every state again and again while a run goes on: what ended must stay ended."""

    def __init__(self, run: Path, *, every: float = 0.05, engines: Engines | None = None) -> None:
        self._run = run
        self._every = every
        self._engines = engines or Embedded(run)
        self._seen: dict[Path, tuple[int, dict[str, Any]]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.findings: list[str] = []

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._every):
            self._engines.refresh("state.json")
            for path in _find(self._run, STATES):
                with suppress(OSError):
                    self._look(path)

    def _look(self, path: Path) -> None:
        modified = path.stat().st_mtime_ns
        if path in self._seen and self._seen[path][0] == modified:
            return
        state = json.loads(path.read_bytes())
        _, before = self._seen.get(path, (0, state))
        self._seen[path] = (modified, state)
        was, now = before["status"], state["status"]
        if was in ENDED and state != before:
            self.findings.append(f"{path.parent.name}: {was}, and written to again: {now}")
        if state["epoch"] < before["epoch"]:
            self.findings.append(f"{path.parent.name}: epoch {before['epoch']} → {state['epoch']}")
        if state["epoch"] == before["epoch"] and now not in _reachable(was):
            self.findings.append(f"{path.parent.name}: {was} → {now} in one epoch")


def engines_of(run: Path) -> Engines:
    """Find out where a run's tasks are."""
    return Mirror.of(run) or Embedded(run)


def _reachable(status: str) -> set[str]:
    """Tell what a task may become within an epoch; steps in between may not have been seen."""
    reached, todo = {status}, [status]
    while todo:
        new = ORDER.get(todo.pop(), set()) - {"preparing"} - reached
        reached |= new
        todo += new
    return reached


def _all_containers(path: str) -> Any:
    """Ask a Docker Engine for its containers."""
    connection = http.client.HTTPConnection("localhost")
    with socket.socket(socket.AF_UNIX) as connection.sock:
        connection.sock.settimeout(20)
        connection.sock.connect(path)
        connection.request("GET", "/containers/json?all=1")
        return json.load(connection.getresponse())


def _log(task: Task, stream: str) -> Iterator[str]:
    """Hold a log against what the steps of the last attempt say they have written."""
    pieces = _Pieces(_chunks(task.attempt() / "logs" / stream))
    steps = [step for step in task.steps if step.epoch == task.state["epoch"]]
    for step in steps:
        size, digest = step.said.get(stream, (0, hashlib.sha256().hexdigest()))
        found = pieces.digest(size)
        if found is None:
            yield f"{stream} ends before the {size} bytes of step {step.number}"
            return
        if found != digest:
            yield f"{stream} is not what step {step.number} wrote"
            return
    if steps and steps[-1].files is not None and pieces.digest(1) is not None:
        yield f"{stream} has more bytes than were written"


class _Pieces:
    """Bytes that come in pieces, hashed in pieces of other sizes."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def digest(self, size: int) -> str | None:
        """Hash the next bytes; None if there are not so many."""
        digest = hashlib.sha256()
        while size > 0:
            self._rest = self._rest or next(self._pieces, b"")
            if not self._rest:
                return None
            data, self._rest = self._rest[:size], self._rest[size:]
            digest.update(data)
            size -= len(data)
        return digest.hexdigest()


def _chunks(folder: Path) -> Iterator[bytes]:
    """Give a log's bytes from its chunks, which are named by offset and may overlap."""
    position = 0
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        offset = int(path.name)
        if offset > position:
            raise ValueError(f"{folder}: a gap at {position}")
        with path.open("rb") as file:
            file.seek(position - offset)
            while data := file.read(_PIECE):
                position += len(data)
                yield data


def _member(packed: zipfile.ZipFile, name: str) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with packed.open(name) as file:
        while data := file.read(_PIECE):
            digest.update(data)
            size += len(data)
    return size, digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _find(folder: Path, pattern: str) -> list[Path]:
    """Find files; once more where a folder went while it was looked through."""
    while True:
        try:
            return list(folder.glob(pattern))
        except FileNotFoundError:
            continue


def main() -> int:
    """Look once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--calm", action="store_true")
    arguments = parser.parse_args()
    found = Recorder(arguments.run, calm=arguments.calm).findings()
    print("\n".join(found) if found else "as promised")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
