"""What a step brings into its Apptainer container: its environment, a shell, and a mark.

The mark is one byte, at first ``?``, that tells how far it came: Apptainer's own exit codes are
those of programs, too. Variables come in a file: Apptainer takes no HOME, and no names that it uses
itself; and on a command line everybody could read them.
"""

import os
import secrets
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from simagent.domain.reasons import Reason
from simagent.ports.runtime import Mount, StepPlan
from simagent.runtimes.apptainer_ranks import IN_CONTAINER, launch_script, look, rank_script

INSIDE = PurePosixPath("/.simagent")
SCRIPT, MARK, SHELL = INSIDE / "run", INSIDE / "mark", INSIDE / "sh"

_BEFORE, _RUNS = "?", "r"
_OWN = ("APPNAME", "BIND", "COMMAND", "CONTAINER", "ENVIRONMENT", "NAME", "NO_EVAL")
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_LIBRARIES = "/.singularity.d/libs"
_ANSWER_BYTES = 4096
_MOST_CHARACTERS = 250

# Shells differ in what they look up besides PATH, so the program is looked up here. Where `exec`
# fails, bash goes on, the others run the trap.
_RUN = f"""\
simagent_mark() {{ printf %s "$1" 1<>{MARK}; }}
cd -- "$1" 2>/dev/null || {{ simagent_mark c; exit 126; }}
unset OLDPWD
[ -z "$2" ] || ulimit -d "$2" || {{ simagent_mark l; exit 126; }}
shift 2
simagent_file=
case $1 in
*/*) [ ! -e "$1" ] || simagent_file=$1 ;;
*)
    set -f
    IFS=:
    for simagent_folder in $PATH; do
        if [ -f "${{simagent_folder:-.}}/$1" ]; then
            simagent_file=${{simagent_folder:-.}}/$1
            [ ! -x "$simagent_file" ] || break
        fi
    done
    unset IFS
    set +f ;;
esac
[ -n "$simagent_file" ] || {{ simagent_mark "n$PATH"; exit 127; }}
[ ! -d "$simagent_file" ] || {{ simagent_mark "d$simagent_file"; exit 126; }}
[ -x "$simagent_file" ] || {{ simagent_mark "p$simagent_file"; exit 126; }}
shift
(shopt -s execfail) 2>/dev/null && shopt -s execfail
trap simagent_failed EXIT
simagent_failed() {{ trap - EXIT; simagent_mark "x$simagent_file"; exit 126; }}
simagent_mark {_RUNS}
exec "$simagent_file" "$@"
simagent_failed
"""


