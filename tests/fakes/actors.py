"""Other processes that use the same store or queue as a test, each a Python of its own."""

import base64
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable

from simagent.ports.clock import Wake
from simagent.ports.queue import Queue, QueueError
from simagent.ports.store import NotFoundError, PreconditionError, Store, StoreError

_RUN = (
    "import base64, pickle, sys\n"
    "function, arguments = pickle.loads(base64.b64decode(sys.argv[1]))\n"
    "print('ready', flush=True)\n"
    "sys.stdin.readline()\n"
    "function(*arguments)\n"
)


class Actor:
    """A process that calls ``function`` as soon as it is told to go."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        what = base64.b64encode(pickle.dumps((function, arguments))).decode()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _RUN, what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def ready(self) -> None:
        """Wait until it has started and only waits for `go`."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self) -> list[str]:
        """Wait for its end and give the lines it printed; it must have succeeded."""
        output, _ = self._process.communicate(timeout=480)
        assert self._process.returncode == 0
        return output.splitlines()


def together(*actors: Actor) -> list[list[str]]:
    """Let actors go at the same time, and give what each printed."""
    for actor in actors:
        actor.ready()
    for actor in actors:
        actor.go()
    return [actor.result() for actor in actors]


def increment(open_store: Callable[[], Store], key: str, times: int) -> None:
    """Add 1 to the number in an object, by compare-and-swap, so many times."""
    store = open_store()
    for _ in range(times):
        while True:
            blob = store.get(key)
            try:
                store.put(key, b"%d" % (int(blob.data) + 1), if_match=blob.etag)
                break
            except PreconditionError:
                continue


def create(open_store: Callable[[], Store], keys: list[str], name: str) -> None:
    """Try to be the first to write each object; print those won."""
    store = open_store()
    for key in keys:
        try:
            store.put(key, name.encode(), if_absent=True)
            print(key)
        except PreconditionError:
            continue


def overwrite(open_store: Callable[[], Store], key: str, letters: bytes, size: int) -> None:
    """Write an object of one repeated letter, for each of the letters."""
    store = open_store()
    for letter in letters:
        store.put(key, bytes([letter]) * size)


def write_and_delete(open_store: Callable[[], Store], key: str, times: int) -> None:
    """Write an object, see it, delete it, so many times."""
    store = open_store()
    for number in range(times):
        data = b"%d" % number
        store.put(key, data)
        assert store.get(key).data == data
        store.delete(key)


def read_while(open_store: Callable[[], Store], key: str, until: bytes) -> None:
    """Read an object until it holds only the letter ``until``; print what was torn."""
    store = open_store()
    while True:
        try:
            data = store.get(key).data
        except NotFoundError:
            continue
        if len(set(data)) != 1:
            print("torn")
        if data[:1] == until:
            return


def receive_all(open_queue: Callable[[], Queue], wait: float) -> None:
    """Receive messages until none comes for ``wait`` seconds; print their bodies."""
    queue, wake = open_queue(), Wake()
    while (message := queue.receive(visibility=600, wait=wait, wake=wake)) is not None:
        print(message.body)


def echo(open_queue: Callable[[str], Queue], source: str, target: str, wait: float) -> None:
    """Send what comes by one queue on by another, until nothing came for ``wait`` seconds."""
    incoming, outgoing, wake = open_queue(source), open_queue(target), Wake()
    while (message := incoming.receive(visibility=600, wait=wait, wake=wake)) is not None:
        outgoing.send(message.body)
        incoming.delete(message.receipt)
        if message.body == "stop":
            return


def use_all(limit: int, value: int) -> None:
    """Allow this process no more than ``value`` of a resource (see getrlimit(2))."""
    resource.setrlimit(limit, (value, value))


def put_limited(open_store: Callable[[], Store], key: str, limit: int, value: int) -> None:
    """Write an object under a resource limit; print the name of the error."""
    store = open_store()
    store.put("before", b"")
    use_all(limit, value)
    try:
        store.put(key, b"x" * 100_000)
    except StoreError as error:
        print(type(error).__name__)


def send_limited(open_queue: Callable[[str], Queue], group: str, limit: int, value: int) -> None:
    """Send large messages under a resource limit until that fails; print the name of the error."""
    queue = open_queue(group)
    queue.send("before")
    use_all(limit, value)
    try:
        for _ in range(100):
            queue.send("x" * 100_000)
    except QueueError as error:
        print(type(error).__name__)
