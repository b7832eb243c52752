"""A member of a cluster: an agent that takes no tasks, but ranks of those of the cluster's head."""

import os
import pwd
import socket
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog

from simagent.cluster.duties import RefusedError
from simagent.cluster.entrance import Entrance
from simagent.cluster.messages import Check, Checked, Departs, Enter, Fetch, Fetched
from simagent.cluster.sshd import Sshd
from simagent.domain.events import Event
from simagent.domain.reasons import Reason
from simagent.ports.clock import Waitable, Wake
from simagent.worker.caretaker import Caretaker
from simagent.worker.drain import DrainFile
from simagent.worker.endoflife import EXIT, NO_END, End, EndOfLife, Terms
from simagent.worker.entries import Entries
from simagent.worker.entry import EntryHold
from simagent.worker.entry_plans import check_gpus, fetch_image
from simagent.worker.headwatch import HeadWatch
from simagent.worker.membership import Membership
from simagent.worker.notices import NoticeWatch
from simagent.worker.notify import Notifier
from simagent.worker.observing import DiskLook, Life, view_counts, view_engine
from simagent.worker.orders import Detached, Interrupted, Preempted, TakenAway
from simagent.worker.registration import Registration
from simagent.worker.sharing import verify
from simagent.worker.snapshot import Snapshot, stage_of
from simagent.worker.threads import CoreThread, Threads
from simagent.worker.users import open_the_way
from simagent.worker.versions import Versions, ask_engines

_TICK = 1.0
_HELPERS_WITHIN = 1.0
_SHARE_OF_HEADS = 0.6
"""Of the time that is left when the machine goes away: then the ranks are ended from here."""
_HEADS_TIME = 5.0
"""Seconds that heads get where a person waits."""
_DRAINING = "it takes no more ranks: its agent is being drained"

log = structlog.get_logger()


class MemberDuties:
    """What the member does for its head: `simagent.cluster.duties.Duties` tells what each is."""

    def __init__(self, member: Membership, entries: Entries) -> None:
        self._member = member
        self._entries = entries

    def check(self, request: Check) -> Checked:
        """See whether this host can take part."""
        if self._entries.closed:
            raise RefusedError(Reason.MPI_HOST_LOST, self._entries.closed)
        verify(self._member, request)
        check_gpus(self._member, request.gpus)
        return Checked(host=self._member.host, version=self._member.identity.version)

    def fetch(self, request: Fetch, gone: Waitable) -> Fetched:
        """Have an image."""
        fetch_image(self._member, request, gone)
        return Fetched()

    @property
    def departs(self) -> Waitable:
        """Ready once this host is about to go away."""
        return self._entries.departure.announced

    def departure(self) -> Departs:
        """Tell why this host goes away, and when."""
        return self._entries.departure.told()

    def enter(self, request: Enter, gone: Waitable) -> EntryHold:
        """Start a run, or give the one that was started for the same entry before."""
        return self._entries.enter(request, gone)


