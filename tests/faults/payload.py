"""A simulator that hurts, and keeps its own account of what it did: the ground truth.

    python -I -S payload.py TRUTH STEP MODE [NUMBER]

TRUTH is a folder outside of the task's, or where that cannot be seen ``tcp:PORT``, where truth.py
writes to it. What is written there, for each start of a step, under ``<task>/<epoch>.<step>/``:

``ran``       a line for every start: the process id
``stdout``    ``<size> <sha256>`` of what the step has written to the stream so far
``stderr``    likewise; each is replaced after the bytes themselves are written
``done``      JSON of the files it made, ``{path: [size, sha256]}``; missing if it did not end
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

MOST_FORKS = 40
MOST_MIB = 300
PIECE = 2**20


class Account:
    """The ground truth of one start of a step."""

    def __init__(self, truth: "Truth", step: str) -> None:
        task, epoch = os.environ["SIMAGENT_TASK_ID"], os.environ["SIMAGENT_EPOCH"]
        self._truth = truth
        self._folder = f"{task}/{epoch}.{step}"
        self._said = {1: (0, hashlib.sha256()), 2: (0, hashlib.sha256())}
        self._files: dict[str, tuple[int, str]] = {}
        truth.add(f"{self._folder}/ran", f"{os.getpid()}\n")

    def say(self, stream: int, data: bytes) -> None:
        """Write to a stream, and to the account once the bytes are out."""
        size, digest = self._said[stream]
        left = memoryview(data)
        while left:
            left = left[os.write(stream, left) :]
        digest.update(data)
        self._said[stream] = (size + len(data), digest)
        name = {1: "stdout", 2: "stderr"}[stream]
        self._truth.replace(f"{self._folder}/{name}", f"{size + len(data)} {digest.hexdigest()}")

    def make(self, path: str, data: bytes) -> None:
        """Write an output file."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)
        self._files[path] = (len(data), hashlib.sha256(data).hexdigest())

    def done(self) -> None:
        """Note that all of it was done."""
        self._truth.replace(f"{self._folder}/done", json.dumps(self._files))

    def goes(self) -> bool:
        """Tell whether what waits may end."""
        return self._truth.has("go")


class Truth:
    """Where the account is kept: a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def add(self, name: str, text: str) -> None:
        """Append to a file."""
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(text)

    def replace(self, name: str, text: str) -> None:
        """Write a file anew, whole or not at all."""
        path = self._root / name
        part = path.with_name(f".{path.name}")
        part.write_text(text)
        part.replace(path)

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""
        return (self._root / name).exists()


class DistantTruth(Truth):
    """A folder that somebody else writes to, for programs that cannot see it."""

    def __init__(self, port: int) -> None:
        self._connection = socket.socket()
        self._connection.connect(("127.0.0.1", port))
        self._answers = self._connection.makefile("rb")

    def add(self, name: str, text: str) -> None:
        """Append to a file."""
        self._ask("add", name, text)

    def replace(self, name: str, text: str) -> None:
        """Write a file anew, whole or not at all."""
        self._ask("replace", name, text)

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""
        return self._ask("has", name)

    def _ask(self, *call: str) -> bool:
        """Return once it is done, as nothing may be done that the account does not tell of."""
        self._connection.sendall(json.dumps(call).encode() + b"\n")
        return bool(json.loads(self._answers.readline()))


def open_truth(where: str) -> Truth:
    """Open the account by its name on the command line."""
    kind, _, port = where.partition(":")
    return DistantTruth(int(port)) if kind == "tcp" else Truth(Path(where))


def known(account: Account, number: float) -> None:
    """Write known bytes and files: ``number`` KiB of each, some of them hard to compress."""
    size = int(number * 1024)
    words = hashlib.sha256(os.environ["SIMAGENT_TASK_ID"].encode()).hexdigest().encode()
    account.say(1, (words + b"\n") * (size // 65 + 1))
    account.say(2, b"a warning\n" * (size // 100 + 1))
    account.make("results/numbers.bin", os.urandom(size))
    account.make("results/text.txt", b"the same again\n" * (size // 15))
    account.make("empty", b"")


def quick(account: Account, number: float) -> None:
    """Write a line and a file, and be done."""
    account.say(1, b"quick\n")
    account.make("result.txt", b"%d\n" % number)


def tick(account: Account, number: float) -> None:
    """Print lines for ``number`` seconds, then write a file."""
    end = time.monotonic() + number
    count = 0
    while time.monotonic() < end:
        account.say(1, b"tick %d\n" % count)
        account.say(2, b"tock %d\n" % count)
        count += 1
        time.sleep(0.02)
    account.make("ticks.txt", b"%d\n" % count)


def until(account: Account, number: float) -> None:
    """Print lines until the file ``go`` of the truth is there, ``number`` seconds at most."""
    end = time.monotonic() + number
    count = 0
    while not account.goes() and time.monotonic() < end:
        account.say(1, b"tick %d\n" % count)
        count += 1
        time.sleep(0.02)
    account.make("ticks.txt", b"%d\n" % count)


def counting(account: Account, number: float) -> None:
    """Count to ``number``, from where an earlier attempt was, with a pause after each; keep twins.

    Fails where the two are not of the same moment, or an earlier attempt's are not there.
    """
    names, count = ("one.rst", "two.rst"), 0
    if os.environ["SIMAGENT_RESTART"] == "1":
        one, two = (Path(name).read_bytes() for name in names)
        if one != two:
            sys.exit("half a checkpoint")
        count = len(one) // 100_000
    account.say(1, b"from %d\n" % count)
    done = False
    while not done:  # once at least: then what an earlier attempt left is this one's, too
        done = count + 1 >= number and account.goes()
        count += count < number
        for name in names:
            account.make(name, bytes([count]) * (100_000 * count))
        time.sleep(2.0)


def stubborn(account: Account, number: float) -> None:
    """Ignore SIGTERM and whatever else can be ignored."""
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    tick(account, number)


def daemonise(account: Account, number: float) -> None:
    """Leave a process behind: forked twice, in a session of its own, its streams closed."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for stream in (0, 1, 2):
                os.close(stream)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(number)
        os._exit(0)
    os.wait()
    account.say(1, b"left something behind\n")


