import pytest

from simagent.launchers.hydra import HydraLauncher
from simagent.ports.launcher import LaunchError, Ranks


def test_the_whole_command_line() -> None:
    ranks = Ranks(np=4, env=("OMP_NUM_THREADS", "PATH"), bind="core", args=("-l", "-ppn", "2"))
    assert HydraLauncher("/opt/mpich/bin/mpirun").command(ranks, ("lmp", "-in", "in.lj")) == (
        *("/opt/mpich/bin/mpirun", "-np", "4", "-genvlist", "OMP_NUM_THREADS,PATH"),
        *("-bind-to", "core", "-l", "-ppn", "2", "lmp", "-in", "in.lj"),
    )


def test_without_variables_none_is_passed() -> None:
    assert HydraLauncher().command(Ranks(np=1), ["a"]) == ("mpirun", "-np", "1", "-genvnone", "a")


@pytest.mark.parametrize("bind", ["core", "hwthread", "socket", "none"])
def test_bindings(bind: str) -> None:
    command = HydraLauncher().command(Ranks(np=1, bind=bind), ["a"])
    assert command[command.index("-bind-to") + 1] == bind


@pytest.mark.parametrize(
    "args",
    [
        ("-launcher", "ssh"),
        ("-launcher-exec", "/tmp/x"),
        ("--launcher-exec", "/tmp/x"),
        ("-launcher-exec=/tmp/x",),
        ("-bootstrap-exec", "/tmp/x"),
        ("-rmk", "user"),
        ("-f", "hosts"),
        ("-hosts", "a,b"),
        ("-configfile", "x"),
        ("-outfile-pattern", "/etc/x"),
        ("-np", "100"),
        ("/bin/sh",),
        (":",),
        ("-ppn", "2", "sh", "-c", "x"),
        ("---l",),
        ("-",),
        ("",),
        ("-genv", "HYDRA_LAUNCHER_EXEC", "/tmp/x"),
    ],
)
def test_options_that_run_or_reach_something_else_are_refused(args: tuple[str, ...]) -> None:
    with pytest.raises(LaunchError, match=r"mpi\.args"):
        HydraLauncher().command(Ranks(np=2, args=args), ["a"])


@pytest.mark.parametrize("option", ["-genv", "--genv", "-env"])
def test_variables_of_what_starts_containers_are_not_the_users_to_set(option: str) -> None:
    args = (option, "APPTAINER_BIND", "/")
    assert args[1:] == HydraLauncher().command(Ranks(np=2, args=args), ["a"])[-3:-1]
    with pytest.raises(LaunchError, match=rf"mpi\.args: {option} is refused"):
        HydraLauncher().command(Ranks(np=2, args=args, boxed=True), ["a"])


def test_an_option_cannot_swallow_the_program() -> None:
    with pytest.raises(LaunchError, match="-genv needs 2 values"):
        HydraLauncher().command(Ranks(np=2, args=("-genv", "A")), ["b", "c"])


@pytest.mark.parametrize("argv", [[], ["-launcher-exec", "x"], ["a", ":", "-np", "1", "b"]])
def test_programs_that_mpirun_would_misread_are_refused(argv: list[str]) -> None:
    with pytest.raises(LaunchError, match=r"^run:"):
        HydraLauncher().command(Ranks(np=2), argv)


@pytest.mark.parametrize(
    "ranks", [Ranks(np=0), Ranks(np=1, bind="moon"), Ranks(np=1, env=("HYDRA_LAUNCHER_EXEC",))]
)
def test_other_nonsense_is_refused(ranks: Ranks) -> None:
    with pytest.raises(LaunchError, match=r"^(mpi\.np|mpi\.bind|env):"):
        HydraLauncher().command(ranks, ["a"])


@pytest.mark.parametrize("word", ["-bind-to", "--bind-to"])
def test_a_binding_among_the_options_is_the_only_one(word: str) -> None:
    """Two of them are an error to mpirun."""
    command = HydraLauncher().command(Ranks(np=2, bind="none", args=(word, "core")), ["a"])
    assert [w for w in command if w.endswith("bind-to")] == [word]
