"""`simagent mpi check`: a small MPI job through the queue, as any task, and what its ranks tell."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from simagent.api import Client, ClientError, State, Status, StoreError, Task, WaitTimeoutError
from simagent.api.waiting import Progress
from simagent.cli.agentlog import to_file
from simagent.cli.daemon import occupant
from simagent.cli.doctor_mpi import cluster
from simagent.cli.mpi_answer import report_of
from simagent.cli.mpi_report import Report, document, table
from simagent.cli.mpi_task import Asked, check_spec, probe_inputs
from simagent.cli.opening import open_client
from simagent.cli.running import Run, take_place
from simagent.cli.tasks import send
from simagent.cli.text import printable, put, put_json, say
from simagent.config import Config
from simagent.ports.clock import SystemClock
from simagent.worker.identity import Occupant, holder_of

_LOOK_FOR_REFUSALS = 2.0
_HINT_AFTER = 10.0


def check_mpi(config: Config, asked: Asked, *, timeout: float, keep: bool, as_json: bool) -> int:
    """Run the check, print what came of it; tell the exit code: 1 where anything is wrong."""
    client = open_client(config)
    with probe_inputs() as inputs, ExitStack() as stack:
        spec = check_spec(asked, config, inputs)
        client.check(spec)
        agent, here = None, False
        # With a queue of its own it may be meant for agents elsewhere.
        holder = holder_of(config.state_dir)
        mine = holder is not None and holder.takes_from(occupant(config, "run"))
        if mine or config.queue is None:
            agent = take_place(config, spec, stack)
            here = agent is None
        task = send(client, spec, task_id=None, ring=not here)
        watch = _Watch(client, timeout)
        try:
            state = _run(config, task, watch, agent, here=here)
            report = report_of(task, state, asked, watch.refused)
            if report.troubles:
                report = replace(report, notes=(*report.notes, *_cluster_notes(config)))
        finally:
            if not keep:
                _remove(task)
    if as_json:
        put_json(document(report, task.id))
    else:
        _show(report)
    if keep:
        say(f"task {task.id} is kept: `simagent show {task.id}`")
    return int(bool(report.troubles))


def _run(
    config: Config, task: Task, watch: "_Watch", agent: Occupant | None, *, here: bool
) -> State:
    """Follow the task to its end, and run it here where that is to be done."""
    run = Run(task, watch.follow)
    if here:
        log = to_file(config, say)
        say(f"task {task.id} runs here; the agent's own log: {log}")
        return run.here(config)
    who = f"{agent} that runs here" if agent is not None else "an agent of its group"
    say(f"task {task.id} is left to {who}, group {config.group}")
    return run.elsewhere()


class _Watch:
    """Waits for the end of the task, says how it stands, and ends it where nobody would run it.

    ``refused`` is why, then.
    """

    def __init__(self, client: Client, timeout: float) -> None:
        self._client = client
        self._timeout = timeout
        self._clock = SystemClock()
        self._status: Status | None = None
        self._looked = self._clock.now()
        self._said: set[str] = set()
        self._hinted = False
        self.refused: str | None = None

    def follow(self, task: Task) -> None:
        """Wait for the end of a task."""

        def look(progress: Progress) -> None:
            if progress.status is not self._status:
                self._status = progress.status
                say(f"task {task.id} {progress.status}")
            now = self._clock.now()
            queued = progress.status is Status.QUEUED
            if queued and not self._hinted and progress.elapsed >= _HINT_AFTER:
                self._hinted = True
                say(
                    f"it waits for an agent of group {task.spec.group} (`simagent agents` lists "
                    "them); the head of a cluster that waits for hosts logs for which"
                )
            if queued and self.refused is None and now - self._looked >= _LOOK_FOR_REFUSALS:
                self._looked = now
                self._look_for_refusals(task)

        try:
            task.wait(self._timeout, progress=look)
        except WaitTimeoutError:
            say(f"task {task.id} is ended: it was not over after {self._timeout:g} s (--timeout)")
            begun = self._status is not Status.QUEUED
            what = "not over" if begun else f"no agent of group {task.spec.group} took it"
            self.refused = self.refused or f"{what} after {self._timeout:g} s"
            task.kill()
            task.wait(progress=False)

    def _look_for_refusals(self, task: Task) -> None:
        refusals = {refused.agent: printable(refused.why) for refused in task.refusals()}
        for agent, why in refusals.items():
            if agent not in self._said:
                self._said.add(agent)
                say(f"agent {printable(agent)} does not run it: {why}")
        living = self._client.agents(group=task.spec.group)
        if refusals and {agent.name for agent in living if not agent.silent} <= set(refusals):
            self.refused = "; ".join(dict.fromkeys(refusals.values()))
            task.kill()


def _cluster_notes(config: Config) -> Iterator[str]:
    """Tell what is wrong with the cluster, as far as it can be seen from here."""
    for found in cluster(config):
        if found.verdict != "ok":
            yield f"{found.name}: {found.text}"


def _show(report: Report) -> None:
    for line in table(report):
        put(line)
    for note in report.notes:
        put(f"note: {note}")
    for trouble in report.troubles:
        put(f"wrong: {trouble}")
    if not report.troubles:
        hosts = report.hosts
        put(f"ok: {len(report.ranks)} ranks on {len(hosts)} host{'s' if len(hosts) > 1 else ''}")


def _remove(task: Task) -> None:
    """Leave nothing of the check; what still runs is killed, and stays to be seen."""
    try:
        task.delete()
    except (ClientError, StoreError) as error:
        say(f"task {task.id} stays: {error}")