def fork(account: Account, number: float) -> None:
    """Fork children that fork children, up to a number that does not hurt the machine."""
    for count in range(MOST_FORKS):
        if os.fork() == 0:
            if count % 2:
                os.setsid()
                if os.fork():
                    os._exit(0)
            time.sleep(number)
            os._exit(0)
    account.say(1, b"forked %d\n" % MOST_FORKS)
    time.sleep(number)


def eat(account: Account, number: float) -> None:
    """Use ``number`` MiB of memory, for real."""
    held = [os.urandom(PIECE) for _ in range(min(int(number), MOST_MIB))]
    account.say(1, b"ate %d pieces\n" % len(held))


def fill(account: Account, number: float) -> None:
    """Write files until the disk is full, ``number`` MiB at most; then fail as programs do."""
    with open("filler", "wb") as file:
        for _ in range(int(number)):
            file.write(b"x" * PIECE)
    account.say(1, b"the disk was larger than that\n")


def flood(account: Account, number: float) -> None:
    """Print ``number`` MiB."""
    line = b"".join(
        b"%08d the quick brown fox jumps over the lazy dog\n" % n for n in range(19_000)
    )
    for _ in range(int(number)):
        account.say(1, line[:PIECE])


def strange(account: Account, number: float) -> None:
    """Print one line of ``number`` MiB, NULs, and what is no UTF-8."""
    account.say(1, b"x" * int(number * 2**20) + b"\n")
    account.say(1, bytes(1000) + bytes(range(256)) * 100 + b"\xff\xfe\xc3\x28 no newline at end")
    account.say(2, b"\0\0\r\r\n\x1b[31m" + b"\xe2\x82")
    account.make("na\xefve \u2603 \n name", b"a strange name")


def assassin(account: Account, number: float) -> None:
    """Kill the agents whose process ids are in files of the truth."""
    account.say(1, b"killing\n")
    for file in (Path(sys.argv[1]) / "agents").iterdir():
        pid = int(file.read_text())
        if b"driver.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    time.sleep(number)


def children(account: Account, number: float) -> None:
    """Run a program that ignores SIGTERM in the foreground, as simulators' scripts do."""
    trap = f"trap '' TERM; sleep {number}"
    subprocess.run(["/bin/sh", "-c", trap], check=False)
    account.say(1, b"it ended\n")


_QUIET = (known, counting, quick, tick, until, children, flood, strange)
_HOSTILE = (stubborn, daemonise, fork, eat, fill, assassin)
MODES: dict[str, Callable[[Account, float], None]] = {
    mode.__name__: mode for mode in (*_QUIET, *_HOSTILE)
}


def main() -> None:
    """Do as the arguments say."""
    truth, step, mode, *number = sys.argv[1:]
    account = Account(open_truth(truth), step)
    MODES[mode](account, float(number[0]) if number else 1.0)
    account.done()


if __name__ == "__main__":
    main()
