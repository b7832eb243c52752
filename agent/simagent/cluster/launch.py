"""What `mpirun` calls in place of ssh: a script that asks the broker to enter a host.

It lies in a folder that the step sees, with what it says to the broker:

``enter``  the script, a plain one of /bin/sh: no image has more for certain
``asks``   written to by the step: ``N.ask`` is an ask, the FIFO ``N.end`` awaits how it ended
``bell``   a FIFO, by which the broker hears that there is an ask
"""

from pathlib import Path, PurePath

SCRIPT = "enter"
ASKS = "asks"
BELL = "bell"


def lay(folder: Path, *, uid: int, gid: int) -> None:
    """Make ``folder`` for the steps of the user ``uid``; what is there already is kept.

    Its parent must not be writable for that user. Raises OSError.
    """
    raise NotImplementedError


def program(folder: PurePath) -> str:
    """Give the path of the script where the step sees ``folder``: a launcher's `Span.agent`."""
    return str(folder / SCRIPT)
