"""Plot temperature and energy over the steps of a LAMMPS log, and print a summary."""

import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files: there is no screen

from matplotlib import pyplot

COLUMNS = ("Step", "Temp", "PotEng", "KinEng", "TotEng")
LOOP = re.compile(r"Loop time of (\S+) on (\d+) procs for (\d+) steps with (\d+) atoms")


def read_log(path: Path) -> tuple[dict[str, list[float]], re.Match[str]]:
    """Give the columns of the thermodynamic table, and the line that ends it."""
    table: dict[str, list[float]] = {name: [] for name in COLUMNS}
    header: list[str] = []
    for line in path.read_text().splitlines():
        words = line.split()
        loop = LOOP.match(line)
        if loop:
            return table, loop
        if words[:1] == ["Step"]:
            header = words
        elif header and len(words) == len(header):
            row = dict(zip(header, words, strict=True))
            for name in COLUMNS:
                table[name].append(float(row[name]))
    sys.exit(f"{path}: no finished run in this log")


def plot(table: dict[str, list[float]], path: Path) -> None:
    """Draw temperature above, energies below."""
    figure, (above, below) = pyplot.subplots(
        2, 1, sharex=True, figsize=(7, 6), layout="constrained"
    )
    above.plot(table["Step"], table["Temp"], color="tab:red")
    above.set_ylabel("temperature (LJ units)")
    for name, label in (("PotEng", "potential"), ("KinEng", "kinetic"), ("TotEng", "total")):
        below.plot(table["Step"], table[name], label=label)
    below.set_ylabel("energy per atom (LJ units)")
    below.set_xlabel("step")
    below.legend()
    figure.suptitle("Melting of a Lennard-Jones crystal")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Read the log, plot, summarise."""
    log, picture = Path(sys.argv[1]), Path(sys.argv[2])
    table, loop = read_log(log)
    plot(table, picture)
    seconds, ranks, steps, atoms = loop.groups()
    energy = table["TotEng"]
    drift = max(energy) - min(energy)
    print(f"loop time    {float(seconds):.3f} s ({steps} steps, {atoms} atoms, {ranks} MPI ranks)")
    print(f"temperature  {table['Temp'][0]:.3f} -> {table['Temp'][-1]:.3f}")
    print(f"total energy {energy[0]:.4f} -> {energy[-1]:.4f} per atom (range {drift:.1e})")
    print(f"plot         {picture}")


if __name__ == "__main__":
    main()
