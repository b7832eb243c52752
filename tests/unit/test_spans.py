"""Ranks over several hosts, in the words of each `mpirun`."""

import pytest

from simagent.launchers.hydra import HydraLauncher
from simagent.launchers.inside import InsideLauncher
from simagent.launchers.openmpi import OpenMpiLauncher
from simagent.ports.launcher import Host, Launcher, LaunchError, Ranks, Span

TWO = (Host(address="10.1.0.1", slots=2), Host(address="10.1.0.2", slots=3))
SPAN = Span(hosts=TWO, agent="/workdir/launch/enter", network="10.1.0.0/24")
RANKS = Ranks(np=5, env=("A", "B"), bind="none", span=SPAN)

FOUR = OpenMpiLauncher("mpirun", version="4.1.4", root=False)
FIVE = OpenMpiLauncher("mpirun", version="5.0.7", root=False)
ALL: list[Launcher] = [FOUR, FIVE, HydraLauncher(), InsideLauncher()]


def test_open_mpi_4() -> None:
    assert FOUR.command(RANKS, ["a"]) == (
        *("mpirun", "-np", "5", "--hostfile", "/workdir/launch/hosts.openmpi"),
        *("--mca", "plm", "rsh", "--mca", "plm_rsh_agent", "/workdir/launch/enter"),
        *("--mca", "plm_rsh_no_tree_spawn", "1", "--mca", "plm_rsh_num_concurrent", "128"),
        *("--mca", "orte_leave_session_attached", "1"),
        *("--mca", "oob_tcp_if_include", "10.1.0.0/24"),
        *("--mca", "btl_tcp_if_include", "10.1.0.0/24"),
        *("-x", "A", "-x", "B", "--bind-to", "none", "a"),
    )


def test_open_mpi_5() -> None:
    assert FIVE.command(RANKS, ["a"]) == (
        *("mpirun", "-np", "5", "--hostfile", "/workdir/launch/hosts.openmpi"),
        *("--prtemca", "plm", "ssh", "--prtemca", "plm_ssh_agent", "/workdir/launch/enter"),
        *("--prtemca", "plm_ssh_no_tree_spawn", "1", "--prtemca", "plm_ssh_num_concurrent", "128"),
        "--leave-session-attached",
        *("--mca", "btl_tcp_if_include", "10.1.0.0/24"),
        *("-x", "A", "-x", "B", "--bind-to", "none", "a"),
    )


def test_hydra() -> None:
    """It hands on all variables: of those in a list its 5.0 gives other hosts none."""
    assert HydraLauncher().command(RANKS, ["a"]) == (
        *("mpirun", "-np", "5", "-f", "/workdir/launch/hosts.hydra"),
        *("-launcher", "ssh", "-launcher-exec", "/workdir/launch/enter"),
        *("-genvall", "-bind-to", "none", "a"),
    )


def test_in_an_image_all_is_said_by_variables() -> None:
    launcher = InsideLauncher()
    assert launcher.command(RANKS, ["a"]) == ("mpirun", "-np", "5", "--bind-to", "none", "a")
    said = launcher.environment(RANKS)
    for name in ("OMPI_MCA_plm_rsh_agent", "PRTE_MCA_plm_ssh_agent", "HYDRA_LAUNCHER_EXEC"):
        assert said[name] == SPAN.agent
    assert said["OMPI_MCA_mca_base_env_list"] == "A;B"


def test_on_one_host_nothing_is_said_of_others() -> None:
    alone = Ranks(np=2)
    assert not InsideLauncher().files(alone)
    assert not any("MCA" in name for name in InsideLauncher().environment(alone))


@pytest.mark.parametrize("launcher", ALL, ids=lambda launcher: launcher.name)
def test_the_hosts_are_in_files_beside_the_agent(launcher: Launcher) -> None:
    assert launcher.files(RANKS) == {
        "hosts.openmpi": "10.1.0.1 slots=2\n10.1.0.2 slots=3\n",
        "hosts.hydra": "10.1.0.1:2\n10.1.0.2:3\n",
    }


