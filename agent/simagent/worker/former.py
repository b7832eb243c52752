"""What is left of a membership: an agent that takes tasks now was a member of a cluster before."""

from pathlib import Path

import structlog

from simagent.cluster.sshd import Sshd
from simagent.domain import keys
from simagent.ports.store import StoreError
from simagent.transfer.removal import remove_tree
from simagent.worker.context import Context
from simagent.worker.recovery import stop_leftovers

log = structlog.get_logger()


def end_membership(ctx: Context, folder: Path) -> None:
    """End the ssh server and the runs of a member whose ``folder`` this was, and forget them.

    Of the cluster that it leads now it is a member no longer.
    """
    log.info("what it ran as a member of a cluster is ended", path=str(folder))
    Sshd(folder / "sshd", port=0, user="", relay=()).stop()
    for entry in sorted((folder / "entries").glob("*")):
        stop_leftovers(ctx, entry)
    if ctx.head is not None:
        key = keys.cluster_member(ctx.head.it.cluster, ctx.identity.agent)
        try:
            ctx.ledger.store.delete(key)
        except StoreError as error:  # the record is forgotten after a day
            log.warning("member not removed", key=key, error=str(error))
    remove_tree(folder)
