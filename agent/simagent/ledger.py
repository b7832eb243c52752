"""The ledger: what is written down about tasks in the store, and the one way to change it.

The same way other documents are changed that several write.
"""

import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from simagent.domain import keys
from simagent.domain.keys import TaskKeys
from simagent.domain.mutations import SupersededError
from simagent.domain.spec import FORMAT as SPEC_FORMAT
from simagent.domain.spec import Spec
from simagent.domain.state import FORMAT as STATE_FORMAT
from simagent.domain.state import Document, State
from simagent.ports.store import (
    NotFoundError,
    PreconditionError,
    Store,
    StoreError,
    StoreUnavailableError,
)

_CAS_TRIES = 8


class CorruptError(Exception):
    """An object in the store cannot be read; the message says which and why."""


class TooNewError(Exception):
    """An object in the store was written in a newer format than this version knows."""


_Model = TypeVar("_Model", bound=BaseModel)
_Document = TypeVar("_Document", bound=Document)


@dataclass(frozen=True, slots=True)
class Version(Generic[_Document]):
    """A document as it was read or written, and the tag by which the store knows that version."""

    state: _Document
    etag: str | None


@dataclass(frozen=True, slots=True)
class _Place(Generic[_Document]):
    """Where a document is, what it is, and what it is taken for where there is none."""

    key: str
    model: type[_Document]
    newest: int
    absent: _Document | None = None


def _parse(model: type[_Model], data: bytes, key: str, newest: int) -> _Model:
    try:
        fields = json.loads(data)
        version = fields.get("format", 1) if isinstance(fields, dict) else None
        if isinstance(version, int) and version > newest:
            raise TooNewError(f"{key} has format {version}, this version reads up to {newest}")
        return model.model_validate(fields)
    except (ValidationError, ValueError, RecursionError) as error:
        first = str(error).splitlines()
        raise CorruptError(f"{key} cannot be read: {' '.join(first[:3])}") from error


def _dump(model: BaseModel) -> bytes:
    return model.model_dump_json(indent=1).encode()


def spec_bytes(spec: Spec) -> bytes:
    """Give the bytes a spec is stored and hashed as."""
    fields = {"format": spec.format} | spec.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(fields, indent=1, ensure_ascii=False).encode()


