"""What the agent costs MPI jobs: pairs of runs by it and by an mpirun written by hand.

Containers stand for VMs, as in tests/cluster. Ranks share the cores of this machine: it needs two,
and nothing else that takes them. Two "hosts" number the same cores, so ranks of both are bound to
none, by hand as by the agent; on one host each has its own.
"""

import json
import os
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.report import Result, show

if TYPE_CHECKING:
    from cluster.lab import ClusterLab

_ROOT = Path(__file__).parents[1]
_PAIRS = 5
_CASE = _ROOT / "containers" / "lammps" / "smoke" / "in.lj"
_RUN = "lmp -in in.lj -var cells 22"
"""About ten seconds on two cores: 42,592 atoms, 500 steps."""
_ENV = {"OMP_NUM_THREADS": "1"}
"""Each "host" has two slots, so that a rank there would have two threads: they share two cores."""
_AGENT = """\
#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
host=$1; shift
exec ssh -F /home/sim/.ssh/config -i /home/sim/.ssh/id_ed25519 -l sim "$host" \\
    apptainer --quiet exec --bind /shared --pwd /shared/by-hand "$IMG" /bin/sh -c "'$*'"
"""
"""What starts a daemon of Open MPI's on another host in the same image: the least that does."""


def run() -> list[Result]:
    """Compare the seconds of LAMMPS on two ranks, on one host and over two."""
    sys.path[:0] = [str(_ROOT / "tests"), str(_ROOT / "containers")]
    from cluster import images
    from cluster.lab import cluster_lab
    from engines import apptainer, dockerd
    from engines.shared import shared_engine
    from fakes.aws import KEYS

    why_not = dockerd.missing() or apptainer.missing()
    if why_not:
        print(f"mpi: left out: {why_not}", file=sys.stderr)
        return []
    os.environ.update(KEYS)
    with shared_engine() as engine:
        os.environ["DOCKER_HOST"] = engine.host
        image, sif = images.build_vm(), images.sif("lammps")
        with cluster_lab(engine, image) as lab:
            lab.up(members=1)
            lab.open_ssh()
            reference = lab.link(sif)
            _write(lab)
            return [_compare(lab, reference, hosts) for hosts in (1, 2)]


def _write(lab: "ClusterLab") -> None:
    folder = lab.shared / "by-hand"
    folder.mkdir()
    (folder / "in.lj").write_text(_CASE.read_text())
    (folder / "agent").write_text(_AGENT)
    (folder / "agent").chmod(0o755)
    for path in (folder, *folder.iterdir()):
        os.chown(path, lab.uid, -1)


def _compare(lab: "ClusterLab", reference: str, hosts: int) -> Result:
    ratios, plain = [], []
    for pair in range(_PAIRS):
        # In turn, so that what slows the machine down slowly takes no side.
        runs = {
            side: run(lab, reference, hosts)
            for side, run in (_SIDES if pair % 2 == 0 else reversed(_SIDES))
        }
        plain.append(runs["by hand"])
        ratios.append(runs["by agent"] / runs["by hand"])
        print(f"mpi: {hosts} hosts: {runs}", file=sys.stderr)
    ratio = statistics.median(ratios)
    over = "one host" if hosts == 1 else f"{hosts} hosts"
    return Result(
        f"MPI run on {over} against mpirun by hand",
        "≤ 1 %",
        f"{(ratio - 1) * 100:+.1f} % of {min(plain):.1f} s",
        ratio,
        ratio <= 1.01,
    )


def _by_hand(lab: "ClusterLab", reference: str, hosts: int) -> float:
    image = reference.removeprefix("file://")
    over = "--bind-to none --host localhost:1,m1:1 --prtemca plm_ssh_agent $PWD/agent"
    where = "--bind-to core" if hosts == 1 else over
    inside = (
        f"apptainer --quiet exec --bind /shared --pwd /shared/by-hand --env IMG={image} {image}"
    )
    named = " ".join(f"-x {name}" for name in _ENV)
    timed = f"{inside} mpirun -np 2 {named} {where} {_RUN} >stdout"
    # The VM's own settings for MPI are not those of a task.
    unset = "unset $(env | sed -n 's/^\\(OMPI_[A-Za-z0-9_]*\\)=.*/\\1/p')"
    own = " ".join(f"{name}={value}" for name, value in _ENV.items())
    lines = f"{unset}; export {own}; cd /shared/by-hand; date +%s.%N; {timed} && date +%s.%N"
    began, ended = lab.head.run(lines, seconds=600).stdout.split()
    return float(ended) - float(began)


def _by_agent(lab: "ClusterLab", reference: str, hosts: int) -> float:
    spread = {"hosts": 2, "ranks_per_host": 1} if hosts > 1 else {"hosts": 1}
    task = lab.submit(
        {"run": _RUN, "mpi": {"np": 2, **spread}},
        image=reference,
        inputs=[str(_CASE)],
        env=_ENV,
    )
    (step,) = lab.ends(task, 600).attempts[-1].steps
    state = lab.client.state(task)
    assert state.status == "succeeded", json.dumps(state.model_dump(mode="json"))
    assert step.seconds is not None
    return step.seconds


_SIDES = (("by hand", _by_hand), ("by agent", _by_agent))

if __name__ == "__main__":
    show(run())