class Box:
    """The files of one step, in a folder beside its records that the task cannot see as such."""

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan
        self.folder = plan.folder.parent / "apptainer"
        self.home = self.folder / "home"
        """Where Apptainer itself keeps what it needs while the step runs."""
        self._script = self.folder / f"step-{plan.number}.run"
        self._mark = self.folder / f"step-{plan.number}.mark"
        self.launcher = self.folder / f"step-{plan.number}.launch"
        """What starts the ranks, where a program of the host does that."""
        self._rank = self.folder / f"step-{plan.number}.rank"

    def mounts(self, shell: Path | None) -> tuple[Mount, ...]:
        """List what has to be seen in the container."""
        found = (
            Mount(source=self._script, target=SCRIPT, writable=False),
            Mount(source=self._mark, target=MARK),
        )
        if shell is None:
            return found
        return (*found, Mount(source=shell, target=SHELL, writable=False))

    def command(self, shell: Path | None, *, confined: bool) -> list[str]:
        """Give what is to be executed in the container."""
        return self._run(shell, self.plan.argv, confined=confined)

    def look(self, shell: Path | None) -> list[str]:
        """Give what is to be executed in the container before ranks are; nothing if none is."""
        arguments = look(self.plan)
        interpreter = "/bin/sh" if shell is None else str(SHELL)
        return self._run(shell, (interpreter, *arguments), confined=True) if arguments else []

    def _run(self, shell: Path | None, argv: Sequence[str], *, confined: bool) -> list[str]:
        memory = self.plan.limits.memory_bytes
        limit = "" if memory is None or confined else str(memory // 1024)
        interpreter = "/bin/sh" if shell is None else str(SHELL)
        return [interpreter, str(SCRIPT), str(self.plan.cwd), limit, *argv]

    def write_launch(self, container: Sequence[str], look: Sequence[str]) -> None:
        """Write what starts ranks, each by the command line ``container``. Raises OSError."""
        owner = self._make()
        launch = launch_script(self.plan, rank=self._rank, mark=self._mark, look=look)
        _write(self._rank, rank_script(self.plan, container), 0o400, owner).replace(self._rank)
        _write(self.launcher, launch, 0o400, owner).replace(self.launcher)

    def write(self) -> None:
        """Write the files anew, for a step that never ran. Raises OSError."""
        owner = self._make()
        # Another one may start the step as well, and be first: then the mark is the program's.
        _write(self._script, _script(self.plan), 0o400, owner).replace(self._script)
        mark = _write(self._mark, _BEFORE, 0o600, owner)
        with suppress(FileExistsError):
            self._mark.hardlink_to(mark)
        mark.unlink()

    def _make(self) -> tuple[int, int] | None:
        """Make the folder; tell whose the files in it are to be, where not the agent's own."""
        sandbox = self.plan.sandbox
        assert sandbox is not None
        self.folder.mkdir(exist_ok=True)
        self.folder.chmod(0o711)
        self.home.mkdir(mode=0o700, exist_ok=True)
        owner = (sandbox.uid, sandbox.gid) if os.geteuid() == 0 else None
        if owner is not None:
            os.chown(self.home, *owner)
        return owner

    def never_ran(self) -> tuple[Reason | None, str] | None:
        """Tell why the program did not run, where that is known of it; None if it did run."""
        text = _BEFORE
        with suppress(OSError):
            fd = os.open(self._mark, os.O_RDONLY | os.O_NOFOLLOW)
            with open(fd, "rb") as file:
                text = os.fsdecode(file.read(_ANSWER_BYTES)) or _BEFORE
        program, rest = self.plan.argv[0], one_line(text[1:])
        match text[0]:
            case "?":
                return None, ""
            case "n":
                where = "" if "/" in program else f" in PATH ({rest})"
                return Reason.COMMAND_NOT_FOUND, f"{program}: no such program in the image{where}"
            case "c":
                return Reason.NOT_EXECUTABLE, f"cannot start in {self.plan.cwd}: no such folder"
            case "d":
                return Reason.NOT_EXECUTABLE, f"{rest}: is a folder"
            case "p":
                fix = "permission denied: make it executable (chmod +x)"
                return Reason.NOT_EXECUTABLE, f"{rest}: {fix}"
            case "l":
                return Reason.NOT_EXECUTABLE, "resources.memory cannot be had for the container"
            case "x":
                why = "not for this machine, or its interpreter or loader is not in the image"
                return Reason.NOT_EXECUTABLE, f"{rest}: {why}"
        return None


def one_line(text: str) -> str:
    """Make what anybody may have written fit for a message."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}…"


def _write(beside: Path, text: str, mode: int, owner: tuple[int, int] | None) -> Path:
    """Write a file for the task's user under a name of its own."""
    part = beside.with_name(f"{beside.name}.{secrets.token_hex(4)}.part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(os.fsencode(text))
    if owner is not None:
        os.chown(part, *owner)
    return part


def _script(plan: StepPlan) -> str:
    assert plan.sandbox is not None
    own = [f"{prefix}_{name}" for prefix in ("APPTAINER", "SINGULARITY") for name in _OWN]
    lines = [f"unset PS1 PROMPT_COMMAND {' '.join(own)}", '[ "$LANG" != C ] || unset LANG']
    env = dict(plan.env)
    if not plan.sandbox.gpus:
        lines.append(f'[ "$LD_LIBRARY_PATH" != {_LIBRARIES} ] || unset LD_LIBRARY_PATH')
    elif "LD_LIBRARY_PATH" in env:
        env["LD_LIBRARY_PATH"] += f":{_LIBRARIES}"
    if plan.sandbox.gpu_ids:
        # Apptainer shows all GPUs of the machine in the container.
        env |= dict.fromkeys(_VISIBLE, ",".join(plan.sandbox.gpu_ids))
    lines += [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    begin = IN_CONTAINER + _RUN if plan.launch is not None else _RUN
    return "\n".join([*lines, begin])
