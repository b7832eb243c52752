"""The agent's own log: events with stable names, listed in docs/events.md.

Lines of the log that carry no name from here are for people only and may change at any time.
"""

from enum import StrEnum


class Event(StrEnum):
    """Names of the log events that scripts and alarms may rely on."""

    AGENT_STARTED = "agent_started", "The agent has started.", "agent incarnation version limits"
    AGENT_STOPPED = "agent_stopped", "The agent stops; simulations may go on.", "reason"
    MACHINE_LEAVES = (
        "machine_leaves",
        "The cloud takes the machine away, or may soon: then `certain` is false.",
        "cloud what seconds certain",
    )
    LIFE_OVER = (
        "life_over",
        "The agent ends by itself: it was idle for long, or its time is over.",
        "why action",
    )
    END_FAILED = (
        "end_failed",
        "What ends the machine failed, or was refused: it is tried again.",
        "action error again_in",
    )
    AGENT_CRASHED = "agent_crashed", "A core thread died: the agent stops.", "thread error"
    STORE_LOST = "store_lost", "The store stopped answering.", "error"
    STORE_BACK = "store_back", "The store answers again.", "seconds"
    QUEUE_LOST = "queue_lost", "The queue stopped answering.", "error"
    QUEUE_BACK = "queue_back", "The queue answers again.", "seconds"
    BELL_REJECTED = "bell_rejected", "A malformed message went to the dead letters.", "reason"
    TASK_REFUSED = "task_refused", "A task cannot run here and is left to others.", "task reason"
    TASK_SUSPECTED = "task_suspected", "A held task is watched for signs of life.", "task epoch"
    TASK_CLAIMED = "task_claimed", "The agent took a task.", "task epoch lost"
    ATTEMPT_LOST = "attempt_lost", "An attempt's agent is dead: it has ended.", "task epoch agent"
    TASK_ADOPTED = "task_adopted", "A restarted agent goes on with its task.", "task epoch"
    TASK_CLOSED = "task_closed", "A task without a live holder was ended.", "task status reason"
    IMAGE_PULLING = "image_pulling", "An image is being fetched.", "task image bytes of"
    IMAGE_AWAITED = (
        "image_awaited",
        "An image cannot be had yet: it is asked for again.",
        "task image error again_in",
    )
    IMAGE_READY = "image_ready", "The task's image is here.", "task image digest runtime bytes"
    IMAGE_REMOVED = "image_removed", "An image made room on the disk.", "image digest bytes"
    CONTAINERS_REAPED = (
        "containers_reaped",
        "Containers that belonged to no attempt were removed.",
        "runtime count",
    )
    STEP_STARTED = "step_started", "A command was started.", "task epoch step argv"
    STEP_ENDED = "step_ended", "A command ended.", "task epoch step exit_code signal seconds"
    CHECKPOINT_KEPT = (
        "checkpoint_kept",
        "Files from which a later attempt goes on are stored.",
        "task epoch files bytes seconds",
    )
    CHECKPOINT_MISSED = (
        "checkpoint_missed",
        "No checkpoint could be stored; the last one stands.",
        "task epoch error",
    )
    CHECKPOINT_LAID = (
        "checkpoint_laid",
        "An attempt goes on from the checkpoint of an earlier one.",
        "task epoch of files bytes",
    )
    CHECKPOINT_LOST = (
        "checkpoint_lost",
        "A checkpoint cannot be used: the task starts from its inputs.",
        "task epoch error",
    )
    CLUSTER_LED = "cluster_led", "The agent leads its MPI cluster.", "cluster"
    CLUSTER_LOST = "cluster_lost", "Another agent leads the MPI cluster.", "cluster agent"
    HOSTS_AWAITED = (
        "hosts_awaited",
        "Hosts of the cluster are not there yet.",
        "cluster missing of error",
    )
    HOSTS_THERE = "hosts_there", "The hosts that the cluster needs are there.", "cluster hosts"
    HOST_JOINED = "host_joined", "A member of the cluster can take part.", "cluster host"
    HOST_GONE = "host_gone", "A member of the cluster cannot take part.", "cluster host error"
    HOSTS_GATHERED = "hosts_gathered", "The hosts of a task are ready.", "task epoch hosts"
    TASK_STOPPING = "task_stopping", "The running command is told to end.", "task epoch why"
    TASK_FINALIZING = "task_finalizing", "The outcome is fixed.", "task epoch outcome reason"
    TASK_PUBLISHED = "task_published", "The task has ended.", "task epoch status"
    TASK_REQUEUED = "task_requeued", "The task was given back to the queue.", "task epoch reason"
    LEASE_LOST = "lease_lost", "Another holds the task: the local run is ended.", "task epoch"
    LEASE_LATE = "lease_late", "The lease could not be renewed in time.", "task seconds error"
    JOURNAL_SET_ASIDE = "journal_set_aside", "A local record could not be read.", "path error"
    JOURNAL_TOO_NEW = (
        "journal_too_new",
        "A newer version began a task here: it is left as it is.",
        "path task epoch",
    )
    RANKS_STARTED = (
        "ranks_started",
        "A member of a cluster runs ranks for its head.",
        "task epoch entry",
    )
    RANKS_ENDED = (
        "ranks_ended",
        "A member has nothing left of what it ran for its head.",
        "task epoch entry exit_code signal message",
    )
    SWEPT = "swept", "The group's open tasks were looked through.", "seen rung closed"

    explanation: str
    fields: tuple[str, ...]

    def __new__(cls, code: str, explanation: str = "", fields: str = "") -> "Event":
        """Attach the explanation and the names of the event's fields to its name."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.explanation = explanation
        member.fields = tuple(fields.split())
        return member
