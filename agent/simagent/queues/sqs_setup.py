"""Makes the queue of a group and that of its dead letters, as a fleet needs them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from simagent.ports.queue import QueueRefusedError
from simagent.ports.setup import Finding, Way
from simagent.queues.sqs import DEAD
from simagent.queues.sqs_calls import LONGEST_POLL, NoQueueError, SqsCalls

_ATTRIBUTES = {
    "ReceiveMessageWaitTimeSeconds": str(LONGEST_POLL),
    "MessageRetentionPeriod": str(14 * 86_400),
    "VisibilityTimeout": "120",
    "SqsManagedSseEnabled": "true",
}
# The most that SQS takes: each agent that cannot run a task counts as one.
_MAX_RECEIVES = 1000
_KMS = "KmsMasterKeyId"
_REDRIVE = "RedrivePolicy"


def set_up_queue(
    name: str,
    way: Way,
    *,
    region: str | None = None,
    endpoint: str | None = None,
    ca_bundle: Path | None = None,
) -> Iterator[Finding]:
    """Make a queue and that of its dead letters where they are not there. Raises QueueError.

    Of those that are there only the attributes named here are looked at, and set if ``way`` says
    so: others keep their values.
    """
    calls = SqsCalls(region, endpoint, ca_bundle)
    yield from _set_up(calls, name + DEAD, _ATTRIBUTES, way)
    dead = _attributes(calls, name + DEAD).get("QueueArn", "")
    redrive = json.dumps({"deadLetterTargetArn": dead, "maxReceiveCount": _MAX_RECEIVES})
    # Of a dry run's dead letters there may be no queue yet, and so nothing to compare with.
    wanted = _ATTRIBUTES | ({_REDRIVE: redrive} if dead else {})
    yield from _set_up(calls, name, wanted, way)


def create_queue(name: str, *, region: str | None = None, endpoint: str | None = None) -> None:
    """Make a queue and that of its dead letters, or set right those that are there.

    Raises QueueError.
    """
    for _ in set_up_queue(name, Way(update=True), region=region, endpoint=endpoint):
        pass


def _set_up(calls: SqsCalls, name: str, wanted: Mapping[str, str], way: Way) -> Iterator[Finding]:
    what = f"queue {name}"
    there = _attributes(calls, name)
    if not there:
        if way.dry:
            yield Finding(what, "planned", f"would be made in {calls.region}")
            return
        calls.call(name, "create_queue", QueueName=name, Attributes=dict(wanted))
        yield Finding(what, "made", f"in {calls.region}")
        return
    if key := there.get(_KMS):
        # SQS knows one way or the other: this one is kept.
        wanted = {
            known: value for known, value in wanted.items() if known != "SqsManagedSseEnabled"
        }
        yield Finding(what, "note", f"is encrypted with {key}: give all roles that key, too")
    wrong = {k: v for k, v in wanted.items() if not _same(k, there.get(k, ""), v)}
    told = ", ".join(f"{k} is {there.get(k) or 'not set'}, not {v}" for k, v in wrong.items())
    if not wrong:
        yield Finding(what, "ok", f"is there, in {calls.region}")
    elif not way.update:
        yield Finding(what, "differs", told)
    elif way.dry:
        yield Finding(what, "planned", f"would be changed: {told}")
    else:
        calls.on_queue(name, "set_queue_attributes", Attributes=wrong)
        yield Finding(what, "changed", told.replace(" is ", " was ").replace(", not ", ", now "))


def _attributes(calls: SqsCalls, name: str) -> Mapping[str, str]:
    """Read what a queue is like; nothing where there is none."""
    try:
        answer = calls.on_queue(name, "get_queue_attributes", AttributeNames=["All"])
    except NoQueueError:
        return {}
    found: dict[str, str] = answer.get("Attributes", {})
    if not found.get("QueueArn"):
        raise QueueRefusedError(f"sqs://{name}: the server does not tell what the queue is like")
    return found


def _same(attribute: str, one: str, other: str) -> bool:
    if attribute != _REDRIVE:
        return one == other
    if not one:
        return False
    first, second = json.loads(one), json.loads(other)
    return all(str(first.get(key)) == str(value) for key, value in second.items())
