"""Write channel.msh: a channel 6 m long and 1 m high, one cell thick, in Gmsh's format 2.2."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

ALONG, UP = 60, 20
LENGTH, HEIGHT, DEPTH = 6.0, 1.0, 0.1
INLET, OUTLET, WALLS, SIDES, FLUID = range(1, 6)
QUADRANGLE, HEXAHEDRON = 3, 5


def node(i: int, j: int, k: int) -> int:
    return 1 + i + (ALONG + 1) * (j + (UP + 1) * k)


def elements() -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Yield the kind, the group and the nodes of each."""
    for j in range(UP):
        for i, group in ((0, INLET), (ALONG, OUTLET)):
            corners = (node(i, j, 0), node(i, j + 1, 0), node(i, j + 1, 1), node(i, j, 1))
            yield QUADRANGLE, group, corners
    for i in range(ALONG):
        for j in (0, UP):
            corners = (node(i, j, 0), node(i + 1, j, 0), node(i + 1, j, 1), node(i, j, 1))
            yield QUADRANGLE, WALLS, corners
    for i, j in product(range(ALONG), range(UP)):
        faces = [
            (node(i, j, k), node(i + 1, j, k), node(i + 1, j + 1, k), node(i, j + 1, k))
            for k in (0, 1)
        ]
        for face in faces:
            yield QUADRANGLE, SIDES, face
        yield HEXAHEDRON, FLUID, faces[0] + faces[1]


def main() -> None:
    lines = ["$MeshFormat", "2.2 0 8", "$EndMeshFormat", "$Nodes"]
    lines.append(str((ALONG + 1) * (UP + 1) * 2))
    for k, j, i in product(range(2), range(UP + 1), range(ALONG + 1)):
        x, y, z = LENGTH * i / ALONG, HEIGHT * j / UP, DEPTH * k
        lines.append(f"{node(i, j, k)} {x:.9g} {y:.9g} {z:.9g}")
    found = list(elements())
    lines += ["$EndNodes", "$Elements", str(len(found))]
    for number, (kind, group, corners) in enumerate(found, 1):
        lines.append(f"{number} {kind} 2 {group} {group} {' '.join(map(str, corners))}")
    lines.append("$EndElements")
    Path("channel.msh").write_text("\n".join(lines) + "\n")


main()
