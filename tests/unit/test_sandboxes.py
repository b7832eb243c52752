"""What the container of a step is given, told from its journal alone."""

from pathlib import Path

from fakes.tasks import attempt
from simagent.domain.spec import Spec
from simagent.worker.containers import sandbox
from simagent.worker.journal import Entry, Journal

MIB = 1 << 20


def shm(there: int, **mpi: object) -> int | None:
    """Tell the memory that ranks on so many hosts of eight slots share on this one."""
    places = [
        {"name": f"vm{n}", "address": f"10.0.0.{n}", "slots": 8, "agent": f"a{n}"}
        for n in range(there)
    ]
    entry = Entry.model_validate(
        {"project": "p", "task": "T", "group": "g", "epoch": 1, "agent": "a", "incarnation": "i"}
        | {"boot_id": "b", "image": "sif", "user": (1, 1), "hosts": places}
        | {"attempt": attempt(1).model_dump(), "shared": "/shared/c/T"}
    )
    spec = Spec.model_validate({"commands": [{"run": "x", "mpi": mpi}], "image": "i:1"})
    return sandbox(spec, Journal(Path("/state/attempts/T"), entry)).shm_bytes


def test_ranks_share_memory_on_each_host_by_themselves() -> None:
    assert shm(2, np=16, hosts=2) == (64 + 8 * 32) * MIB
    assert shm(2, np=6, hosts=2) == (64 + 3 * 32) * MIB
    assert shm(2, np=1) == (64 + 32) * MIB
