"""Ranks that stay together until somebody makes the file `go`."""

import os
import signal
import socket
import sys
import time

from mpi4py import MPI

PAUSE = 0.05


def together(world: MPI.Intracomm, said: bytearray) -> None:
    """Wait for rank 0 to say it, without the spinning of a plain broadcast."""
    asked = world.Ibcast(said, root=0)
    while not asked.Test():
        time.sleep(PAUSE)


def main() -> int:
    if "stubborn" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    world = MPI.COMM_WORLD
    hosts = world.gather(socket.gethostname()) or []
    if world.rank == 0:
        print(world.size, *hosts, flush=True)
    said = bytearray(1)
    while not said[0]:
        if world.rank == 0:
            said[0] = os.path.exists("go")
            time.sleep(PAUSE)
        together(world, said)
    total = world.allreduce(world.rank + 1)
    if world.rank == 0:
        print("sum", total, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
