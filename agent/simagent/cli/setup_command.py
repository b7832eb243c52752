"""`simagent setup`: its arguments and help text."""

from typing import TYPE_CHECKING, Annotated

import typer

from simagent.cli.app import Json

if TYPE_CHECKING:
    from simagent.config import Config


def setup(
    config: "Config",
    *,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", "-g", metavar="NAME", help="Make the queue of this group."),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Set right what is there and differs.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Change nothing; tell what would be done.")
    ] = False,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="ROLE",
            help="Print an IAM policy alone: of agent, client, tenant or setup.",
        ),
    ] = None,
    print_policies: Annotated[
        bool, typer.Option("--print-policies", help="Print all IAM policies at the end.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Make the bucket and the queues of a fleet, as agents and clients need them.

    What is there is left alone, unless it is to be set right; nothing is ever deleted.

    \b
    simagent setup --queue 'sqs://simagent-{group}' --store s3://my-bucket/simagent -g default
    simagent setup --policy agent > agent-policy.json
    """
    from simagent.cli.setup import print_policy, set_up
    from simagent.ports.setup import Way

    if policy is not None:
        return print_policy(config, group or [], policy)
    way = Way(update=update, dry=dry_run)
    return set_up(config, group or [], way, policies=print_policies, as_json=as_json)
