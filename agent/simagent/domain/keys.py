"""Where everything lies in the store. The only module that spells keys."""

from dataclasses import dataclass
from typing import Literal

from simagent.domain.ids import check_id, check_name, newest_first

Stream = Literal["stdout", "stderr"]
STREAMS: tuple[Stream, ...] = ("stdout", "stderr")

AGENTS = "agents/"
"""Prefix of what agents tell of themselves."""


@dataclass(frozen=True, slots=True)
class TaskKeys:
    """The keys of one task."""

    project: str
    id: str

    @property
    def root(self) -> str:
        """Prefix of all that belongs to the task, but for its marker and index entry."""
        return f"p/{self.project}/tasks/{self.id}/"

    @property
    def spec(self) -> str:
        """The immutable spec."""
        return self.root + "spec.json"

    @property
    def state(self) -> str:
        """The truth about the task, changed by compare-and-swap only."""
        return self.root + "state.json"

    @property
    def control(self) -> str:
        """Changed by whoever follows the task, asks for something or kills it."""
        return self.root + "control.json"

    @property
    def requests(self) -> str:
        """Prefix of the requests about the files of the running attempt, and of their answers."""
        return self.root + "control/"

    def request(self, name: str) -> str:
        """A request about the files of the running attempt."""
        return self.requests + name

    def answer(self, name: str) -> str:
        """The answer to a request."""
        return f"{self.requests}{name}.answer"

    @property
    def refusals(self) -> str:
        """Prefix of what agents say who cannot run the task."""
        return self.root + "refusals/"

    def refusal(self, agent: str) -> str:
        """Why an agent cannot run the task."""
        return self.refusals + agent

    def input(self, number: int) -> str:
        """The archive of an input that was uploaded at submission."""
        return f"{self.root}inputs/{number}.zip"

    def attempt(self, epoch: int) -> "AttemptKeys":
        """The keys of one attempt."""
        return AttemptKeys(f"{self.root}a/{epoch}/")


ARRAY_RECORD = "array.json"


@dataclass(frozen=True, slots=True)
class ArrayKeys:
    """The keys of what the tasks of an array share."""

    project: str
    id: str

    @property
    def root(self) -> str:
        """Prefix of all that belongs to the array, but for its tasks."""
        return f"{arrays_prefix(self.project)}{self.id}/"

    @property
    def record(self) -> str:
        """How many tasks there are, and what they have in common; immutable."""
        return self.root + ARRAY_RECORD

    @property
    def complete(self) -> str:
        """There once all inputs are."""
        return self.root + "complete.json"

    def input(self, number: int) -> str:
        """The archive of an input of all its tasks."""
        return f"{self.root}inputs/{number}.zip"


@dataclass(frozen=True, slots=True)
class AttemptKeys:
    """The keys that one attempt writes, all beneath its epoch."""

    root: str

    def logs(self, stream: Stream) -> str:
        """Prefix of a stream's chunks."""
        return f"{self.root}logs/{stream}/"

    def log_chunk(self, stream: Stream, offset: int) -> str:
        """The chunk of a stream that begins at a byte offset."""
        return f"{self.logs(stream)}{offset:020d}"

    @property
    def metrics(self) -> str:
        """Prefix of the metrics segments."""
        return self.root + "metrics/"

    def metrics_segment(self, sequence: int) -> str:
        """A segment of metrics: one JSON object a line."""
        return f"{self.metrics}{sequence:08d}.jsonl"

    @property
    def checkpoints(self) -> str:
        """Prefix of what later attempts go on from."""
        return self.root + "checkpoints/"

    def checkpoint(self, number: int, incarnation: str) -> str:
        """One set of files; no two tries to store one, by whatever incarnation, share a key."""
        return f"{self.checkpoints}{number:08d}.{incarnation}.zip"

    @property
    def syncs(self) -> str:
        """Prefix of what was asked for while the attempt ran."""
        return self.root + "sync/"

    def sync(self, name: str) -> "AttemptKeys":
        """The keys of the outputs as they were when somebody asked."""
        return AttemptKeys(f"{self.syncs}{name}/")

    @property
    def partial(self) -> "AttemptKeys":
        """The keys of the outputs as they were when the task was given back."""
        return AttemptKeys(f"{self.root}partial/")

    @property
    def output_zip(self) -> str:
        """The outputs, as one archive."""
        return self.root + "output.zip"

    @property
    def output_folder(self) -> str:
        """Prefix of the outputs, as single files, at their paths."""
        return self.root + "output/"

    @property
    def manifest(self) -> str:
        """The outputs' paths, sizes and checksums; written last."""
        return self.root + "manifest.json"


def arrays_prefix(project: str) -> str:
    """Prefix of a project's arrays."""
    return f"p/{project}/arrays/"


OPEN = "open/"
"""Prefix of the markers of all groups' tasks that are not terminal."""


def open_prefix(group: str) -> str:
    """Prefix of the markers of a group's tasks that are not terminal."""
    return f"{OPEN}{group}/"


def open_marker(group: str, task: TaskKeys) -> str:
    """The marker of a task that is not terminal. Two projects may use the same id."""
    return f"{open_prefix(group)}{task.id}.{task.project}"


def marked(name: str) -> TaskKeys:
    """Tell the task of a marker by its name beneath the group's prefix. Raises ValueError."""
    task, _, project = name.partition(".")
    return TaskKeys(check_name(project), check_id(task))


def index_prefix(project: str) -> str:
    """Prefix of a project's task list, newest first."""
    return f"p/{project}/index/"


def index_entry(project: str, task: str, submitted_at: float) -> str:
    """The empty object that lists a task; ``submitted_at`` in seconds since the Unix epoch."""
    return f"{index_prefix(project)}{newest_first(submitted_at)}-{task}"


def index_task(key: str) -> str:
    """Tell the task id of an index entry."""
    return key.rsplit("/", 1)[-1].split("-", 1)[1]


def sweep(group: str) -> str:
    """The object by which agents agree who sweeps a group, and where it is in its walk."""
    return f"sweep/{group}.json"


def agent(name: str) -> str:
    """The object by which an agent shows that it lives."""
    return f"{AGENTS}{name}.json"


def agent_name(key: str) -> str:
    """Tell which agent shows itself by an object."""
    return key.removeprefix(AGENTS).removesuffix(".json")


def cluster_head(cluster: str) -> str:
    """The object by which agents agree who leads a cluster, and that tells what runs on it."""
    return f"clusters/{cluster}/head.json"


def cluster_members(cluster: str) -> str:
    """Prefix of what the members of a cluster tell of themselves."""
    return f"clusters/{cluster}/members/"


def cluster_member(cluster: str, agent: str) -> str:
    """The object by which a member of a cluster shows itself."""
    return f"{cluster_members(cluster)}{agent}.json"
