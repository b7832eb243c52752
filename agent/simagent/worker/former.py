"""What is left of a membership: an agent that takes tasks now was a member of a cluster before."""

from pathlib import Path

import structlog

from simagent.cluster.sshd import Sshd
from simagent.transfer.removal import remove_tree
from simagent.worker.context import Context
from simagent.worker.recovery import stop_leftovers

log = structlog.get_logger()


def end_membership(ctx: Context, folder: Path) -> None:
    """End the ssh server and the runs of a member whose ``folder`` this was, and forget them."""
    log.info("what it ran as a member of a cluster is ended", path=str(folder))
    Sshd(folder / "sshd", port=0, user="", relay=()).stop()
    for entry in sorted((folder / "entries").glob("*")):
        stop_leftovers(ctx, entry)
    remove_tree(folder)
