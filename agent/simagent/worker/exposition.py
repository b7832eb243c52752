"""An agent's snapshot as metrics of Prometheus: docs/metrics.md lists them.

The library keeps collectors of its own for the whole process; none of them is used here.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from simagent.telemetry.tally import Count, Described
from simagent.worker.snapshot import Snapshot, Source, Stage

PREFIX = "simagent_"


class Gauge(Described):
    """What is measured; names are those of Prometheus, without `simagent_`."""

    BUILD_INFO = "build_info", "Always 1: what runs.", "version python journal_format"
    AGENT_INFO = "agent_info", "Always 1: who it is.", "agent incarnation role group cluster"
    STATE = "state", "1 for what the agent is at, 0 for the rest.", "state"
    START_TIME = "start_time_seconds", "When it started, in Unix time."
    LOOP_AGE = "loop_age_seconds", "Time since its main loop last turned: more than 25 is a hang."
    SLOTS = "slots", "Tasks that it runs side by side at most."
    SLOTS_BUSY = "slots_busy", "Slots that are taken."
    TASKS = "tasks", "Attempts that go on, by status.", "status"
    UNSETTLED = "unsettled_attempts", "Attempts of before its start, still to be looked at."
    RUNS = "member_runs", "Runs that a member of a cluster has for its head."
    STORE_AGE = "store_answer_age_seconds", "Time since the store last answered."
    STORE_UP = "store_up", "0 where the last call to the store failed."
    QUEUE_AGE = "queue_answer_age_seconds", "Time since the queue last answered."
    QUEUE_UP = "queue_up", "0 where the last call to the queue failed."
    DISK_FREE = "disk_free_bytes", "What is free on the disk of the state folder."
    DISK_SIZE = "disk_size_bytes", "How large that disk is."
    DISK_FLOOR = "disk_floor_bytes", "What is kept free of it (`min_free`)."
    IMAGES = "images", "Images that were fetched.", "runtime"
    IMAGES_BYTES = "images_bytes", "What they take.", "runtime"
    NOTICES = "notices", "Things that somebody should know, as `simagent status` tells them."
    TASK_LEASE_AGE = (
        "task_lease_age_seconds",
        "Time since the lease of a task was renewed.",
        "project task",
    )
    TASK_CPU = "task_cpu_cores", "Cores that a task's processes here use.", "project task"
    TASK_MEMORY = "task_memory_bytes", "Memory that they use.", "project task"


Measured = tuple[Gauge, tuple[str, ...], float]
"""What was measured, the values of its labels, and the value."""


def measure(it: Snapshot) -> Iterator[Measured]:
    """Yield what there is to tell; what is not known is left out."""
    version = it.versions
    build = (version.get(name, "") for name in ("simagent", "python", "journal"))
    yield Gauge.BUILD_INFO, tuple(build), 1
    who = (it.agent, it.incarnation, it.role, it.group, it.cluster)
    yield Gauge.AGENT_INFO, who, 1
    for stage in Stage:
        yield Gauge.STATE, (stage.value,), float(stage is it.stage)
    yield Gauge.START_TIME, (), it.started
    if it.turned is not None:
        yield Gauge.LOOP_AGE, (), it.turned
    yield Gauge.SLOTS, (), it.slots
    yield Gauge.SLOTS_BUSY, (), it.busy
    for status in ("preparing", "running", "finalizing"):
        yield Gauge.TASKS, (status,), sum(task.status == status for task in it.tasks)
    yield Gauge.UNSETTLED, (), it.unsettled
    yield Gauge.RUNS, (), len(it.runs)
    yield Gauge.NOTICES, (), len(it.notices)
    yield from _engines(it)
    yield from _disk(it)
    yield from _tasks(it)


def _engines(it: Snapshot) -> Iterator[Measured]:
    gauges = {
        "store": (Gauge.STORE_AGE, Gauge.STORE_UP),
        "queue": (Gauge.QUEUE_AGE, Gauge.QUEUE_UP),
    }
    for engine in it.engines:
        age, up = gauges[engine.name]
        if engine.answered is not None:
            yield age, (), engine.answered
        yield up, (), float(engine.failing is None)


def _disk(it: Snapshot) -> Iterator[Measured]:
    disk = it.disk
    if disk is None:
        return
    if disk.free is not None:
        yield Gauge.DISK_FREE, (), disk.free
    if disk.total is not None:
        yield Gauge.DISK_SIZE, (), disk.total
    yield Gauge.DISK_FLOOR, (), disk.floor
    for images in disk.images:
        yield Gauge.IMAGES, (images.runtime,), images.count
        yield Gauge.IMAGES_BYTES, (images.runtime,), images.size_bytes


def _tasks(it: Snapshot) -> Iterator[Measured]:
    for task in it.tasks:
        values = {
            Gauge.TASK_LEASE_AGE: task.beat,
            Gauge.TASK_CPU: task.cpu_cores,
            Gauge.TASK_MEMORY: task.memory_bytes,
        }
        for gauge, value in values.items():
            if value is not None:
                yield gauge, (task.project, task.id), value


class _Collector(Collector):
    """Makes the library's families of one snapshot each time that it is asked."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        """Tell nothing ahead: names are the code's own, and no two collectors share a registry."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        it = self._source()
        measured = defaultdict(list)
        for gauge, labels, value in measure(it):
            measured[gauge].append((labels, value))
        for gauge, values in measured.items():
            family = GaugeMetricFamily(PREFIX + gauge, gauge.explanation, labels=gauge.labels)
            for labels, value in values:
                family.add_metric(labels, value)
            yield family
        counted = defaultdict(list)
        for count in it.counts:
            counted[Count(count.name)].append(count)
        for name, counts in counted.items():
            counter = CounterMetricFamily(PREFIX + name, name.explanation, labels=name.labels)
            for count in counts:
                counter.add_metric(count.labels, count.value)
            yield counter


class Exposition:
    """Writes snapshots in the format that a scraper accepts."""

    def __init__(self, source: Source) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collector(source))

    def write(self, accept: str) -> tuple[str, bytes]:
        """Give the type and the text."""
        encoder, kind = choose_encoder(accept)
        return kind, encoder(self._registry)
