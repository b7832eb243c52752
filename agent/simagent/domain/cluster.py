"""MPI clusters: what the head and the members tell of themselves in the store."""

from typing import Final

from pydantic import Field

from simagent.domain.state import Document, Record

FORMAT = 1
SHOWS_EVERY: Final = 15.0
"""Seconds between two beats of a member in the store."""


class Spanning(Record):
    """An attempt whose ranks run on several hosts."""

    project: str
    task: str
    epoch: int


class HeadLease(Record):
    """Who leads a cluster; ``beat`` counts up in an incarnation."""

    agent: str
    incarnation: str
    beat: int = 0


class Head(Document):
    """`clusters/<name>/head.json`, changed by compare-and-swap only.

    ``public_key`` is what members let in by ssh, in the form of authorized_keys(5). They end the
    ranks of every attempt that is not among ``attempts``.
    """

    format: int = FORMAT
    lease: HeadLease | None = None
    public_key: str = ""
    attempts: tuple[Spanning, ...] = ()
    write_id: str = ""


class Member(Record):
    """`clusters/<name>/members/<agent>.json`: a host on which ranks can be started.

    ``host`` is its name, ``address`` and ``port`` where its ssh server listens for ``ssh_user``,
    who proves itself by ``host_key`` (in the form of known_hosts(5), without the names).
    ``slots`` is the number of ranks that it takes; ``mpi`` names what is installed, such as
    ``openmpi 4.1.4``. ``interface`` is the name of its network's, where there is nothing faster
    than TCP. ``uid`` is whom ranks run as. With ``trouble`` it cannot take part, and says
    why. ``at`` is Unix time, for people alone.
    """

    format: int = FORMAT
    agent: str
    incarnation: str
    beat: int = 0
    at: float = 0.0
    version: str = ""
    host: str
    address: str
    port: int
    ssh_user: str
    host_key: str
    slots: int
    uid: int
    interface: str = ""
    runtimes: tuple[str, ...] = ()
    mpi: tuple[str, ...] = ()
    machine: dict[str, str | int | float] = Field(default_factory=dict)
    running: tuple[Spanning, ...] = ()
    trouble: str = ""
