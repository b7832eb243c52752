"""What ranks are bound to, as the agent plans it: by what runs them, and what of the machine is."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest

from fakes.rig import Rig
from fakes.tasks import attempt
from simagent.domain.spec import Spec
from simagent.wiring.agent import open_context
from simagent.worker.context import Context
from simagent.worker.journal import Entry, Place
from simagent.worker.plans import Planned, plan_step
from simagent.worker.shares import Share

FIVE = "PRTE_MCA_hwloc_default_binding_policy"
FOUR = "OMPI_MCA_hwloc_base_binding_policy"
MPICH = "HYDRA_BINDING"


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    config = Rig(tmp_path).config()
    config.state_dir.mkdir(parents=True)
    return open_context(config)


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """Let this process use one CPU of the machine's."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


def plan(
    ctx: Context,
    runtime: str,
    share: Share | None = None,
    *,
    interfaces: Sequence[str] = (),
    env: Mapping[str, str] = MappingProxyType({}),
    **mpi: object,
) -> Planned:
    """Plan a step of ranks in an image, on hosts whose network interfaces have these names."""
    identity = ctx.identity
    entry = Entry(
        project="p", task="T", group="g", epoch=1, agent=identity.agent,
        incarnation=identity.incarnation, boot_id="b", attempt=attempt(1), runtime=runtime,
        image="sha256:0", user=(os.geteuid(), 0), share=share or Share(),
        network="10.0.0.0/24" if interfaces else None,
        hosts=tuple(
            Place(name=f"h{at}", address=f"10.0.0.{at}", slots=1, agent=f"a{at}", interface=name)
            for at, name in enumerate(interfaces)
        ),
    )  # fmt: skip
    step = {"run": "a", "env": dict(env), "mpi": {"np": "max", **mpi}}
    spec = Spec.model_validate({"commands": [step], "image": "reg.example/i:1"})
    return plan_step(ctx, spec, ctx.journals.create(entry), 0)


def test_ranks_in_apptainer_are_bound_whatever_their_mpi_is(ctx: Context) -> None:
    made = plan(ctx, "apptainer").step
    assert made.env[FIVE].startswith("core")
    assert made.env[FOUR].startswith("core")
    assert made.env[MPICH] == "core"
    assert not any("bind-to" in word for word in made.argv)


def test_ranks_in_docker_are_bound_by_those_that_leave_their_memory_alone(ctx: Context) -> None:
    made = plan(ctx, "docker").step
    assert made.env[FIVE].startswith("core")
    assert made.env[FOUR] == "none"
    assert MPICH not in made.env


@pytest.mark.parametrize("runtime", ["docker", "apptainer"])
@pytest.mark.parametrize("bind", ["core", "none", "socket"])
def test_a_binding_that_was_asked_for_is_said_to_every_mpi(
    ctx: Context, runtime: str, bind: str
) -> None:
    made = plan(ctx, runtime, bind=bind).step
    assert f"--bind-to {bind}" in " ".join(made.argv)
    assert not {FOUR, FIVE, MPICH} & set(made.env)


@pytest.mark.parametrize("runtime", ["docker", "apptainer"])
def test_tasks_beside_each_other_are_not_bound(ctx: Context, runtime: str) -> None:
    beside = plan(ctx, runtime, Share(cpus=1, cores=(min(os.sched_getaffinity(0)),))).step
    assert "--bind-to none" in " ".join(beside.argv)
    assert not {FOUR, FIVE, MPICH} & set(beside.env)


@pytest.mark.usefixtures("one_cpu")
def test_a_container_that_may_use_more_of_the_machine_than_its_agent_is_not_bound(
    ctx: Context,
) -> None:
    """Else two agents, each on its part of the machine, would bind ranks to the same cores."""
    if os.cpu_count() == 1:
        pytest.skip("machine: it has one CPU")
    assert "--bind-to none" in " ".join(plan(ctx, "docker").step.argv)


def test_a_network_that_was_chosen_is_told_to_the_libraries_of_mpich(ctx: Context) -> None:
    planned = plan(ctx, "apptainer", interfaces=["eth1", "eth1"])
    assert planned.over is not None
    for env in (planned.step.env, planned.over.env):
        assert {env["FI_TCP_IFACE"], env["UCX_NET_DEVICES"]} == {"eth1"}
    assert "FI_TCP_IFACE" in planned.step.env["OMPI_MCA_mca_base_env_list"].split(";")


@pytest.mark.parametrize("interfaces", [["eth1", "ens5"], ["", ""], ["eth1", ""], []])
def test_a_network_is_not_told_where_hosts_have_other_names_for_it_or_something_faster(
    ctx: Context, interfaces: list[str]
) -> None:
    planned = plan(ctx, "apptainer", interfaces=interfaces)
    assert not {"FI_TCP_IFACE", "UCX_NET_DEVICES"} & set(planned.step.env)


def test_what_a_task_says_of_the_network_goes_first(ctx: Context) -> None:
    own = {"FI_TCP_IFACE": "ib0"}
    planned = plan(ctx, "apptainer", interfaces=["eth1", "eth1"], env=own)
    assert planned.step.env["FI_TCP_IFACE"] == "ib0"
