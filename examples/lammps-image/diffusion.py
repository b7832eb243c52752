"""Fit the diffusion coefficient to the mean squared displacements that LAMMPS wrote."""

import sys

TIMESTEP = 0.005  # LAMMPS' default in Lennard-Jones units


def main(path: str) -> None:
    """Print the slope of the displacements' second half, by least squares, over six."""
    with open(path) as file:
        rows = [line.split() for line in file if not line.startswith("#")]
    points = [(float(step) * TIMESTEP, float(square)) for step, square in rows]
    points = points[len(points) // 2 :]
    mean_time = sum(time for time, _ in points) / len(points)
    mean_square = sum(square for _, square in points) / len(points)
    slope = sum((time - mean_time) * (square - mean_square) for time, square in points)
    slope /= sum((time - mean_time) ** 2 for time, _ in points)
    print(f"diffusion coefficient  {slope / 6:.4f} (Lennard-Jones units)")


if __name__ == "__main__":
    main(sys.argv[1])
