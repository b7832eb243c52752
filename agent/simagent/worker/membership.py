"""What a member of a cluster works with: made once by the wiring, never changed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.ports.clock import Clock
from simagent.ports.cloud import Cloud
from simagent.ports.images import Images
from simagent.ports.runtime import Runtime
from simagent.telemetry.contact import Contact
from simagent.telemetry.tally import Tally
from simagent.worker.context import Identity, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """The member's engines, clock, identity and settings.

    ``folder`` is of this role alone. ``slots`` are the ranks it takes, ``interface`` is where it is
    reached (`simagent.worker.address`), ``shared_dir`` what all hosts share, at its path here.
    With ``hybrid`` its own MPI may start ranks in images; ``mpi`` tells the versions that are
    installed, such as ``openmpi 4.1.4``. ``gpus`` names those that ranks may have, where they are
    known. ``contacts`` tell how it stands with the store.
    """

    cluster: str
    ledger: Ledger
    clock: Clock
    times: Times
    identity: Identity
    folder: Path
    runtimes: Mapping[str, Runtime]
    images: Mapping[str, Images] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    slots: int = 1
    interface: str | None = None
    shared_dir: Path | None = None
    hybrid: bool = True
    cloud: Cloud | None = None
    mpi: Callable[[], tuple[str, ...]] = tuple
    gpus: tuple[str, ...] = ()
    tally: Tally = field(default_factory=Tally)
    contacts: tuple[Contact, ...] = ()

    @property
    def host(self) -> str:
        """The name of this host."""
        return str(self.identity.machine.get("hostname", ""))

    @property
    def entries(self) -> Path:
        """Where the records of what runs here are."""
        return self.folder / "entries"