def sha256(data: bytes) -> str:
    """Give the SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _there(refused: PreconditionError) -> Iterator[None]:
    """Read what kept an object from being created; where nothing did, it was a passing conflict."""
    try:
        yield
    except NotFoundError:
        raise StoreUnavailableError(str(refused)) from refused


class Ledger:
    """Specs, states and markers of tasks, over any store.

    Methods raise `simagent.ports.store.StoreError`s, `CorruptError` and `TooNewError`. Nothing is
    retried here but lost races: callers know how long something is worth trying.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.failures = 0
        """Number of store calls that gave no usable answer, for those who watch for silence."""
        # Threads of one process would otherwise race each other's writes of one task; a lock is
        # held for one read and one write at most, so that a renewal never waits for long.
        self._locks = [threading.Lock() for _ in range(64)]
        self._counting = threading.Lock()

    def state(self, task: TaskKeys) -> State:
        """Read the state. Raises `NotFoundError`."""
        return self._read(_Place(task.state, State, STATE_FORMAT)).state

    def spec(self, task: TaskKeys, *, sha256_: str | None = None) -> Spec:
        """Read the spec; `CorruptError` too where it is missing or not the one with the hash."""
        try:
            with self._counted():
                data = self.store.get(task.spec).data
        except NotFoundError:
            raise CorruptError(f"{task.spec} is missing") from None
        spec = _parse(Spec, data, task.spec, SPEC_FORMAT)
        if sha256_ is not None and sha256(data) != sha256_:
            raise CorruptError(f"{task.spec} was changed after the task was submitted")
        return spec

    def create_spec(self, task: TaskKeys, spec: Spec) -> str:
        """Store the spec and give its hash.

        Raises `SupersededError` where the task has another spec already.
        """
        data = spec_bytes(spec)
        try:
            with self._counted():
                self.store.put(task.spec, data, if_absent=True)
        except PreconditionError as error:
            with _there(error), self._counted():
                existing = self.store.get(task.spec).data
            if existing != data:
                raise SupersededError(f"task {task.id} exists already, with another spec") from None
        return sha256(data)

    def create_state(self, task: TaskKeys, state: State) -> State:
        """Store a first state, or give the one that is there."""
        try:
            with self._counted():
                self.store.put(task.state, _dump(state), if_absent=True)
        except PreconditionError as error:
            with _there(error):
                return self.state(task)
        return state

    def change(self, task: TaskKeys, change: Callable[[State], State]) -> State:
        """Change the state by compare-and-swap and give what it became.

        ``change`` returns the object it was given where nothing is to be written, and raises
        `SupersededError` where it may not be made; it is called anew after each lost race. When
        `StoreUnavailableError` comes out, the change may have been applied: call again.
        """
        return self.change_from(None, task, change).state

    def change_from(
        self, known: Version[State] | None, task: TaskKeys, change: Callable[[State], State]
    ) -> Version[State]:
        """Change the state as `change` does, without a read where it is still as it is known.

        Whoever changed it since is found out by the store's comparison: nothing is concluded from
        what is known alone.
        """
        return self._change(_Place(task.state, State, STATE_FORMAT), known, change)

    def change_document(
        self, key: str, absent: _Document, change: Callable[[_Document], _Document]
    ) -> _Document:
        """Change any document by compare-and-swap, as `change` does; ``absent`` where none is."""
        place = _Place(key, type(absent), absent.format, absent)
        return self._change(place, None, change).state

    def document(self, key: str, absent: _Document) -> _Document:
        """Read any document; ``absent`` where there is none."""
        return self._read(_Place(key, type(absent), absent.format, absent)).state

    def _change(
        self,
        place: "_Place[_Document]",
        known: Version[_Document] | None,
        change: Callable[[_Document], _Document],
    ) -> Version[_Document]:
        write_id = secrets.token_hex(8)
        for _ in range(_CAS_TRIES):
            with self._locks[hash(place.key) % len(self._locks)]:
                guess, known = known, None
                version = guess or self._read(place)
                if version.state.write_id == write_id:
                    return version
                try:
                    wanted = change(version.state)
                except SupersededError:
                    if guess is None:
                        raise
                    continue
                if wanted is not version.state:
                    written = self._swap(place, version.etag, wanted.with_(write_id=write_id))
                    if written is not None:
                        return written
                elif guess is None:
                    return version
        raise StoreUnavailableError(f"{place.key} is changed by others too fast")

    def _swap(
        self, place: "_Place[_Document]", etag: str | None, wanted: _Document
    ) -> Version[_Document] | None:
        """Write a document over the version that is known; None where a race was lost.

        That may have been one against ourselves: the next read tells.
        """
        data = _dump(wanted)
        try:
            with self._counted():
                put = self.store.put(place.key, data, if_match=etag, if_absent=etag is None)
            return Version(wanted, put)
        except PreconditionError:
            return None
        except StoreUnavailableError:
            version = self._read(place)
            if version.state.write_id != wanted.write_id:
                raise
            return version

    def open_marker(self, group: str, task: TaskKeys) -> None:
        """Mark the task as not terminal, for the sweep."""
        body = json.dumps({"format": 1, "project": task.project}).encode()
        with self._counted():
            self.store.put(keys.open_marker(group, task), body)

    def remove_marker(self, group: str, task: TaskKeys) -> None:
        """Forget the task in the sweep."""
        with self._counted():
            self.store.delete(keys.open_marker(group, task))

    def markers(self, group: str, *, after: str, limit: int) -> list[str]:
        """List the markers of tasks not known to be terminal, by name, those past ``after``."""
        prefix = keys.open_prefix(group)
        with self._counted():
            entries = list(self.store.scan(prefix, after=prefix + after, limit=limit))
        return [entry.key.removeprefix(prefix) for entry in entries]

    def marked(self, group: str, name: str) -> TaskKeys | None:
        """Find the task of a marker; None where the marker is gone.

        Raises `CorruptError` where it names no task that can be.
        """
        key = keys.open_prefix(group) + name
        try:
            with self._counted():
                self.store.head(key)
        except NotFoundError:
            return None
        try:
            return keys.marked(name)
        except ValueError as error:
            raise CorruptError(f"{key} is no marker of a task: {error}") from error

    def open_tasks(self, group: str, *, after: str, limit: int) -> Iterator[TaskKeys]:
        """Walk the tasks not known to be terminal; markers that cannot be read are left out."""
        for name in self.markers(group, after=after, limit=limit):
            try:
                task = self.marked(group, name)
            except CorruptError:
                continue
            if task is not None:
                yield task

    def _read(self, place: "_Place[_Document]") -> Version[_Document]:
        try:
            with self._counted():
                blob = self.store.get(place.key)
        except NotFoundError:
            if place.absent is None:
                raise
            return Version(place.absent, None)
        return Version(_parse(place.model, blob.data, place.key, place.newest), blob.etag)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except (NotFoundError, PreconditionError):
            raise
        except StoreError:
            with self._counting:  # one that is not seen would let silence pass for a proof
                self.failures += 1
            raise
