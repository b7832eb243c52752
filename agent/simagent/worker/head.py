"""The head of a cluster: it leads by a lease, knows the hosts, and names what runs on them."""

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from simagent.cluster.ssh import HeadKey, SshError
from simagent.domain import keys
from simagent.domain.cluster import SHOWS_EVERY, HeadLease, Member, Spanning
from simagent.domain.cluster import Head as Record
from simagent.domain.events import Event
from simagent.domain.mutations import SupersededError
from simagent.domain.times import Times
from simagent.ledger import CorruptError, Ledger, TooNewError
from simagent.ports.clock import Clock, Wake
from simagent.ports.launcher import Host
from simagent.ports.store import StoreError
from simagent.worker.hostlist import Wanted, arrange
from simagent.worker.journal import Entry, Place
from simagent.worker.roster import FORGOTTEN_AFTER, LOOK_EVERY, Roster
from simagent.worker.silence import Sign, Silence

_TROUBLES = (StoreError, CorruptError, TooNewError, SshError)
_SETTLED_AFTER = 3 * SHOWS_EVERY

log = structlog.get_logger()


class NotHeadError(Exception):
    """This agent does not lead the cluster; the message says who does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leadership:
    """What a head works with.

    ``own`` is this host, ``network`` MPI's, as ADDRESS/BITS; ``shared_dir`` what all hosts share.
    ``wanted`` are the hosts to use, in order; none named: all. ``size`` is the number of hosts to
    wait for, None: as many as are named. ``trouble`` tells why nothing can run on several hosts.
    """

    cluster: str
    own: Place
    network: str | None = None
    shared_dir: Path | None = None
    wanted: tuple[Wanted, ...] = ()
    size: int | None = None
    trouble: str = ""


class Head:
    """Leads a cluster while its lease is not another's.

    `run` is a thread of the agent; the other methods may be called by any.
    """

    def __init__(
        self,
        it: Leadership,
        ledger: Ledger,
        clock: Clock,
        times: Times,
        *,
        incarnation: str,
        key: HeadKey,
    ) -> None:
        self.it = it
        self._ledger = ledger
        self._clock = clock
        self._times = times
        self._me = HeadLease(agent=it.own.agent, incarnation=incarnation)
        self._key = key
        self._roster = Roster(ledger, clock, it.cluster)
        self._record = keys.cluster_head(it.cluster)
        self._named: tuple[Spanning, ...] = ()
        self._written: tuple[Spanning, ...] | None = None
        self._other: HeadLease | None = None
        self._silence: Silence | None = None
        self._leads = False
        self.over = False
        """Set where this agent ends for good, and nothing of it runs on."""
        self.joined = 0
        """How often there was a host more, or all that are waited for."""
        self.on_join: Callable[[], None] = lambda: None
        self._there: set[str] = set()
        self._ready = False
        self._most = 1
        """The hosts that there were at a time, within a day."""
        self._most_at = clock.now()
        self._awaited: tuple[object, ...] = ()
        self._began = clock.now()
        self._renew_at = clock.now()
        self._lock = threading.Lock()
        self._wake = Wake()

    # --- Its thread -----------------------------------------------------------------------------

    def run(self, stop: Wake) -> None:
        """Lead, or wait to, until ``stop`` is set; then, if it is `over`, leave that to others."""
        told = ""
        while not stop.is_set():
            self._wake.clear()
            try:
                self.turn()
                told = ""
            except _TROUBLES as error:
                if str(error) != told:
                    told = str(error)
                    log.warning("cluster not looked after", cluster=self.it.cluster, error=told)
            self._clock.wait(min(LOOK_EVERY, self._times.renew_every), stop, self._wake)
        if self.over:
            with suppress(*_TROUBLES):
                self.resign()

    def resign(self) -> None:
        """Give the lease up, so that another head need not wait. Raises all that `turn` does."""

        def leave(head: Record) -> Record:
            mine = head.lease is not None and head.lease.agent == self._me.agent
            return head.with_(lease=None, attempts=()) if mine else head

        with self._lock:
            self._ledger.change_document(self._record, Record(), leave)
            self._leads = False

    def turn(self) -> None:
        """Do what is due. Raises StoreError, `CorruptError`, `TooNewError`, `SshError`."""
        now = self._clock.now()
        if now >= self._renew_at or (self._leads and self._written != self._named):
            self._renew_at = now + self._times.renew_every
            self._lead()
        self._roster.look()
        self._tell()
        if self._leads:
            self._roster.forget()

    def _lead(self) -> None:
        asked = self._clock.now()
        try:
            self._write(judged=None)
        except SupersededError:
            if self._is_dead(asked):
                with suppress(SupersededError):  # another one that waited was first
                    self._write(judged=self._other)

    def _write(self, judged: HeadLease | None) -> None:
        """Take the lease or renew it; ``judged`` is a holder that is dead.

        Raises `SupersededError` where another leads, and all that `turn` does.
        """
        with self._lock:
            self._me = self._me.with_(beat=self._me.beat + 1)
            me, public = self._me, self._key.public

            def lead(head: Record) -> Record:
                lease = head.lease
                # A lease of this agent's is one of an earlier incarnation: it is alone on its
                # state folder.
                if lease is not None and lease.agent != me.agent and lease != judged:
                    self._other = lease
                    raise SupersededError(f"cluster {self.it.cluster} is led by {lease.agent}")
                return head.with_(lease=me, public_key=public, attempts=self._named)

            try:
                written = self._ledger.change_document(self._record, Record(), lead)
            except SupersededError:
                if self._leads:
                    log.warning(Event.CLUSTER_LOST, cluster=self.it.cluster, agent=self._by)
                self._leads = False
                raise
            self._written = written.attempts
            if not self._leads:
                log.info(Event.CLUSTER_LED, cluster=self.it.cluster)
            self._leads, self._other, self._silence = True, None, None

    def _is_dead(self, asked: float) -> bool:
        """Tell whether the other head is proven dead, as a task's holder would be."""
        if (silence := self._silence) is None:
            self._silence = Silence(self._ledger, self._clock, self._times, self._other)
            return False
        return silence.observe(self._other, asked) is Sign.DEAD

    def _tell(self) -> None:
        """Log for how many hosts it waits, each time that this changes."""
        missing = self.missing
        awaited = (missing, *sorted(self._roster.amiss()))
        if awaited != self._awaited and not self._ready and self._leads:
            if missing:
                log.info(
                    Event.HOSTS_AWAITED,
                    cluster=self.it.cluster,
                    missing=missing,
                    of=self.size,
                    error=self.away().strip(" ()"),
                )
            elif self.size > 1:
                log.info(Event.HOSTS_THERE, cluster=self.it.cluster, hosts=self.size)
        self._awaited = awaited
        self._ready = self._ready or not missing
        there = {place.agent for place in self.places()} if self.trouble() is None else set()
        if there - self._there:
            self.joined += 1
            self.on_join()
        self._there = there
        count, now = len(self.places()), self._clock.now()
        if count >= self._most or now - self._most_at >= FORGOTTEN_AFTER:
            self._most, self._most_at = count, now

    # --- The hosts ------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """The hosts that have to be there before a first task on several, this one counted."""
        others = [wanted for wanted in self.it.wanted if not wanted.means(self.it.own)]
        return self.it.size or 1 + len(others)

    @property
    def missing(self) -> int:
        """How many of them are not there yet."""
        return max(0, self.size - len(self.places()))

    @property
    def settled(self) -> bool:
        """Whether all had the time to show themselves, and none is away: more may never come."""
        waited = self._clock.now() - self._began >= _SETTLED_AFTER
        away = self.missing or len(self.places()) < self._most or self._roster.amiss()
        return self._ready and waited and not away

    def places(self) -> tuple[Place, ...]:
        """List the hosts that can be used, this one first."""
        return arrange(self.it.own, self._roster.members(), self.it.wanted)

    def hosts(self) -> list[Host]:
        """List the same as launchers see them."""
        return [place.host for place in self.places()]

    def trouble(self) -> str | None:
        """Tell why no ranks can be started on other hosts just now; None where they can."""
        if self.it.trouble:
            return self.it.trouble
        cluster, names = self.it.cluster, [place.name for place in self.places()]
        for name in names:
            if names.count(name) > 1:
                return f"two hosts of cluster {cluster} are named {name}: rename one of them"
        if not self._leads:
            return f"cluster {cluster} is led by {self._by}" if self._by else "it has not begun yet"
        if not self._ready:
            return f"{self._waiting()}{self.away()}"
        return None

    def _waiting(self) -> str:
        return f"cluster {self.it.cluster} waits for {self.missing} of {self.size} hosts"

    def away(self) -> str:
        """Tell which hosts are not there, and why, as far as that is known."""
        there = self._roster.members()
        unknown = [
            wanted.name
            for wanted in self.it.wanted
            if not wanted.means(self.it.own) and not any(map(wanted.means_member, there))
        ]
        known = self._roster.amiss()
        parts = [f"{host}: {why}" for host, why in sorted(known.items())]
        others = ", ".join(member.host for member in there) or "no other"
        parts += [
            f"no member is called {name}, there is {others}"
            for name in unknown
            if name not in known
        ]
        return f" ({'; '.join(parts)})" if parts else ""

    @property
    def status(self) -> str:
        """What there is to say of the cluster in a few words."""
        if self.it.trouble:
            return f"cluster {self.it.cluster}: {self.it.trouble}"
        if not self._leads:
            return f"cluster {self.it.cluster} is led by {self._by or 'nobody yet'}"
        if not self._ready:
            return self._waiting()
        return f"{len(self.places())} hosts"

    @property
    def _by(self) -> str:
        return other.agent if (other := self._other) else ""  # gone as soon as this one leads

    def member(self, place: Place) -> Member | None:
        """Give what a host that can be used tells of itself; None of this one."""
        return next((it for it in self._roster.members() if it.agent == place.agent), None)

    def ssh(self, place: Place) -> tuple[str, ...]:
        """Give the command line by which a member is entered. Raises `SshError`."""
        try:
            member = self._roster.find(place.agent)
        except StoreError as error:
            raise SshError(f"host {place.name} is not known yet: {error}") from error
        if member is None:
            raise SshError(f"host {place.name} is no longer a member of cluster {self.it.cluster}")
        return self._key.command(member)

    def doubt(self, place: Place, why: str) -> None:
        """Do not use a host for a while, which could not be entered."""
        self._roster.doubt(place.agent, why)

    # --- What runs on them ----------------------------------------------------------------------

    def adopt(self, entries: Iterable[Entry]) -> None:
        """Go on naming what an earlier incarnation had begun: else members would end it."""
        for entry in entries:
            mine = entry.agent == self._me.agent  # not of a machine whose disk was cloned
            if mine and entry.hosts and entry.cluster == self.it.cluster and entry.outcome is None:
                self._named += (spanning(entry),)

    def name(self, entry: Entry) -> None:
        """Name an attempt in the record, before anything of it is started on members.

        Raises `NotHeadError`, and all that `turn` does.
        """
        with self._lock:
            if (named := spanning(entry)) not in self._named:
                self._named += (named,)
        try:
            self._write(judged=None)
        except SupersededError as error:
            self.release(entry)
            raise NotHeadError(str(error)) from None

    def release(self, entry: Entry) -> None:
        """Name an attempt no longer: members end what still runs of it."""
        with self._lock:
            gone = spanning(entry)
            self._named = tuple(named for named in self._named if named != gone)
        self._wake.set()


def spanning(entry: Entry) -> Spanning:
    """Give an attempt as members know it."""
    return Spanning(project=entry.project, task=entry.task, epoch=entry.epoch)
