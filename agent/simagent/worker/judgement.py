"""What the end of a step means for its task."""

from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.domain.state import Status
from simagent.ports.launcher import GUARD_CODE, guard_said
from simagent.ports.runtime import StepExit
from simagent.worker.context import Context
from simagent.worker.diskwatch import shortage
from simagent.worker.endings import Ending, StepLostError
from simagent.worker.journal import Journal
from simagent.worker.orders import Orders
from simagent.worker.plans import Planned
from simagent.worker.ranks import Told, ended_by, read_tail, signal_name, told
from simagent.worker.span import Doors

LOST = (Reason.SHIM_LOST, Reason.ORPHANED, Reason.RUNTIME_FAILED)
"""Of steps with these it is not known how they ended."""


_STRANGERS = (
    "its ranks loaded another MPI than that of mpirun: each was a job of its own; use a program "
    "for the same MPI, or set mpi.force"
)


class StepJudge:
    """Says what the steps of one attempt come to."""

    def __init__(self, ctx: Context, spec: Spec, journal: Journal, orders: Orders) -> None:
        self._ctx = ctx
        self._spec = spec
        self._journal = journal
        self._orders = orders

    def killed(self) -> Ending:
        """End as killed."""
        by = self._orders.kill.by if self._orders.kill is not None else "somebody"
        return Ending(Status.KILLED, Reason.KILLED, f"killed by {by}")

    def timed_out(self) -> Ending:
        """End at the time limit."""
        limit = self._spec.time_limit
        return Ending(Status.TIMED_OUT, Reason.TIME_LIMIT, f"time_limit of {limit:g} s reached")

    def out_of_space(self) -> Ending:
        """End for lack of space."""
        lack = self._orders.no_space or f"less than min_free was free in {self._journal.folder}"
        return Ending(Status.FAILED, Reason.DISK_FULL, lack)

    def judge(
        self,
        number: int,
        planned: Planned,
        exit_: StepExit,
        stopping: Reason | None,
        doors: Doors | None = None,
    ) -> Ending | None:
        """Tell how the steps end with this one; None where the next can follow.

        ``stopping`` is why it was told to end, where it was, ``doors`` what is known of the other
        hosts of its ranks. Raises `StepLostError`.
        """
        if exit_.reason in LOST:
            raise StepLostError(exit_.reason, exit_.message)
        if exit_.reason is Reason.IMAGE_CORRUPT and self._drop_image():
            raise StepLostError(exit_.reason, f"{exit_.message}; it is to be fetched anew")
        if exit_.stopped and stopping is not Reason.MPI_HOST_LOST:
            return self._stopped(stopping)
        if doors is not None:
            lost = doors.lost or ("" if exit_.exit_code == 0 else doors.gone)
            if lost:
                raise StepLostError(Reason.MPI_HOST_LOST, lost)
        if exit_.stopped:
            return self._stopped(stopping)
        where = f"commands[{number}] ({planned.shown[0]})"
        if exit_.reason is not None:
            return Ending(Status.FAILED, exit_.reason, f"{where}: {exit_.message}")
        if exit_.exit_code == GUARD_CODE and self._spec.commands[number].mpi is not None:
            said = guard_said(read_tail(planned.step.stderr))
            if said is not None:
                return Ending(Status.FAILED, said[0], f"commands[{number}]: {said[1]}")
        ranks = self._told(number, planned, exit_)
        # A daemon that crashed, while its host is well, would crash elsewhere, too.
        failed = ranks.failed or (doors is not None and doors.crashed)
        if not failed and doors is not None:
            failed = self._seen_elsewhere(exit_, ranks, doors)
        if failed:
            return self._failed(Reason.MPI_RANK_FAILED, f"{where}: {failed}")
        return self._ran(where, exit_, ranks)

    def _seen_elsewhere(self, exit_: StepExit, ranks: Told, doors: Doors) -> str:
        """Tell of a rank's end by that of MPI's daemons. Raises `StepLostError` of a host's."""
        # Open MPI 5 exits with 0 when one of its daemons is gone.
        lost = doors.died or (ranks.lost and f"host {ranks.lost}: MPI's daemon there is gone")
        if lost:
            raise StepLostError(Reason.MPI_HOST_LOST, lost)
        # It does not always print what it saw.
        by = exit_.signal or ended_by(exit_.exit_code)
        if not doors.dismissed or not by or ranks.note:
            return ""
        return f"a rank was ended by {signal_name(by)}; mpirun did not tell which"

    def _ran(self, where: str, exit_: StepExit, ranks: Told) -> Ending | None:
        more = "".join(f": {text}" for text in (exit_.message, ranks.note) if text)
        if exit_.signal is not None:
            ended = f"{where} was ended by {signal_name(exit_.signal)}{more}"
            return self._failed(Reason.SIGNAL, ended)
        if exit_.exit_code:
            exited = f"{where} exited with code {exit_.exit_code}{more}"
            return self._failed(Reason.EXIT_CODE, exited)
        return None

    def _told(self, number: int, planned: Planned, exit_: StepExit) -> Told:
        """Read what `mpirun` says of a step that may not have ended well; of others, nothing."""
        code = exit_.exit_code if exit_.signal is None else 128 + exit_.signal
        if self._spec.commands[number].mpi is None or (not code and planned.over is None):
            return Told()
        # In a container a signal that ended a rank looks like one that ended mpirun.
        names = {place.address: place.name for place in self._journal.entry.hosts}
        return told(read_tail(planned.step.stdout, planned.step.stderr), code, names)

    def _stopped(self, why: Reason | None) -> Ending:
        match why:
            case Reason.KILLED:
                return self.killed()
            case Reason.TIME_LIMIT:
                return self.timed_out()
            case Reason.DISK_FULL:
                return self.out_of_space()
            case Reason.MPI_MISMATCH:
                return Ending(Status.FAILED, why, _STRANGERS)
        # Told to end for a reason of the agent's, which did not live to act on it.
        raise StepLostError(why or Reason.AGENT_ERROR, "the step was told to end")

    def _drop_image(self) -> bool:
        """Remove an image that was found damaged only now; tell whether it was one to fetch."""
        entry = self._journal.entry
        images, digest = self._ctx.images.get(entry.runtime), entry.attempt.image_digest
        return images is not None and digest is not None and images.remove(digest) > 0

    def _failed(self, reason: Reason, message: str) -> Ending:
        """End as failed; for lack of space where there is one: programs fail of that themselves."""
        lack = self._orders.no_space or shortage(self._ctx, self._journal)
        if lack is not None:
            return Ending(Status.FAILED, Reason.DISK_FULL, f"{message}; {lack}")
        return Ending(Status.FAILED, reason, message)
