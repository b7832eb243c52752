"""The heat equation on a square, in slabs over MPI ranks, checked against one process.

u_t = u_xx + u_yy on the unit square, u = 0 on its border, explicit Euler steps on a grid of
`--cells` x `--cells` inner points. The start is the slowest mode of the square plus a hot spot.
Exits with 1 if the parallel solution differs from the serial one.
"""

import argparse
import sys
import time

import numpy as np
from mpi4py import MPI

TOLERANCE = 1e-12


def initial(cells: int) -> np.ndarray:
    """Give the temperature at the start, with the border of zeros around it."""
    x = np.linspace(0.0, 1.0, cells + 2)
    mode = np.outer(np.sin(np.pi * x), np.sin(np.pi * x))
    spot = np.exp(-200.0 * ((x[:, None] - 0.3) ** 2 + (x[None, :] - 0.6) ** 2))
    field = mode + spot
    field[[0, -1], :] = 0.0
    field[:, [0, -1]] = 0.0
    return field


def step(field: np.ndarray, ratio: float) -> None:
    """Advance the inner points by one time step; `ratio` is dt / h**2."""
    inner = field[1:-1, 1:-1]
    inner += ratio * (
        field[:-2, 1:-1] + field[2:, 1:-1] + field[1:-1, :-2] + field[1:-1, 2:] - 4.0 * inner
    )


def exchange(field: np.ndarray, comm: MPI.Cartcomm) -> None:
    """Swap the outermost rows with the neighbours; at the border of the square there is none."""
    below, above = comm.Shift(0, 1)
    comm.Sendrecv(field[-2], dest=above, recvbuf=field[0], source=below)
    comm.Sendrecv(field[1], dest=below, recvbuf=field[-1], source=above)


def solve_parallel(cells: int, steps: int, ratio: float, comm: MPI.Cartcomm) -> np.ndarray | None:
    """Solve on all ranks, each with a slab of rows; rank 0 gets the whole field."""
    edges = [cells * rank // comm.size for rank in range(comm.size + 1)]
    first, last = edges[comm.rank], edges[comm.rank + 1]
    slab = initial(cells)[first : last + 2].copy()
    for _ in range(steps):
        exchange(slab, comm)
        step(slab, ratio)
    slabs = comm.gather(slab[1:-1], root=0)
    return None if slabs is None else np.vstack(slabs)


def solve_serial(cells: int, steps: int, ratio: float) -> np.ndarray:
    """Solve in one process."""
    field = initial(cells)
    for _ in range(steps):
        step(field, ratio)
    return field[1:-1]


def main() -> int:
    """Solve both ways, compare, write the field."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", default="heat.npy")
    args = parser.parse_args()
    ratio = 0.2  # stable up to 0.25

    comm = MPI.COMM_WORLD.Create_cart((MPI.COMM_WORLD.size,), periods=(False,))
    started = time.perf_counter()
    field = solve_parallel(args.cells, args.steps, ratio, comm)
    seconds = time.perf_counter() - started
    if field is None:
        return 0

    error = float(np.abs(field - solve_serial(args.cells, args.steps, ratio)).max())
    np.save(args.out, field[:, 1:-1])
    print(f"grid         {args.cells} x {args.cells}, {args.steps} steps, {comm.size} MPI ranks")
    print(f"solved in    {seconds:.2f} s")
    print(f"temperature  {field.max():.6f} at most")
    print(f"error        {error:.1e} against the serial solution")
    return int(error > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
