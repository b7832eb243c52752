import pytest

from simagent.launchers.openmpi import OpenMpiLauncher
from simagent.ports.launcher import LaunchError, Ranks

FOUR = OpenMpiLauncher("mpirun", version="4.1.4", root=False)
FIVE = OpenMpiLauncher("mpirun", version="5.0.7", root=False)


def test_the_whole_command_line() -> None:
    launcher = OpenMpiLauncher("/opt/openmpi/5.0/bin/mpirun", version="5.0.7", root=True)
    ranks = Ranks(
        np=4,
        env=("OMP_NUM_THREADS", "PATH"),
        bind="socket",
        oversubscribe=True,
        args=("--mca", "btl", "self,vader"),
    )
    assert launcher.command(ranks, ("lmp", "-in", "in.lj")) == (
        *("/opt/openmpi/5.0/bin/mpirun", "--allow-run-as-root", "-np", "4"),
        *("-x", "OMP_NUM_THREADS", "-x", "PATH", "--bind-to", "package"),
        *("--map-by", ":OVERSUBSCRIBE", "--mca", "btl", "self,vader", "lmp", "-in", "in.lj"),
    )


def test_version_4_spells_some_options_otherwise() -> None:
    ranks = Ranks(np=4, bind="socket", oversubscribe=True)
    assert FOUR.command(ranks, ["a"]) == (
        *("mpirun", "-np", "4", "--bind-to", "socket", "--oversubscribe", "a"),
    )


def test_ranks_bound_to_hardware_threads_get_a_slot_on_each() -> None:
    assert "--use-hwthread-cpus" in FIVE.command(Ranks(np=2, bind="hwthread"), ["a"])


@pytest.mark.parametrize(
    "args",
    [
        ("--mca", "plm_rsh_agent", "/tmp/x"),
        ("-mca", "plm_rsh_agent", "/tmp/x"),
        ("--mca", "btl_base_path", "x"),
        ("--mca", "mpi_show_mca_params_file", "x"),
        ("--mca", "mca_base_component_path", "x"),
        ("--mca", "odls_base_sigkill_timeout", "1"),
        ("--mca", "btl", "tcp;rm"),
        ("--mca", "btl"),
        ("--launch-agent", "/tmp/x"),
        ("--prefix", "/tmp"),
        ("--host", "a,b"),
        ("--hostfile", "h"),
        ("--app", "x"),
        ("--tune", "x"),
        ("--output-filename", "x"),
        ("--preload-binary",),
        ("-x", "LD_PRELOAD=/tmp/x"),
        ("-np", "100"),
        ("/bin/sh",),
        (":",),
        ("--map-by", "seq:FILE=/etc/passwd"),
        ("--map-by", "rankfile:FILE=hosts"),
        ("--map-by=core",),
        ("-",),
        ("",),
    ],
)
def test_options_that_run_or_reach_something_else_are_refused(args: tuple[str, ...]) -> None:
    with pytest.raises(LaunchError, match=r"mpi\.args"):
        FIVE.command(Ranks(np=2, args=args), ["a"])


@pytest.mark.parametrize(
    "args",
    [
        ("--mca", "btl_tcp_if_include", "eth0"),
        ("--mca", "pml", "^ucx"),
        ("--map-by", "ppr:2:socket:PE=4"),
        ("--report-bindings",),
    ],
)
def test_options_for_tuning_pass(args: tuple[str, ...]) -> None:
    assert FIVE.command(Ranks(np=2, args=args), ["a"])[-1 - len(args) : -1] == args


def test_an_option_cannot_swallow_the_program() -> None:
    with pytest.raises(LaunchError, match="-mca needs 2 values"):
        FOUR.command(Ranks(np=2, args=("--mca", "btl")), ["b", "c"])


@pytest.mark.parametrize(
    "name", ["OMPI_MCA_plm_rsh_agent", "PMIX_MCA_psec", "PRTE_MCA_plm", "OMPI_COMM_WORLD_SIZE"]
)
def test_variables_that_would_configure_mpirun_are_refused(name: str) -> None:
    with pytest.raises(LaunchError, match=r"^env"):
        FIVE.command(Ranks(np=2, env=(name,)), ["a"])


def test_parameters_for_tuning_may_be_variables_too() -> None:
    command = FIVE.command(Ranks(np=2, env=("OMPI_MCA_btl", "A")), ["a"])
    assert command[command.index("-x") + 1] == "A"


@pytest.mark.parametrize("argv", [[], ["--launch-agent", "x"], ["a", ":", "-np", "1", "b"]])
def test_programs_that_mpirun_would_misread_are_refused(argv: list[str]) -> None:
    with pytest.raises(LaunchError, match=r"^run:"):
        FIVE.command(Ranks(np=2), argv)


@pytest.mark.parametrize("ranks", [Ranks(np=0), Ranks(np=1, bind="moon")])
def test_other_nonsense_is_refused(ranks: Ranks) -> None:
    with pytest.raises(LaunchError, match=r"^mpi\.(np|bind):"):
        FIVE.command(ranks, ["a"])


@pytest.mark.parametrize("launcher", [FOUR, FIVE])
def test_a_binding_that_nobody_asked_for_bears_more_ranks_than_cores(
    launcher: OpenMpiLauncher,
) -> None:
    wished = launcher.command(Ranks(np=2, bind="core", wished=True), ["a"])
    assert wished[wished.index("--bind-to") + 1] == "core:overload-allowed"


@pytest.mark.parametrize("word", ["-bind-to", "--bind-to"])
def test_a_binding_among_the_options_is_the_only_one(word: str) -> None:
    """Two of them are an error to mpirun."""
    command = FIVE.command(Ranks(np=2, bind="none", args=(word, "core")), ["a"])
    assert [w for w in command if w.endswith("bind-to")] == [word]
