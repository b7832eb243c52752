"""On which hosts a task is to run, and why it is refused."""

from pathlib import Path
from typing import Any

import pytest

from fakes.clock import FakeClock
from fakes.hosts import member
from fakes.store import MemoryStore
from fakes.tasks import attempt
from simagent.cluster.ssh import HeadKey
from simagent.domain import keys
from simagent.domain.spec import Spec
from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.worker.choice import NoRuntimeError
from simagent.worker.cores import physical_cores
from simagent.worker.head import Head, Leadership
from simagent.worker.journal import Entry, Journal, Place
from simagent.worker.roster import LOOK_EVERY
from simagent.worker.spanning import choose_hosts, on_hosts, pinned_image, shared_name

CORES = physical_cores()
DIGEST = "sha256:" + "0" * 64


class Key(HeadKey):
    @property
    def public(self) -> str:
        return "ssh-ed25519 AAAA"


def spec(image: str | None = None, network: str | None = None, **mpi: object) -> Spec:
    commands = ["first", {"run": "lmp", "mpi": mpi}]
    return Spec.model_validate({"commands": commands, "image": image, "network": network})


def cluster(*hosts: str, settled: bool = False, **fields: Any) -> Head:
    """Make a head of these members, two slots each; its own host has one for each core."""
    store, clock = MemoryStore(), FakeClock()
    own = Place(name="head", address="10.0.0.1", slots=CORES, agent="h")
    made: dict[str, Any] = {"cluster": "c", "own": own, "shared_dir": Path("/shared")}
    it = Leadership(**(made | fields))
    head = Head(it, Ledger(store), clock, Times(), incarnation="1", key=Key(Path("/nowhere")))
    head.turn()
    beats = range(20) if settled else range(1)
    for beat in beats:
        for host in hosts:
            shown = member(host, beat, runtimes=("docker",))
            store.put(keys.cluster_member("c", shown.agent), shown.model_dump_json().encode())
        clock.advance(LOOK_EVERY)
        head.turn()
    return head


def names(task: Spec, head: Head | None, **more: Any) -> list[str]:
    return [place.name for place in choose_hosts(task, head, **more)]


def refused(task: Spec, head: Head | None, **more: Any) -> tuple[str, bool]:
    with pytest.raises(NoRuntimeError) as error:
        choose_hosts(task, head, **more)
    return str(error.value), error.value.lasting


def test_a_task_has_as_many_hosts_as_its_widest_step_needs() -> None:
    head = cluster("a", "b")
    assert names(spec(np="max"), head) == ["head", "a", "b"]
    assert names(spec(np=2, hosts=2), head) == ["head", "a"]
    assert names(spec(np=CORES + 1), head) == ["head", "a"]
    commands = [{"run": "a", "mpi": {"np": 2, "hosts": 2}}, {"run": "b", "mpi": {"np": "max"}}]
    assert names(Spec.model_validate({"commands": commands}), head) == ["head", "a", "b"]


def test_what_fits_on_this_host_runs_on_it_alone_whatever_the_cluster_does() -> None:
    for head in (None, cluster(size=3), cluster("a"), cluster(trouble="no shared_dir")):
        assert names(spec(np=1), head) == []
        assert names(spec(np=CORES), head) == []
        assert names(Spec.model_validate({"commands": ["true"]}), head) == []
        assert names(spec(np="max", hosts=1), head) == []


def test_ranks_on_every_core_wait_for_the_hosts_of_the_cluster() -> None:
    head = cluster("a", size=3)
    assert refused(spec(np="max"), head) == (
        "commands[1].mpi: cluster c waits for 1 of 3 hosts",
        False,
    )
    assert names(spec(np="max"), cluster("a", size=2)) == ["head", "a"]


def test_more_than_the_cluster_has_may_come_until_all_had_the_time_to() -> None:
    wanted = spec(np=2, hosts=3)
    why = "commands[1].mpi.hosts: 3 hosts are asked for, the cluster has 2: ask for fewer"
    assert refused(wanted, cluster("a")) == (why, False)
    assert refused(wanted, cluster("a", settled=True)) == (why, True)
    assert refused(spec(np=CORES + 3), cluster("a", settled=True)) == (
        f"commands[1].mpi.np: {CORES + 3} ranks are asked for, the 2 hosts have {CORES + 2} "
        "slots: ask for fewer, or set mpi.oversubscribe",
        True,
    )


def test_a_host_that_is_away_is_waited_for() -> None:
    head = cluster("a", "b", settled=True)
    assert names(spec(np=3, hosts=3), head) == ["head", "a", "b"]
    b = Place(name="b", address="10.0.0.98", slots=2, agent="agent-b")
    head.doubt(b, "it was lost")
    assert refused(spec(np=3, hosts=3), head) == (
        "commands[1].mpi.hosts: 3 hosts are asked for, the cluster has 2: ask for fewer "
        "(b: it was lost)",
        False,
    )


def test_several_hosts_want_a_cluster() -> None:
    assert refused(spec(np=2, hosts=2), None) == (
        "commands[1].mpi.hosts: 2 hosts are asked for, there is no more than this one: "
        "ask for fewer",
        True,
    )
    why = "mpi.shared_dir is not set"
    assert refused(spec(np=2, hosts=2), cluster("a", trouble=why)) == (
        f"commands[1].mpi: {why}",
        True,
    )


def test_ranks_on_several_hosts_cannot_do_without_the_network() -> None:
    why, lasting = refused(spec("i@" + DIGEST, "none", np="max"), cluster("a"))
    assert why.startswith("network: its ranks lie on 2 hosts and need the network")
    assert lasting


def test_all_hosts_need_what_runs_the_image() -> None:
    task, head = spec("i@" + DIGEST, np="max"), cluster("a")
    assert names(task, head, runtime="docker") == ["head", "a"]
    assert refused(task, head, runtime="apptainer") == (
        "runtime: host a has no apptainer: install it there",
        False,
    )


def entry(**fields: object) -> Entry:
    made = {"project": "p", "task": "T", "group": "g", "epoch": 3, "agent": "h", "boot_id": "b"}
    made |= {"incarnation": "1", "attempt": attempt(3).model_dump()}
    return Entry.model_validate(made | fields)


def test_an_attempt_on_several_hosts_has_a_folder_that_they_share() -> None:
    head = cluster("a", network="10.0.0.0/24")
    made = on_hosts(entry(), choose_hosts(spec(np="max"), head), head)
    assert [place.name for place in made.hosts] == ["head", "a"]
    assert (made.cluster, made.network) == ("c", "10.0.0.0/24")
    assert Journal(Path("/state/attempts/x"), made).base == Path("/shared/c/p.T.3.h")
    assert shared_name(made) == "c/p.T.3.h"
    alone = on_hosts(entry(), (), head)
    assert alone == entry()


def test_all_hosts_get_the_image_that_the_head_has() -> None:
    had = entry(attempt=attempt(3).with_(image_digest=DIGEST).model_dump())
    assert pinned_image(spec("i:latest", np=1), had) == f"docker://docker.io/library/i@{DIGEST}"
    assert pinned_image(spec("store://images/x.sif", np=1), had) == "store://images/x.sif"
    assert pinned_image(spec(np=1), had) is None
