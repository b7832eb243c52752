"""The lab itself: what stands for VMs runs MPI by hand, and its faults are what they are to be."""

import json
from collections.abc import Callable
from pathlib import Path

from cluster.lab import HEAD, ClusterLab
from shelf.model import load

PROBE = "mpirun -np 2 --host localhost:1,m1:1 mpi-probe"


def test_mpirun_by_hand_spans_two_vms(lab: ClusterLab, sif: Callable[[str], Path]) -> None:
    lab.boot(HEAD, "m1")
    lab.open_ssh()
    told = json.loads(lab.head.run(PROBE).stdout)
    assert (told["ranks"], told["hosts"]) == (2, ["head", "m1"])

    image = lab.link(sif("lammps")).removeprefix("file://")
    (lab.shared / "in.lj").write_text((load("lammps").folder / "smoke" / "in.lj").read_text())
    in_image = f"apptainer --quiet exec --bind /shared --pwd /shared {image} lmp -in in.lj"
    lab.head.run(f"cd /shared && mpirun -np 2 --host localhost:1,m1:1 {in_image} >stdout")
    energies = [
        line.split()[4]
        for line in (lab.shared / "stdout").read_text().splitlines()
        if line.split()[:1] == ["500"]
    ]
    assert energies == ["-4.6215179"]
    lab.check()


def test_what_runs_is_seen_and_faults_are_felt(lab: ClusterLab) -> None:
    lab.boot(HEAD, "m1")
    lab.open_ssh()
    member = lab.vms["m1"]
    member.spawn("sleep 1000", "sleep.log")
    lab.until(lambda: lab.left() == ["m1: sleep 1000"])
    reach = "ssh -o ConnectTimeout=20 -o ConnectionAttempts=1 m1 hostname"
    assert lab.head.run(reach).stdout == "m1\n"
    member.freeze()
    assert lab.head.run(f"timeout 3 {reach}", check=False).returncode != 0
    assert member.busy() == ["sleep 1000"]
    member.thaw()
    assert lab.head.run(reach).returncode == 0
    member.cut_off()
    assert lab.head.run(f"timeout 3 {reach}", check=False).returncode != 0
    member.join()
    assert lab.head.run(reach).returncode == 0
    member.die()
    assert member.busy() == []
    assert lab.head.run(f"timeout 3 {reach}", check=False).returncode != 0
