"""What a head does by itself about `simagent mpi check`: once for each set of hosts, and kept."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from simagent.api import Client
from simagent.cli.mpi_answer import report_of
from simagent.cli.mpi_report import document
from simagent.cli.mpi_task import Asked, check_spec, probe_inputs
from simagent.config import Config
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Spec
from simagent.engines import open_queue, open_store
from simagent.ledger import Ledger
from simagent.ports.clock import Wake
from simagent.telemetry.pump import LOCAL_PACE
from simagent.telemetry.tally import Tally
from simagent.transfer.removal import remove_tree
from simagent.wiring.machine import open_launchers
from simagent.worker.context import Context
from simagent.worker.control import LOCAL_LOOKS
from simagent.worker.head import Head
from simagent.worker.refusing import unfit
from simagent.worker.trial import carry_out

_WITHIN = 900.0
_MOST_RANKS = 64
"""They measure one after the other, some tenths of a second each."""
_FILE, _FOLDER = "mpi-check.json", "mpi-check"
_FIX = (
    "set mpi.check_image, or allow_process = true on all hosts for programs of theirs, with the "
    "same MPI; or mpi.check = false"
)

log = structlog.get_logger()


class ClusterCheck:
    """Tries MPI on the hosts of a head's cluster, as a task that nobody submits.

    Its store and queue are a folder of the agent's own; all else is as with any task. A result that
    is good is kept in the state folder, for all that it depends on.
    """

    def __init__(self, config: Config, ctx: Context) -> None:
        assert ctx.head is not None
        self._config = config
        self._ctx = ctx
        self._head: Head = ctx.head

    def __call__(self, hosts: frozenset[str], stop: Wake) -> bool:
        """Tell whether MPI works on the head and these hosts. Raises StoreError, OSError."""
        own = self._own()
        kept = kept_check(self._config.state_dir)
        if kept is not None and kept.get("own") == own and hosts <= set(kept.get("works_on", ())):
            return True
        asked = self._asked()
        with probe_inputs() as inputs:
            spec = check_spec(asked, self._config, inputs)
            why_not = self._unfit(spec)
            if why_not is None:
                log.info("MPI is tried on the hosts of the cluster", hosts=asked.hosts)
                report = self._try(asked, spec, stop)
            else:
                log.info("MPI is not tried on the hosts of the cluster", why=why_not, fix=_FIX)
                report = {"ok": False, "tried": False, "troubles": [why_not]}
        if report is None:
            return False
        works = bool(report["ok"])
        self._keep({"own": own, "works_on": sorted(hosts) if works else [], **report})
        return works

    def _own(self) -> dict[str, Any]:
        """Tell what it depends on but for the other hosts."""
        its, own = self._config.mpi, self._head.it
        return {
            "version": self._ctx.identity.version,
            "mpi": [f"{it.path} {it.version}" for it in open_launchers(self._config).installed()],
            "image": its.check_image,
            "mode": its.mode,
            "slots": own.own.slots,
            "address": own.own.address,
            "network": own.network,
            "shared_dir": str(own.shared_dir),
        }

    def _asked(self) -> Asked:
        slots = [place.slots for place in self._head.places()]
        each = None
        if sum(slots) > _MOST_RANKS:
            each = max(1, min(*slots, _MOST_RANKS // len(slots)))
        image = self._config.mpi.check_image
        return Asked(hosts=len(slots), ranks_per_host=each, image=image)

    def _unfit(self, spec: Spec) -> str | None:
        """Tell why it cannot be tried as things are."""
        found = unfit(self._ctx, spec)
        if found is not None or spec.image is not None:
            return found.why if found is not None else None
        for place in self._head.places()[1:]:
            member = self._head.member(place)
            if member is not None and "process" not in member.runtimes:
                return f"host {place.name} runs no programs without an image"
            if member is not None and not member.mpi:
                return f"host {place.name} has no MPI"
        return None

    def _try(self, asked: Asked, spec: Spec, stop: Wake) -> dict[str, Any] | None:
        """Give the report; None where the agent stops."""
        folder = self._config.state_dir / _FOLDER
        remove_tree(folder)  # of an agent that was killed
        # Without any other settings they lie beneath it.
        aside = self._config.model_copy(update={"state_dir": folder, "store": None, "queue": None})
        try:
            with Client.of(aside, on_notice=lambda _text: None) as client:
                task = client.submit(spec, ring=False)
                ledger, keys = Ledger(open_store(aside)), TaskKeys(task.project, task.id)
                broken = carry_out(self._aside(aside, ledger), keys, stop, _WITHIN)
                if stop.is_set():
                    return None
                state = ledger.state(keys)
                if not (broken or state.terminal):  # given back, for another time or other hosts
                    last = state.attempts[-1]
                    broken = f"{last.reason}: {last.message}"
                report = report_of(task, state, asked, broken or None)
        finally:
            remove_tree(folder)
        for note in report.notes:
            log.info("MPI on the hosts of the cluster", note=note)
        if report.troubles:
            why = "; ".join(report.troubles)
            log.warning("MPI does not work on the hosts of the cluster", why=why)
        else:
            log.info("MPI works on the hosts of the cluster", ranks=len(report.ranks))
        return document(report, task.id)

    def _aside(self, config: Config, ledger: Ledger) -> Context:
        """Give what the agent works with, but for its store and its queue."""
        ctx = self._ctx
        return replace(
            ctx,
            ledger=ledger,
            lease_ledger=Ledger(ledger.store),
            queue=open_queue(config, ctx.settings.group),
            settings=replace(ctx.settings, looks=LOCAL_LOOKS, pace=LOCAL_PACE),
            tally=Tally(),
            contacts=(),
        )

    def _keep(self, found: dict[str, Any]) -> None:
        path = self._config.state_dir / _FILE
        part = path.with_suffix(".new")
        part.write_text(json.dumps({**found, "at": self._ctx.clock.wall()}))
        part.replace(path)


def kept_check(state_dir: Path) -> dict[str, Any] | None:
    """Give what the last check of the head's own said, None where there was none."""
    try:
        kept = json.loads((state_dir / _FILE).read_text())
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) else None


def age_of(kept: dict[str, Any]) -> float:
    """Tell how long ago that was, in seconds."""
    at = kept.get("at")
    return max(0.0, time.time() - at) if isinstance(at, int | float) else 0.0
