"""One step in its container: waits for its end, ends it, and tells how it ended."""

import math
import select
import signal
import threading
import time
from contextlib import suppress
from typing import Any

from simagent import shim
from simagent.ports.clock import Waitable, Wake, poll_timeout
from simagent.ports.passing import passes
from simagent.ports.runtime import StepExit, StepPlan
from simagent.runtimes import records
from simagent.runtimes.docker_engine import DockerEngine, EngineAwayError, EngineRefusedError
from simagent.runtimes.docker_exit import (
    ENDED_FROM_OUTSIDE,
    as_record,
    ended,
    from_record,
    lost,
    moment,
    read_exit,
)
from simagent.runtimes.docker_usage import Usage
from simagent.runtimes.heeding import heeding

_LOOK_EVERY = 0.5
"""Seconds between two looks for an engine that is away."""
_REMOVED_WITHIN = 0.5
_SLACK = 1.0


class DockerStep:
    """A step whose container was started, now or by an earlier agent."""

    def __init__(
        self,
        engine: DockerEngine,
        plan: StepPlan,
        name: str,
        *,
        found: dict[str, Any] | None = None,
        boot: str = "",
        watched: bool = False,
        exit_: StepExit | None = None,
    ) -> None:
        """``found`` is what the engine said of the container last: None, that there is none.

        ``watched`` where it was started just now, ``exit_`` where its end has been read before.
        """
        self._engine = engine
        self._plan = plan
        self._name = name
        self._found = found
        self._boot = boot
        self._watched = watched
        self._exit = exit_
        self._usage = Usage()
        self._outages: list[tuple[float, float]] = []
        self._lock = threading.Lock()
        self._over = Wake()
        self._watcher: threading.Thread | None = None
        self._error: Exception | None = None
        if exit_ is not None or found is None or ended(found["State"]):
            self._over.set()
        elif self._order() is not None:
            self._send_stop()  # the engine may have forgotten it

    def wait(self, timeout: float | None, *wakes: Waitable) -> StepExit | None:
        """Give the step's end as soon as it is known.

        None after ``timeout`` seconds (a day at most), or when one of ``wakes`` is ready. Raises
        what kept its watcher from knowing.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._exit is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            due = self._usage.due()
            ready = self._ready(due if left is None else min(left, due), *wakes)
            if self._over.fileno() in ready:
                if self._error is not None:
                    raise self._error
                try:
                    with self._lock:
                        self._exit = self._exit or self._conclude()
                except OSError as error:
                    if not passes(error):
                        raise
                    time.sleep(_LOOK_EVERY)
                    return None
            elif ready or left == 0.0:
                return None
            elif self._usage.due() == 0.0:
                self._look_at_usage()
        return self._exit

    def stop(self, grace: float) -> None:
        """Ask for the end of the whole process tree: SIGTERM, ``grace`` seconds, SIGKILL."""
        if self._exit is not None or self._over.is_set():
            return
        deadline = time.clock_gettime(time.CLOCK_BOOTTIME) + grace
        before = self._order()
        if before is not None:
            deadline = min(deadline, before)
        with suppress(OSError):  # on a full disk it is sent all the same
            order = {"deadline": deadline, "boot_id": shim.boot_id()}
            records.replace(self._plan.folder / f"step-{self._plan.number}.stop", order)
        for process in self._tree():
            if process.state in "Tt":  # it acts on nothing but SIGKILL until it goes on
                shim.send(process, signal.SIGCONT)
        self._send_stop(deadline)

    def signal(self, number: int) -> bool:
        """Send a signal to those of the step's processes that have a use for it; tell of any.

        Where they cannot be seen from here, to the process group of the first one.
        """
        if self._over.is_set():
            return False
        tree = self._tree()
        if tree:
            return sum([shim.send(process, number) for process in heeding(tree, number)]) > 0
        try:
            self._engine.ask(lambda client: client.kill(self._name, signal=number))
        except (EngineAwayError, EngineRefusedError):  # it has ended, or will be lost
            return False
        return True

    def pids(self) -> list[int]:
        """List the processes of the step's tree; none where they are not this host's to see."""
        return [process.pid for process in self._tree()]

    def _tree(self) -> list[shim.Process]:
        seen = self._found  # its watcher takes it away at any moment
        if seen is None or self._over.is_set():
            return []
        first = seen["State"]["Pid"]
        found = shim.descendants(first)
        # Only now: the number may have gone to another process since.
        try:
            with open(f"/proc/{first}/cgroup", encoding="utf-8") as file:
                return found if seen["Id"] in file.read() else []
        except OSError:
            return []

    def _ready(self, timeout: float, *wakes: Waitable) -> set[int]:
        """Wait until the step is over or one of ``wakes`` is ready; tell which, by their fds."""
        if not self._over.is_set() and self._watcher is None:
            # A daemon: it is blocked for as long as the container runs, agent or not.
            self._watcher = threading.Thread(
                target=self._watch, name=f"watch {self._name}", daemon=True
            )
            self._watcher.start()
        poller = select.poll()
        for source in (self._over, *wakes):
            poller.register(source.fileno(), select.POLLIN)
        return {fd for fd, _ in poller.poll(poll_timeout(timeout))}

    def _look_at_usage(self) -> None:
        seen, tree = self._found, self._tree()
        first = [seen["State"]["Pid"]] if tree and seen is not None else []
        self._usage.look([*first, *(process.pid for process in tree)])

    def _watch(self) -> None:
        try:
            self._await_end()
        except Exception as error:  # noqa: BLE001 - raised by who waits, who else would for ever
            self._error = error
        finally:
            self._over.set()

    def _await_end(self) -> None:
        """Wait for the container's end, whatever the engine goes through meanwhile."""
        while True:
            try:
                self._engine.ask(lambda client: client.wait(self._name, condition="not-running"))
                self._found = self._look()
                if self._found is None or ended(self._found["State"]):
                    # An engine that goes down takes no more calls, then ends its containers.
                    if self._order() is None and self._engine.trouble() is not None:
                        self._outages.append(self._outage())
                    return
            except EngineAwayError:
                self._outages.append(self._outage())
                if self._order() is not None:
                    self._send_stop()
            except EngineRefusedError as error:
                if error.status == 404:
                    self._found = None
                    return
            except OSError as error:
                if not passes(error):  # else a record can be read again in a while
                    raise
            time.sleep(_LOOK_EVERY)

    def _look(self) -> dict[str, Any] | None:
        """Inspect the container; whoever removes one by force kills it first."""
        found = self._engine.find(self._name)
        if found is not None and found["State"]["ExitCode"] == ENDED_FROM_OUTSIDE[1]:
            if self._order() is None and not found["State"]["OOMKilled"]:
                time.sleep(_REMOVED_WITHIN)
            found = self._engine.find(self._name)
        return found

    def _outage(self) -> tuple[float, float]:
        began = time.time()
        while self._engine.trouble() is not None:
            time.sleep(_LOOK_EVERY)
        return began, time.time()

    def _order(self) -> float | None:
        """Give by when it was told to end, as seconds of this boot's clock."""
        with suppress(ValueError, LookupError, TypeError):
            order = records.read(self._plan, "stop")
            if order is not None:
                return float(order["deadline"])
        return None

    def _send_stop(self, deadline: float | None = None) -> None:
        """Let the engine end the container by then; it goes on with that without the agent."""
        deadline = self._order() if deadline is None else deadline

        def once() -> None:
            found = self._engine.find(self._name)
            if found is not None and found["State"]["Paused"]:
                with suppress(EngineRefusedError):  # somebody else did so just now
                    self._engine.ask(lambda client: client.unpause(self._name))
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            grace = max(0, math.ceil((deadline or now) - now))
            self._engine.ask(lambda client: client.stop(self._name, timeout=grace))

        def stop() -> None:
            # Also an engine that hung for a while, and breaks nothing off, may not have heard it.
            while not self._over.is_set():
                try:
                    once()
                except EngineAwayError:
                    pass
                except EngineRefusedError as error:
                    if error.status < 500:
                        return  # it has ended
                else:
                    return
                time.sleep(_LOOK_EVERY)

        threading.Thread(target=stop, name=f"stop {self._name}", daemon=True).start()

    def _conclude(self) -> StepExit:
        """Tell how it ended; write that down, then remove the container."""
        exit_ = self._usage.of(self._judge())
        try:
            records.replace_last(self._plan, "exit", as_record(exit_))
        except FileNotFoundError:
            pass  # the folder is gone: nobody will ask again
        except OSError:
            return exit_  # the container tells it again
        remove_container(self._engine, self._name)
        return exit_

    def _judge(self) -> StepExit:
        if self._found is None or self._found["State"]["Status"] in ("dead", "removing"):
            return lost(f"its container {self._name} vanished: somebody removed it")
        state = self._found["State"]
        if self._boot != shim.boot_id():
            return lost("the machine was restarted while it ran", moment(state["StartedAt"]))
        stopped = self._order() is not None
        if not stopped and self._ended_by_engine(state):
            return lost("the Docker Engine ended its container", moment(state["StartedAt"]))
        return read_exit(
            state,
            self._plan.folder,
            self._plan.number,
            stopped=stopped,
            limits=self._plan.limits,
        )

    def _ended_by_engine(self, state: dict[str, Any]) -> bool:
        """Tell whether it ended because the engine did.

        An engine without live-restore ends its containers with itself: those that ended while it
        was away. Where nobody was looking: those that were ended from outside before it started.
        """
        over = moment(state["FinishedAt"])
        away = any(began - _SLACK <= over <= back + _SLACK for began, back in self._outages)
        unseen = not self._watched and state["ExitCode"] in ENDED_FROM_OUTSIDE
        if not away and (not unseen or state.get("OOMKilled")):
            return False
        with suppress(EngineAwayError, EngineRefusedError):
            if self._engine.live_restore():
                return False
            return away or not self._within_one_engine(state)
        return True

    def _within_one_engine(self, state: dict[str, Any]) -> bool:
        """Tell whether the engine, as it runs now, saw the container both start and end."""
        since, until = int(moment(state["StartedAt"])), math.ceil(time.time())
        seen = self._engine.events(self._name, ("start", "die"), since=since, until=until)
        return {event["Action"] for event in seen} >= {"start", "die"}


def exit_read(plan: StepPlan) -> StepExit | None:
    """Give how a step ended where that was written down. Raises as `from_record` does."""
    record = records.read(plan, "exit")
    return None if record is None else from_record(record)


def remove_container(engine: DockerEngine, name: str) -> None:
    """Remove a container, running or not; the reaper does it where the engine is away."""
    with suppress(EngineAwayError, EngineRefusedError):
        engine.ask(lambda client: client.remove_container(name, v=True, force=True))
