from dataclasses import replace

import pytest

from simagent.launchers.inside import InsideLauncher
from simagent.ports.launcher import LaunchError, Ranks


def test_the_whole_command_line() -> None:
    ranks = Ranks(np=4, env=("A",), bind="core", args=("--report-bindings",))
    assert InsideLauncher().command(ranks, ("lmp", "-in", "in.lj")) == (
        *("mpirun", "-np", "4", "--bind-to", "core", "--report-bindings", "lmp", "-in", "in.lj"),
    )


@pytest.mark.parametrize("args", [("-bind-to", "core"), ("--bind-to=core",)])
def test_a_binding_among_the_options_is_the_only_one(args: tuple[str, ...]) -> None:
    """Two of them are an error to mpirun."""
    command = InsideLauncher().command(Ranks(np=2, bind="none", args=args), ["a"])
    assert command == ("mpirun", "-np", "2", *args, "a")


def test_a_binding_that_nobody_asked_for_is_said_to_those_alone_that_bear_it() -> None:
    launcher = InsideLauncher()
    ranks = Ranks(np=2, bind="core", wished=True)
    assert launcher.command(ranks, ["a"]) == ("mpirun", "-np", "2", "a")
    said = launcher.environment(ranks)
    assert said["PRTE_MCA_hwloc_default_binding_policy"] == "core:if-supported:overload-allowed"
    assert said["OMPI_MCA_hwloc_base_binding_policy"] == "core:if-supported,overload-allowed"
    assert said["HYDRA_BINDING"] == "core"
    without = launcher.environment(replace(ranks, memory=False))
    assert without["OMPI_MCA_hwloc_base_binding_policy"] == "none"
    assert "HYDRA_BINDING" not in without


def test_no_binding_is_wished_where_the_options_say_one() -> None:
    ranks = Ranks(np=2, bind="core", wished=True, args=("--bind-to", "numa"))
    assert InsideLauncher().environment(ranks) == InsideLauncher().environment(Ranks(np=2))


def test_what_cannot_be_said_on_every_command_line_is_said_by_variables() -> None:
    few, many = Ranks(np=1), Ranks(np=9, oversubscribe=True)
    launcher = InsideLauncher()
    assert launcher.environment(few).items() < launcher.environment(many).items()


@pytest.mark.parametrize("argv", [[], ["-x"], ["a", ":", "b"]])
def test_programs_that_mpirun_would_misread_are_refused(argv: list[str]) -> None:
    with pytest.raises(LaunchError, match=r"^run:"):
        InsideLauncher().command(Ranks(np=2), argv)


@pytest.mark.parametrize("ranks", [Ranks(np=0), Ranks(np=1, bind="moon")])
def test_other_nonsense_is_refused(ranks: Ranks) -> None:
    with pytest.raises(LaunchError, match=r"^mpi\.(np|bind):"):
        InsideLauncher().command(ranks, ["a"])
