"""Shows the head of a cluster that this member is there, and what it has."""

from collections.abc import Callable

import structlog

from simagent.cluster.sshd import Sshd, SshdError
from simagent.domain import keys
from simagent.domain.cluster import SHOWS_EVERY, Member
from simagent.ports.clock import Wake
from simagent.ports.store import StoreError
from simagent.worker.address import AddressError, own_address, tcp_device
from simagent.worker.capacity import short_of_space
from simagent.worker.entries import Entries
from simagent.worker.membership import Membership
from simagent.worker.sharing import NOT_SHARED

_REST = 1 / 6

log = structlog.get_logger()


class Registration:
    """A thread of a member that writes `clusters/<name>/members/<agent>.json` now and then.

    After a `change` it does so at once, but not more often than every sixth of that time. No
    failure matters: the head waits for several beats.
    """

    def __init__(
        self,
        member: Membership,
        entries: Entries,
        sshd: Sshd,
        *,
        port: int,
        user: str,
        trouble: Callable[[], str],
    ) -> None:
        """``port`` and ``user`` are of ``sshd``; ``trouble`` tells why no ranks can come here."""
        self._member = member
        self._entries = entries
        self._sshd = sshd
        self._port = port
        self._user = user
        self._trouble = trouble
        self._every = min(SHOWS_EVERY, member.times.heartbeat_every)
        self._changed = Wake()
        self._beats = 0
        self.over = False
        """Set before the end where nothing is left here: then nothing is shown any more."""

    def run(self, stop: Wake) -> None:
        """Beat until ``stop`` is set."""
        clock = self._member.clock
        while True:
            self._changed.clear()
            self.beat()
            if clock.wait(self._every * _REST, stop):
                break
            clock.wait(self._every * (1 - _REST), stop, self._changed)
            if stop.is_set():
                break
        if self.over:
            self._withdraw()

    def change(self) -> None:
        """Note that something is other than it was. Any thread may call it."""
        self._changed.set()

    def beat(self) -> None:
        """Write what this member is."""
        self._beats += 1
        key = keys.cluster_member(self._member.cluster, self._member.identity.agent)
        try:
            self._member.ledger.store.put(key, self._record().model_dump_json(indent=1).encode())
        except StoreError as error:
            log.debug("member not shown", key=key, error=str(error))
        except OSError as error:  # of this machine: nobody else tells of it
            log.warning("member not shown", key=key, error=str(error))

    def _record(self) -> Member:
        member, identity = self._member, self._member.identity
        troubles = [self._trouble(), _sharing(member), _room(member)]
        address = interface = host_key = ""
        try:
            address = str(own_address(member.interface).ip)
            interface = tcp_device(member.interface)
            host_key = self._sshd.host_key
        except (AddressError, SshdError) as error:
            troubles.append(str(error))
        return Member(
            agent=identity.agent,
            incarnation=identity.incarnation,
            beat=self._beats,
            at=member.clock.wall(),
            version=identity.version,
            host=member.host,
            address=address,
            port=self._port,
            ssh_user=self._user,
            host_key=host_key,
            slots=member.slots,
            uid=member.settings.users.common[0],
            interface=interface,
            runtimes=_runtimes(member),
            mpi=member.mpi(),
            machine=dict(identity.machine),
            running=self._entries.running(),
            trouble=next(filter(None, troubles), ""),
        )

    def _withdraw(self) -> None:
        key = keys.cluster_member(self._member.cluster, self._member.identity.agent)
        try:
            self._member.ledger.store.delete(key)
        except StoreError as error:
            log.debug("member not removed", key=key, error=str(error))


def _runtimes(member: Membership) -> tuple[str, ...]:
    settings = member.settings
    allowed = (*(("process",) if settings.allow_process else ()), *settings.containers)
    return tuple(
        name
        for name, runtime in member.runtimes.items()
        if name in allowed and runtime.trouble() is None
    )


def _sharing(member: Membership) -> str:
    if member.shared_dir is None:
        return NOT_SHARED
    if not member.shared_dir.is_dir():
        return f"mpi.shared_dir: there is no folder {member.shared_dir}: mount it"
    return ""


def _room(member: Membership) -> str:
    return short_of_space(member.folder, member.settings.min_free) or ""
