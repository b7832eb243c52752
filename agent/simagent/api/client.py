"""The client of a fleet, or of this machine's agent: submits tasks, and finds them again."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from simagent.api.agents import DAY, TOLERANCE, AgentInfo
from simagent.api.array import Array
from simagent.api.reading import Duration, to_seconds
from simagent.api.specs import Wanted, to_spec
from simagent.api.task import Task
from simagent.client.calls import Notice, log_notice
from simagent.client.errors import ClientError, UsageError
from simagent.client.listing import Wanted as Listable
from simagent.client.tasks import Tasks
from simagent.config import Config
from simagent.config_load import load_config
from simagent.domain.spec import Spec
from simagent.domain.state import Status
from simagent.ports.clock import SystemClock
from simagent.wiring.tasks import open_tasks

if TYPE_CHECKING:
    from typing import Unpack

    from simagent.api.fields import SpecFields

Path_ = str | os.PathLike[str]


class Client:
    """Submits tasks to the agents of a queue, and works on those of a project.

    It is configured as the command line is: by what is given here, else by environment variables
    ``SIMAGENT_…``, else by a file of settings (``config``, SIMAGENT_CONFIG), else by the defaults,
    which are those of one machine. ``settings`` are further ones by their names, as
    ``s3_endpoint``; docs/configuration.md has them all.

    Safe between threads, and cheap to make: nothing is asked of a store or queue on the network
    before the first call. A call that the store does not answer is tried again for a minute;
    ``on_notice`` is told so, from any thread, after some three seconds, and other things a person
    should know: by default they are warnings of the logger "simagent".

    Raises `ConfigError` with a line for each setting that is wrong. All methods raise
    `ClientError` for what cannot be done (`UsageError` where what was asked for is wrong in
    itself), and `StoreError` where the store refuses, or has not answered for a minute.
    """

    def __init__(
        self,
        *,
        store: str | None = None,
        queue: str | None = None,
        project: str | None = None,
        config: Path_ | None = None,
        on_notice: Notice = log_notice,
        **settings: object,
    ) -> None:
        path = config or os.environ.get("SIMAGENT_CONFIG")
        file = Path(path) if path else None
        self._open(
            load_config(file, store=store, queue=queue, project=project, **settings), on_notice
        )

    @classmethod
    def of(cls, config: Config, *, on_notice: Notice = log_notice) -> Self:
        """Make a client for a configuration that was read before, as the command line does."""
        client = cls.__new__(cls)
        client._open(config, on_notice)
        return client

    def _open(self, config: Config, on_notice: Notice) -> None:
        self._config = config
        self._clock = SystemClock()
        self._engine: Tasks | None = open_tasks(config, notice=on_notice)

    @property
    def project(self) -> str:
        """The project whose tasks it works on."""
        return self._config.project

    def submit(
        self,
        task: Wanted = None,
        /,
        *,
        task_id: str | None = None,
        base: Path_ | None = None,
        ring: bool = True,
        on_progress: Callable[[int], None] | None = None,
        **fields: "Unpack[SpecFields]",
    ) -> Task:
        """Submit a task, and give its handle once the store has all of it.

        ``task`` is a task file (.toml, .yaml, .json), a dict or a `Spec` of the same fields, a
        folder that becomes the first input, or nothing; ``fields`` are those of docs/spec.md, and
        go before what ``task`` says. Inputs are looked for beneath ``base``: by default the task
        file's folder, else the current one.

        ``task_id`` names the new task; with the one of an interrupted submission of the same
        spec it goes on with that. ``on_progress`` is told how many bytes of the inputs, packed,
        have been sent. Without ``ring`` no agent is told: for those who run the task themselves.

        Raises `UsageError` with a line for each mistake: nothing was written then.
        """
        spec, folder = to_spec(task, fields, self._config)
        sent = 0

        def count(piece: int) -> None:
            nonlocal sent
            sent += piece
            if on_progress is not None:
                on_progress(sent)

        keys = self._tasks.submit(
            spec,
            base=folder if base is None else Path(base),
            task_id=task_id,
            ring=ring,
            on_progress=None if on_progress is None else count,
        )
        return Task(self._get_tasks, keys, spec=spec)

    def check(
        self,
        task: Wanted = None,
        /,
        *,
        task_id: str | None = None,
        base: Path_ | None = None,
        **fields: "Unpack[SpecFields]",
    ) -> Spec:
        """Give the spec that `submit` would submit, and write nothing. Raises `UsageError`."""
        spec, folder = to_spec(task, fields, self._config)
        self._tasks.check(spec, base=folder if base is None else Path(base), task_id=task_id)
        return spec

    def submit_array(
        self,
        task: Wanted = None,
        /,
        *,
        size: int | None = None,
        array_id: str | None = None,
        base: Path_ | None = None,
        on_progress: Callable[[int], None] | None = None,
        **fields: "Unpack[SpecFields]",
    ) -> Array:
        """Submit the same task ``size`` times, told apart by SIMAGENT_ARRAY_INDEX, from 0.

        As `submit` does, but that the inputs are sent once for all of them; ``on_progress`` is
        told how many are submitted. With the ``array_id`` of an interrupted submission of the
        same spec it goes on with that. Raises `UsageError`.
        """
        if size is not None:
            fields = {**fields, "array": {"size": size}}
        spec, folder = to_spec(task, fields, self._config)
        keys = self._tasks.submit_array(
            spec,
            base=folder if base is None else Path(base),
            array_id=array_id,
            on_progress=on_progress or (lambda _done: None),
        )
        return self.array(keys.id)

    def array(self, array_id: str) -> Array:
        """Give the handle of an array by its id. Raises `ClientError` where there is none."""
        found = self.find_array(array_id)
        if found is None:
            raise ClientError(f"there is no array {array_id} in project {self.project}")
        return found

    def find_array(self, array_id: str) -> Array | None:
        """Give the handle of an array; None where there is none of that id."""
        record = self._tasks.arrays.find(self._tasks.task(array_id).id)
        return Array(self._get_tasks, array_id, record) if record else None

    def task(self, task_id: str) -> Task:
        """Give the handle of a task by its id; nothing is read. Raises `UsageError`."""
        return Task(self._get_tasks, self._tasks.task(task_id))

    def tasks(
        self,
        *,
        status: str | Iterable[str] | None = None,
        name: str | None = None,
        tag: str | Iterable[str] | Mapping[str, str] | None = None,
        array: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Task]:
        """Walk the project's tasks, the newest first, as far as they match all that is given.

        ``status`` is one or several statuses (without it, deleted tasks are left out), ``name`` a
        glob, ``tag`` one or several "key=value", or a dict; those of an ``array`` come by their
        indexes; ``limit`` ends the walk after so many. Each has what it was when it was listed
        in `Task.last_state`. Raises `UsageError`.
        """
        statuses = frozenset(_status(text) for text in _several(status))
        pairs = dict(tag) if isinstance(tag, Mapping) else dict(map(_tag, _several(tag)))
        if limit is not None and limit < 0:
            raise UsageError(f"limit: {limit} is less than none: give a number of tasks")
        if array is not None:
            self.array(array)
        wanted = Listable(statuses=statuses, name=name, tags=pairs)
        rows = self._tasks.list(wanted, limit, array=array)
        return (Task(self._get_tasks, row.task, spec=row.spec, state=row.state) for row in rows)

    def prune(self, *, older_than: Duration) -> Iterator[str]:
        """Delete the tasks that ended longer ago than that; yield the id of each.

        ``older_than`` is in seconds, or text as "30d". It also finishes deletes that were
        interrupted. Raises `UsageError`.
        """
        age = to_seconds("older_than", older_than)
        return (task.id for task in self._tasks.prune(older_than=age))

    def agents(self, *, group: str | None = None, gone: bool = False) -> list[AgentInfo]:
        """List the agents of all groups, or of one, as they showed themselves last.

        Those that have been silent for a day are left out, unless ``gone``.
        """
        agents, now = self._tasks.agents, self._clock.wall()
        after = self._config.times.agent_ttl + TOLERANCE
        return [
            AgentInfo(seen, max(0.0, now - seen.at), agents.silent(seen, after=after))
            for seen in agents.all()
            if group in (None, seen.group) and (gone or not agents.silent(seen, after=DAY))
        ]

    def prune_agents(self, *, group: str | None = None) -> list[str]:
        """Remove what agents that are gone have left to be seen, and name them.

        Of all groups, or of one. Where any look silent it watches them for the time after which an
        agent is taken for gone (`times.agent_ttl`, some minutes).
        """
        return self._tasks.agents.prune(watch=self._config.times.agent_ttl, group=group)

    def close(self) -> None:
        """Let go of all connections; what is asked of it or its tasks later is a `ClientError`."""
        self._engine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        config = self._config
        return f"<Client of project {config.project}: {config.store_url}, {config.queue_url}>"

    @property
    def _tasks(self) -> Tasks:
        return self._get_tasks()

    def _get_tasks(self) -> Tasks:
        engine = self._engine
        if engine is None:
            raise ClientError("the client is closed: make another one")
        return engine


def _several(value: str | Iterable[str] | None) -> Iterable[str]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


def _status(text: str) -> Status:
    with suppress(ValueError):
        return Status(text)
    close = get_close_matches(str(text), list(Status), n=1)
    hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(Status)}"
    raise UsageError(f"status: {text!r} is no status: {hint}")


def _tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"tag: {text!r} has no value: write it as KEY=VALUE")
    return key, value