class MemberAgent:
    """The member: runs until it is told to stop, or until it is drained.

    Told to let go, it leaves what it runs, and its ssh server, to the next one that is started.
    """

    def __init__(
        self,
        member: Membership,
        entries: Entries,
        entrance: Entrance,
        listener: socket.socket,
        sshd: Sshd,
        *,
        port: int,
        user: str,
        drain: DrainFile,
        terms: Terms = NO_END,
        end: End = EXIT,
    ) -> None:
        """``listener`` is the socket of the ``entrance``; ``port`` and ``user`` are of ``sshd``.

        ``end`` is what is done where it ends by its ``terms``: idle is a member that has no ranks,
        and whose cluster has no head.
        """
        self._member = member
        self._entries = entries
        self._entrance = entrance
        self._listener = listener
        self._sshd = sshd
        self._drain_file = drain
        self._draining = False
        self._order: Interrupted | None = None
        self._lock = threading.RLock()
        self._deadline = self._end_at = 0.0
        self._ended = Wake()
        self._wake = Wake()
        self._threads = Threads(self._wake)
        self._watch = HeadWatch(member, entries, sshd)
        self._registration = Registration(
            member, entries, sshd, port=port, user=user, trouble=self._trouble
        )
        self._notifier = Notifier()
        self._life = Life(member.clock)
        self._versions = Versions(
            lambda: ask_engines(member.runtimes, ", ".join(member.mpi())), member.clock
        )
        floor = member.settings.min_free
        self._disk = DiskLook(member.folder.parent, member.images, floor)
        self._caretaker = _caretaker(member, entries) if member.images else None
        self._shown: object = None
        self._ending = EndOfLife(terms, end, member.clock, partial(self._threads.start, "end"))
        self._at_last: Preempted | None = None
        """The order for what still runs when the lifetime and its grace are over."""

    # --- Asked for from outside, also by signal handlers --------------------------------------

    def drain(self) -> None:
        """Begin no more runs; `run` returns when those that there are have ended."""
        self._draining = True
        self._wake.set()

    @property
    def taken_away(self) -> bool:
        """Whether it ends because the cloud takes the machine."""
        return isinstance(self._order, TakenAway)

    def interrupt(self, order: Interrupted) -> None:
        """Return soon: what runs is left to the next agent where the order lets go, else ended."""
        with self._lock:
            if not order.outweighs(self._order):
                return
            if isinstance(order, Preempted):
                self._announce(order)
            self._order = order
        self._draining = True  # only now, or an idle member would end as one that was drained
        self._wake.set()

    def _announce(self, order: Preempted) -> None:
        now = self._member.clock.now()
        until = order.until or now + self._member.settings.give_back_within
        self._deadline = until
        # First the head may end the step, so that its task is given back in good order.
        hasty = now + _HEADS_TIME if order.until is None else until
        self._end_at = min(hasty, now + _SHARE_OF_HEADS * (until - now))
        self._entries.departure.announce(str(order), until)

    def snapshot(self) -> Snapshot:
        """Tell how it stands. Any thread may ask; nothing is waited for."""
        member = self._member
        failing = any(contact.met().failing is not None for contact in member.contacts)
        stage = stage_of(
            self._order, draining=self._closing, store_fails=failing, queue_fails=False
        )
        disk = self._disk.look(member.clock)
        notices = (str(self._order or ""), self._watch.trouble, disk.shortage)
        return Snapshot(
            role="member",
            stage=stage,
            agent=member.identity.agent,
            incarnation=member.identity.incarnation,
            group=member.settings.group,
            cluster=member.cluster,
            text=self._text,
            pid=os.getpid(),
            at=member.clock.wall(),
            started=self._life.started,
            uptime=self._life.uptime,
            turned=self._life.turned,
            runs=self._entries.views(),
            engines=tuple(map(view_engine, member.contacts)),
            disk=disk,
            versions=self._versions.tell(),
            notices=tuple(filter(None, notices)),
            counts=view_counts(member.tally),
        )

    # --- The loop -----------------------------------------------------------------------------

    def run(self) -> None:
        """Run until told to stop. Raises the error of a thread that died of one."""
        identity = self._member.identity
        log.info(
            Event.AGENT_STARTED,
            agent=identity.agent,
            incarnation=identity.incarnation,
            version=identity.version,
            limits=identity.machine.get("limits"),
            member_of=self._member.cluster,
        )
        self._entries.tend()  # who asks for what ran before finds it
        registering = self._start_helpers()
        self._notifier.ready()
        try:
            while not self._turn():
                self._notifier.alive()
                self._member.clock.wait(_TICK, self._wake)
            if not isinstance(self._order, Detached):
                self._close()
            if isinstance(self._order, Preempted) and self._entries.count == 0:
                self._order.over()
        finally:
            self._notifier.stopping()
            self._ended.set()
            registering.join(_HELPERS_WITHIN)
            log.info(Event.AGENT_STOPPED, reason=str(self._order or "it was drained"))

    def _start_helpers(self) -> CoreThread:
        member, start = self._member, self._threads.start
        watch = partial(self._drain_file.watch, member.clock, self._ended, self._wake.set)
        start("drain", partial(watch, self.interrupt))
        if member.cloud is not None:
            notices = NoticeWatch(member.cloud, member.clock, self.interrupt)
            notices.ask()
            start("notices", partial(notices.run, self._ended))
        start("entrance", partial(self._entrance.serve, self._listener, self._ended))
        start("head", partial(self._watch.run, self._ended))
        if self._caretaker is not None:
            start("caretaker", partial(self._caretaker.run, self._ended))
        return start("member", partial(self._registration.run, self._ended))

    def _turn(self) -> bool:
        """Do what is due; True when there is nothing left to do."""
        self._wake.clear()
        self._life.turn()
        if self._threads.error is not None:
            raise self._threads.error
        if isinstance(self._order, Detached):
            return True
        entries = self._entries
        entries.closed = _DRAINING if self._told_to_drain else ""
        if self._ending.closing:
            entries.closed = f"it takes no more ranks: {self._ending.why}"
        if isinstance(self._order, Preempted):
            entries.closed = str(self._order)
        entries.tend()
        count = entries.count
        shown = (entries.running(), entries.closed, self._watch.trouble)
        if shown != self._shown:
            self._shown = shown
            self._registration.change()
        if self._order is not None:
            parted = self._part(self._order, count)
            if not parted or self._order is not self._at_last:
                return parted
            count = 0
        fetches = self._caretaker is not None and not self._caretaker.settled
        order = self._ending.look(busy=count > 0, wanted=fetches or self._watch.led)
        if order is not None and self._order is None:
            self._at_last = order
            self.interrupt(order)
        self._notifier.status(self._text)
        told = self._told_to_drain and self._at_last is None
        return self._ending.over or (told and count == 0)

    @property
    def _text(self) -> str:
        what = "draining, " if self._closing else f"member of {self._member.cluster}, "
        parts = (f"{what}{self._entries.count} runs of its head", self._ending.status)
        return "; ".join(filter(None, (*parts, self._watch.unread or self._watch.trouble)))

    def _part(self, order: Interrupted, count: int) -> bool:
        """See that what runs ends in time; True when there is nothing left, or no time."""
        now = self._member.clock.now()
        if now >= self._end_at:
            self._entries.end_all(str(order), (self._deadline - now) / 2)
        return count == 0 or now > self._deadline

    @property
    def _closing(self) -> bool:
        return self._told_to_drain or self._ending.closing

    @property
    def _told_to_drain(self) -> bool:
        return self._draining or self._drain_file.asked

    def _trouble(self) -> str:
        return self._entries.closed or self._watch.trouble

    def _close(self) -> None:
        """End in good order: nothing is left here, and nobody is to come."""
        self._registration.over = True
        self._sshd.stop()
        if self._order is None:
            self._drain_file.withdraw()


def open_door(folder: Path, user: str) -> tuple[set[int], int | None]:
    """Make a member's folder; tell whose relays may come in, and the group that needs a way there.

    That is ``user``, as whom the ssh server runs them, where the agent is root's. Raises OSError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = os.geteuid()
    with suppress(KeyError):
        account = pwd.getpwnam(user)
        if own == 0 and account.pw_uid != 0:
            open_the_way(folder / user, folder.parent)
            return {own, account.pw_uid}, account.pw_gid
    return {own}, None


def _caretaker(member: Membership, entries: Entries) -> Caretaker:
    settings = member.settings
    return Caretaker(
        clock=member.clock,
        journals=entries,
        known=entries.holds,
        runtimes=member.runtimes,
        images=member.images,
        marks=settings.marks,
        prefetch=settings.prefetch,
        containers=settings.containers,
        min_free=settings.min_free,
    )
