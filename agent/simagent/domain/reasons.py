"""Why a task or an attempt ended: every failure has a name."""

from enum import StrEnum


class Reason(StrEnum):
    """The stable codes of `reason`, for people and scripts. docs/states.md explains each."""

    EXIT_CODE = "exit_code", "A command exited with a code other than 0."
    SIGNAL = "signal", "A command was ended by a signal that the agent did not send."
    COMMAND_NOT_FOUND = "command_not_found", "The program is not on this machine or in the image."
    NOT_EXECUTABLE = "not_executable", "The program was found but cannot be executed."
    OOM = "oom", "The kernel ended a process for lack of memory."
    DISK_FULL = "disk_full", "The disk had too little free space to go on."
    TIME_LIMIT = "time_limit", "The attempt ran longer than its `time_limit`."
    KILLED = "killed", "Somebody asked for the task to be killed."
    INPUT_MISSING = "input_missing", "An input does not exist or cannot be reached."
    INPUT_REJECTED = (
        "input_rejected",
        "An input archive is corrupt, too large, or unsafe to unpack.",
    )
    OUTPUT_FAILED = "output_failed", "The outputs could not be packed or uploaded."
    INVALID_SPEC = "invalid_spec", "The stored spec cannot be read."
    UNSUPPORTED = "unsupported", "The spec asks for something no agent of the group can do."
    MPI_UNAVAILABLE = "mpi_unavailable", "A step asks for MPI, and no launcher for it is installed."
    MPI_RANK_FAILED = "mpi_rank_failed", "A rank of an MPI job was ended by a signal."
    MPI_HOST_LOST = "mpi_host_lost", "A host of an MPI job vanished, or could not be reached."
    MPI_MISMATCH = "mpi_mismatch", "The ranks would not find each other: their MPI is another one."
    IMAGE_PULL = "image_pull", "The container image could not be fetched, though it may exist."
    IMAGE_NOT_FOUND = "image_not_found", "There is no such image, or none that may be seen."
    IMAGE_DENIED = "image_denied", "The registry refuses this agent the image."
    IMAGE_PLATFORM = "image_platform", "The image is for another kind of processor."
    IMAGE_CORRUPT = "image_corrupt", "The image is damaged, or not what its digest says."
    IMAGE_UNUSABLE = "image_unusable", "The image lacks what running a command in it needs."
    RUNTIME_FAILED = "runtime_failed", "The container engine failed, or ended the container."
    SHIM_LOST = "shim_lost", "The step's supervisor vanished: how the step ended is unknown."
    AGENT_LOST = "agent_lost", "Agents that held the task vanished, `max_attempts` times."
    AGENT_TOO_OLD = "agent_too_old", "The task was written by a newer version than the agent's."
    AGENT_ERROR = "agent_error", "The agent failed in a way it has no better name for."
    ORPHANED = "orphaned", "No agent looked after the step for longer than `orphan_limit`."
    PARTITIONED = "partitioned", "The store was unreachable and the spec says `on_partition: stop`."
    PREEMPTED = "preempted", "The machine was taken away or shut down."
    MAX_PREEMPTIONS = "max_preemptions", "The task was preempted more often than allowed."
    NEVER_QUEUED = "never_queued", "The submission was begun but not completed within its time."

    explanation: str

    def __new__(cls, code: str, explanation: str = "") -> "Reason":
        """Attach the explanation to the code."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.explanation = explanation
        return member

    @classmethod
    def _missing_(cls, value: object) -> "Reason | None":
        """Take a reason that a newer version wrote as it is, so that its state can be read."""
        if not isinstance(value, str):
            return None
        member = str.__new__(cls, value)
        member._name_ = value.upper()
        member._value_ = value
        member.explanation = "A reason of a newer version."
        return member
