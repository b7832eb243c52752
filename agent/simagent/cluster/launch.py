"""What `mpirun` calls in place of ssh: a script that asks the broker to enter a host.

It lies in a folder that the step sees, with what it says to the broker:

``enter``  the script, a plain one of /bin/sh: no image has more for certain
``asks``   written to by the step: ``N.ask`` is an ask, the FIFO ``N.end`` awaits how it ended
``bell``   a FIFO, by which the broker hears that there is an ask

An ask is the address, on a line of its own, and what to run there. Its FIFO says ``taken`` on a
line, and on another the exit code, with what there is to say after it. That it closes without that
is the end of the broker.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePath

SCRIPT = "enter"
ASKS = "asks"
BELL = "bell"
ASK_SUFFIX, END_SUFFIX = ".ask", ".end"

# Options are those of ssh(1); who writes a new one has only to know which of them have a value.
# Nothing here waits by looking again and again: ranks compute on these cores.
_TEXT = r"""#!/bin/sh
# Called by mpirun as ssh would be: enter [OPTIONS] ADDRESS WORDS...
# Lets the agent run the words on that host, and exits as they do; with 255 where it could not.
PATH=$PATH:/usr/local/bin:/usr/bin:/bin
# Signals for the ranks, such as one to write a checkpoint, go to all processes of the step.
trap '' HUP INT QUIT ALRM USR1 USR2 TSTP
here=${0%/*}

fail() {
    echo "enter: $address: $*" >&2
    exit 255
}

address='?'
while [ $# -gt 0 ]; do
    case $1 in
        --) shift; break ;;
        -[bcDEeFIiJLlmOopQRSWw] | -[!bcDEeFIiJLlmOopQRSWw]*[bcDEeFIiJLlmOopQRSWw])
            [ $# -gt 1 ] || fail "option $1 lacks its value"
            shift 2 ;;
        -?*) shift ;;
        *) break ;;
    esac
done
[ $# -gt 1 ] || fail "nothing to run: usage: enter [OPTIONS] ADDRESS WORDS..."
address=${1#*@}
shift

words=
while [ $# -gt 0 ]; do
    case "$1 ${2-}" in
        # Its end would be taken for the daemon's.
        "--daemonize "*) shift ;;
        # By these Open MPI 4's daemon would start others, and ends where it could not: where there
        # is neither this script nor ssh.
        "-mca plm" | "-mca plm_rsh_agent") shift $(($# < 3 ? $# : 3)) ;;
        *)
            words="$words${words:+ }$1"
            shift ;;
    esac
done

name=$$
tries=0
until mkfifo -m 600 "$here/asks/$name.end" 2>/dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 50 ] || fail "cannot write to $here/asks, or there is no mkfifo"
    name=$$.$tries
done

# If nobody takes the ask in time, opening the FIFOs would never return.
(
    trap 'kill $! 2>/dev/null; exit 0' TERM
    sleep @PATIENCE@ >/dev/null 2>&1 </dev/null &
    wait $!
    echo "enter: $address: nobody answers: the broker of this step is gone" >&2
    kill -TERM $$
) </dev/null >/dev/null &
guard=$!

printf '%s\n%s' "$address" "$words" >"$here/asks/$name.part" &&
    mv "$here/asks/$name.part" "$here/asks/$name.ask" || {
    kill $guard
    fail "cannot write to $here/asks"
}
echo >"$here/bell"
exec 3<"$here/asks/$name.end"
read -r word <&3 || word=
kill $guard 2>/dev/null
wait $guard 2>/dev/null
[ "$word" = taken ] || fail "the broker of this step is gone"

read -r code message <&3 || fail "the broker of this step is gone"
[ -z "$message" ] || echo "enter: $address: $message" >&2
exit "$code"
"""

PATIENCE = 30


def lay(folder: Path, *, uid: int, gid: int, files: Mapping[str, str] | None = None) -> None:
    """Make ``folder`` for the steps of the user ``uid``, with the files of a launcher, by names.

    Asks that are there already are kept. Its parent must not be writable for that user. Raises
    OSError.
    """
    folder.mkdir(mode=0o755, exist_ok=True)
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(top, 0o755)
        _lay_asks(top, uid, gid)
        with suppress(FileExistsError):
            os.mkfifo(BELL, 0o600, dir_fd=top)
        os.chmod(BELL, 0o622, dir_fd=top)  # noqa: S103 - anybody may ring
        for name, text in (files or {}).items():
            _write(top, name, text, 0o644)
        _write(top, SCRIPT, _TEXT.replace("@PATIENCE@", str(PATIENCE)), 0o755)
    finally:
        os.close(top)


def program(folder: PurePath) -> str:
    """Give the path of the script where the step sees ``folder``: a launcher's `Span.agent`."""
    return str(folder / SCRIPT)


def _lay_asks(top: int, uid: int, gid: int) -> None:
    with suppress(FileExistsError):
        os.mkdir(ASKS, 0o700, dir_fd=top)
    asks = os.open(ASKS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    try:
        if os.geteuid() == 0:
            os.fchown(asks, uid, gid)
    finally:
        os.close(asks)


def _write(top: int, name: str, text: str, mode: int) -> None:
    part = f"{name}.part"
    with suppress(FileNotFoundError):
        os.unlink(part, dir_fd=top)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(part, flags, 0o600, dir_fd=top), "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(file.fileno(), mode)
    os.rename(part, name, src_dir_fd=top, dst_dir_fd=top)
