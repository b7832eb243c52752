"""What head and members of a cluster say to each other: one JSON object a line, over ssh.

The head asks once for each connection; the member answers by events, the last of which ends it.
Both sides send a `Beat` every `BEAT_EVERY` seconds: who has heard nothing for `SILENT_AFTER`
takes the other one for lost. A member ends what a lost head, or a closed connection, had started.
"""

from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from simagent.domain.cluster import Spanning
from simagent.domain.state import Record

BEAT_EVERY: Final = 4.0
SILENT_AFTER: Final = 15.0
"""Seconds; a host that froze is known to be lost after about this time."""


class Check(Record):
    """Asks whether the member can take part: answered by `Checked` or `Refused`.

    ``folder`` is that of an attempt, beneath the shared folder of each host; the member proves
    that it is the same one by reading ``token`` there from the file `TOKEN`, as the user ``uid``,
    and by failing to lock (fcntl) that file, which the head has locked. ``gpus`` are needed here.
    """

    ask: Literal["check"] = "check"
    folder: str
    token: str
    uid: int
    version: str
    gpus: int = 0


class Fetch(Record):
    """Asks to have an image: answered by `Fetched` or `Refused`.

    ``digest`` says what it has to hold: of an image that is a file each host has its own.
    """

    ask: Literal["fetch"] = "fetch"
    runtime: str
    image: str
    digest: str = ""


class Enter(Record):
    """Asks to run one line of shell, mpirun's own daemon, in the container of a task's step.

    Answered by `Started`, any number of `Sampled`, and `Exited` or `Refused`. ``entry`` is unique:
    asked for again, over another connection, the same run goes on. Without ``image`` it runs on
    the host. ``folder`` as in `Check`; it is what containers see as their work folder.

    With ``program`` the daemon runs on the host and starts some of the ``ranks`` of that program,
    each in a container of the image (`simagent.ports.runtime.Launch`).
    """

    ask: Literal["enter"] = "enter"
    entry: str
    attempt: Spanning
    agent: str
    step: int
    runtime: str
    image: str | None
    folder: str
    workdir: str = "."
    uid: int
    gid: int
    env: dict[str, str]
    command: str = ""
    """Filled in by the broker: what mpirun wants to run there."""
    grace: float
    shm_bytes: int | None = None
    memory_bytes: int | None = None
    cpus: float | None = None
    gpus: int = 0
    sample_every: float = 5.0
    program: tuple[str, ...] = ()
    ranks: int = 0


class Leave(Record):
    """Asks to end what this connection started: TERM, ``grace`` seconds, KILL; then `Exited`."""

    ask: Literal["leave"] = "leave"
    grace: float


class Beat(Record):
    """Shows that one lives. Sent by both sides."""

    event: Literal["beat"] = "beat"


class Checked(Record):
    """The member can take part."""

    event: Literal["checked"] = "checked"
    host: str
    version: str


class Fetched(Record):
    """The image is there."""

    event: Literal["fetched"] = "fetched"


class Started(Record):
    """The daemon was started."""

    event: Literal["started"] = "started"


class Sampled(Record):
    """A sample of what the member and the ranks on it use: as `simagent.telemetry.metrics`."""

    event: Literal["sampled"] = "sampled"
    sample: dict[str, int | float | str | list[float] | None]


class Departs(Record):
    """The member goes away: what was started has to be over in ``left`` seconds."""

    event: Literal["departs"] = "departs"
    why: str
    left: float


class Exited(Record):
    """The daemon ended, and nothing of it is left on the member."""

    event: Literal["exited"] = "exited"
    code: int | None = None
    signal: int | None = None
    message: str = ""


class Refused(Record):
    """The member does not do it. ``reason`` is the value of a `simagent.domain.reasons.Reason`."""

    event: Literal["refused"] = "refused"
    reason: str
    why: str


Request = Check | Fetch | Enter
"""What a head asks a member for first."""
Told = Checked | Fetched | Started | Sampled | Departs | Exited | Refused
"""What a member says, but for its beats."""
REQUEST: Final[TypeAdapter[Request]] = TypeAdapter(Annotated[Request, Field(discriminator="ask")])
EVENT: Final[TypeAdapter[Beat | Told]] = TypeAdapter(
    Annotated[Beat | Told, Field(discriminator="event")]
)

TOKEN: Final = ".simagent-token"  # noqa: S105 - the name of a file
"""The file in an attempt's shared folder by which hosts see that it is the same one."""