def test_more_hosts_than_are_entered_at_a_time_by_default() -> None:
    """The agent of a host lasts, and the next host would wait for its end."""
    many = tuple(Host(address=f"10.1.1.{number}", slots=1) for number in range(200))
    command = FOUR.command(Ranks(np=200, span=Span(hosts=many, agent="/x")), ["a"])
    assert command[command.index("plm_rsh_num_concurrent") + 1] == "200"


def test_the_interface_of_the_users_own_choice_is_the_only_one() -> None:
    """With both an interface to use and one not to, Open MPI does not start."""
    ranks = Ranks(np=2, span=SPAN, args=("--mca", "btl_tcp_if_exclude", "lo"))
    assert "btl_tcp_if_include" not in FIVE.command(ranks, ["a"])


@pytest.mark.parametrize(
    ("hosts", "says"),
    [
        (TWO[:1], "two hosts or more"),
        ((TWO[0], TWO[0]), "two hosts have the address 10.1.0.1"),
        ((TWO[0], Host(address="-oProxyCommand=x", slots=1)), "is no address"),
        ((TWO[0], Host(address="a b", slots=1)), "is no address"),
        ((TWO[0], Host(address="a,b", slots=1)), "is no address"),
        ((TWO[0], Host(address="b", slots=0)), "has no slot"),
    ],
)
@pytest.mark.parametrize("launcher", ALL, ids=lambda launcher: launcher.name)
def test_hosts_that_cannot_be_said_are_refused(
    launcher: Launcher, hosts: tuple[Host, ...], says: str
) -> None:
    with pytest.raises(LaunchError, match=f"^mpi.hosts: .*{says}"):
        launcher.command(Ranks(np=1, span=Span(hosts=hosts, agent="/x")), ["a"])


@pytest.mark.parametrize("launcher", ALL, ids=lambda launcher: launcher.name)
def test_no_more_ranks_than_slots_unless_asked_for(launcher: Launcher) -> None:
    with pytest.raises(LaunchError, match=r"mpi\.np: 6 ranks are asked for, the hosts have 5"):
        launcher.command(Ranks(np=6, span=SPAN), ["a"])
    assert launcher.command(Ranks(np=6, span=SPAN, oversubscribe=True), ["a"])


@pytest.mark.parametrize(
    "args",
    [
        ("--mca", "plm_rsh_agent", "/tmp/x"),
        ("--prtemca", "plm_ssh_agent", "/tmp/x"),
        ("--launch-agent", "/tmp/x"),
        ("-launcher-exec", "/tmp/x"),
    ],
)
@pytest.mark.parametrize("launcher", ALL, ids=lambda launcher: launcher.name)
def test_nobody_else_says_how_hosts_are_entered(launcher: Launcher, args: tuple[str, ...]) -> None:
    with pytest.raises(LaunchError, match=r"^mpi\.args: .* is refused"):
        launcher.command(Ranks(np=2, args=args), ["a"])


@pytest.mark.parametrize(
    ("launcher", "args"),
    [
        (
            OpenMpiLauncher("mpirun", version="4", root=False, allow=["plm_rsh_agent"]),
            ("--mca", "plm_rsh_agent", "/opt/my rsh"),
        ),
        (
            OpenMpiLauncher("mpirun", version="5", root=False, allow=["plm_ssh_agent"]),
            ("--prtemca", "plm_ssh_agent", "/opt/rsh"),
        ),
        (HydraLauncher(allow=["launcher-exec"]), ("-launcher-exec", "/opt/rsh")),
        (InsideLauncher(allow=["plm_rsh_agent"]), ("--mca", "plm_rsh_agent", "/opt/rsh")),
    ],
)
def test_unless_the_operator_allows_it(launcher: Launcher, args: tuple[str, ...]) -> None:
    command = launcher.command(Ranks(np=2, args=args), ["a"])
    assert command[-1 - len(args) :] == (*args, "a")


def test_what_is_allowed_cannot_swallow_the_program() -> None:
    launcher = HydraLauncher(allow=["launcher-exec"])
    with pytest.raises(LaunchError, match="-launcher-exec needs 1 values"):
        launcher.command(Ranks(np=2, args=("-launcher-exec",)), ["a"])
