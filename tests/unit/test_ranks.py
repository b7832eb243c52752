"""What is read from the words of mpirun, as Open MPI 4 and 5 and MPICH 5 print them."""

from pathlib import Path

import pytest

from simagent.worker.ranks import Told, read_tail, told

OPENMPI_4 = """\
--------------------------------------------------------------------------
Primary job  terminated normally, but 1 process returned
a non-zero exit code. Per user-direction, the job has been aborted.
--------------------------------------------------------------------------
"""
OPENMPI_4_SIGNAL = (
    OPENMPI_4
    + """\
--------------------------------------------------------------------------
mpirun noticed that process rank 1 with PID 0 on node vm exited on signal 11 (Segmentation fault).
--------------------------------------------------------------------------
"""
)
OPENMPI_4_EXIT = (
    OPENMPI_4
    + """\
mpirun detected that one or more processes exited with non-zero status, thus causing
the job to be terminated. The first process to do so was:

  Process name: [[4533,1],1]
  Exit code:    3
"""
)
OPENMPI_4_LOST = """\
ORTE has lost communication with a remote daemon.

  HNP daemon   : [[19536,0],0] on node vm
  Remote daemon: [[19536,0],1] on node h2

This is usually due to either a failure of the TCP network
"""
OPENMPI_5_SIGNAL = """\
rank 2 of 3
--------------------------------------------------------------------------
prterun noticed that process rank 12 with PID 26626 on node node-2.cluster exited on
signal 9 (Killed).
--------------------------------------------------------------------------
"""
OPENMPI_5_EXIT = """\
prterun detected that one or more processes exited with non-zero status,
thus causing the job to be terminated. The first process to do so was:

   Process name: [prterun-vm-26783@1,1]
   Exit code:    3
"""
OPENMPI_5_ABORT = """\
MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD
  Proc: [[60715,1],1]
  Errorcode: 7
"""
OPENMPI_5_LOST = """\
PRTE has lost communication with a remote daemon.

  HNP daemon   : [prterun-vm-8474@0,0] on node vm
  Remote daemon: [prterun-vm-8474@0,1] on node h2
"""
HYDRA_SIGNAL = """\

===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 24918 RUNNING AT vm
=   EXIT CODE: 9
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
===================================================================================
"""
HYDRA_CAUSE = """\
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Segmentation fault (signal 11)
This typically refers to a problem with your application.
"""
HYDRA_ABORT = (
    "Abort(7) on node 1 (rank 1 in comm 0): application called MPI_Abort(MPI_COMM_WORLD, 7)\n"
)


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("", 1, Told()),
        ("a program's own words\n", 139, Told()),
        (
            OPENMPI_4_SIGNAL,
            139,
            Told(failed="rank 1 on vm was ended by SIGSEGV (signal 11)"),
        ),
        (OPENMPI_4, 137, Told(failed="a rank was ended by SIGKILL (signal 9)")),
        (OPENMPI_4, 3, Told()),
        (OPENMPI_4_EXIT, 3, Told(note="rank 1 exited with code 3")),
        (OPENMPI_4_LOST, 205, Told(lost="h2")),
        (
            OPENMPI_5_SIGNAL,
            137,
            Told(failed="rank 12 on node-2.cluster was ended by SIGKILL (signal 9)"),
        ),
        (OPENMPI_5_EXIT, 3, Told(note="rank 1 exited with code 3")),
        (OPENMPI_5_ABORT, 7, Told(note="rank 1 called MPI_Abort")),
        (OPENMPI_5_LOST, 0, Told(lost="h2")),
        (
            HYDRA_SIGNAL + HYDRA_CAUSE,
            11,
            Told(failed="a rank on vm was ended by SIGSEGV (signal 11)"),
        ),
        (HYDRA_SIGNAL, 255, Told(failed="a rank on vm was ended by SIGKILL (signal 9)")),
        (HYDRA_ABORT, 7, Told(note="rank 1 called MPI_Abort")),
    ],
)
def test_what_mpirun_says_is_understood(text: str, code: int, expected: Told) -> None:
    assert told(text, code) == expected


def test_only_the_last_of_a_long_log_is_read(tmp_path: Path) -> None:
    out, err = tmp_path / "stdout", tmp_path / "stderr"
    out.write_bytes(b"\xff" * 10_000_000 + OPENMPI_5_SIGNAL.encode())
    text = read_tail(out, err)
    assert len(text) < 100_000
    assert told(text).failed


def test_a_rank_that_the_others_saw_go_before_mpirun_did_is_told() -> None:
    text = (
        "An MPI communication peer process has unexpectedly disconnected.  This\n"
        "usually indicates a failure in the peer process.\n\n"
        "  Local host: head\n  Local PID:  26\n  Peer host:  m1\n"
    )
    assert told(text, 14).failed == "a rank on m1 ended before the others"
    exited = "  Process name: [prterun-head-1@1,1]\n  Exit code:    3\n"
    assert told(text + exited, 3).failed == "", "it exited by itself"


@pytest.mark.parametrize(
    ("names", "host"), [({"10.77.0.2": "m1"}, "m1"), ({"10.0.0.2": "m1"}, "10.77.0.2")]
)
def test_a_rank_that_is_gone_before_the_others_have_reached_it_is_told(
    names: dict[str, str], host: str
) -> None:
    text = (
        "WARNING: Open MPI failed to TCP connect to a peer MPI process.  This\n"
        "should not happen.\n\n"
        "Your Open MPI job may now hang or fail.\n\n"
        "  Local host: vm1\n"
        "  PID:        27910\n"
        "  Message:    connect() to 10.77.0.2:1024 failed\n"
        "  Error:      Connection refused (111)\n"
        "--------------------------------------------------------------------------\n"
        "[vm1:00000] *** An error occurred in Socket closed\n"
        "prterun has exited due to process rank 0 with PID 0 on node vm1 calling\n"
        '"abort". This may have caused other processes in the application to be\n'
    )
    ended = f"a rank on {host} ended before the others had reached it"
    assert told(text, 14, names) == Told(failed=ended)
    assert told(text + OPENMPI_5_EXIT, 3, names) == Told(note="rank 1 exited with code 3")
    away = text.replace("Connection refused (111)", "No route to host (113)")
    assert told(away, 14, names) == Told(), "the network is to blame"


@pytest.mark.parametrize(
    ("names", "where"),
    [
        ({"10.77.0.1": "head", "10.77.0.2": "m1"}, " on head"),
        ({"10.77.0.1": "head", "10.77.0.2": "m1", "10.77.0.3": "m2"}, ""),
    ],
)
def test_a_rank_whose_end_mpirun_tells_in_half_is_told(names: dict[str, str], where: str) -> None:
    text = (
        "[m1:00000] *** An error occurred in Socket closed\n"
        "[m1:00000] *** reported by process [1054277633,1]\n"
        "[m1:00000] *** on a NULL communicator\n"
        "prterun has exited due to process rank 1 with PID 547 on node m1 calling\n"
        '"abort". This may have caused other processes in the application to be\n'
    )
    ended = f"a rank{where} ended before the others: one on m1 was connected to it"
    assert told(text, 14, names) == Told(failed=ended)
    assert told(text + OPENMPI_5_EXIT, 3, names) == Told(note="rank 1 exited with code 3")
