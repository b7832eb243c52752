"""A member agent as the relay sees it: a socket where requests are answered, shells are run."""

import json
import math
import os
import select
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


class FakeMember:
    """Serves ``path``; what it started stays when it is closed, and is found by the next one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[dict[str, Any]] = []
        self.entries: dict[str, subprocess.Popen[bytes]] = {}
        self.left: list[str] = []
        """Entries that were ended because their connection closed."""
        self.told_to_leave: list[float] = []
        self.departs: dict[str, Any] | None = None
        """Once it is set, heads are told that this host goes away."""
        self.deaf = False
        """With it, nobody is told to leave."""
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.serve()

    def serve(self) -> None:
        """Listen, again."""
        self._stop = threading.Event()
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen()
        listener.settimeout(0.02)
        accept = threading.Thread(target=self._accept, args=(listener, self._stop), daemon=True)
        self._threads = [accept]
        accept.start()

    def restart(self) -> None:
        """Go away and come back, as an agent that is killed does."""
        self.close()
        self.serve()

    def close(self) -> None:
        """Go away; leave what runs."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def end(self) -> None:
        """Go away, and end all that runs."""
        self.close()
        for process in self.entries.values():
            _kill(process)

    @property
    def running(self) -> list[str]:
        return [entry for entry, process in [*self.entries.items()] if process.poll() is None]

    def _accept(self, listener: socket.socket, stop: threading.Event) -> None:
        with listener:
            while not stop.is_set():
                with suppress(TimeoutError):
                    connection, _ = listener.accept()
                    thread = threading.Thread(
                        target=self._serve, args=(connection, stop), daemon=True
                    )
                    thread.start()
                    self._threads.append(thread)

    def _serve(self, connection: socket.socket, stop: threading.Event) -> None:
        with connection, suppress(OSError):
            lines = _Lines(connection, stop)
            request = lines.next()
            if request is None:
                return
            self.requests.append(request)
            match request["ask"]:
                case "check":
                    answer = {"event": "checked", "host": "a", "version": request["version"]}
                    _say(connection, answer)
                case "fetch" if request["image"] == "missing":
                    why = {"reason": "image_not_found", "why": "there is no such image"}
                    _say(connection, {"event": "refused", **why})
                case "fetch" if request["image"] != "slow":
                    _say(connection, {"event": "fetched"})
                case "fetch":
                    while lines.next() is not None:
                        pass
                case "enter":
                    self._enter(request, connection, lines, stop)

    def _enter(
        self,
        request: dict[str, Any],
        connection: socket.socket,
        lines: "_Lines",
        stop: threading.Event,
    ) -> None:
        entry = request["entry"]
        if entry not in self.entries:
            self.entries[entry] = subprocess.Popen(
                ["/bin/sh", "-c", request["command"]],
                stdin=subprocess.DEVNULL,
                env=os.environ | request["env"],
                cwd=self.path.parent,
                start_new_session=True,
            )
        process = self.entries[entry]
        _say(connection, {"event": "started"})
        _say(connection, {"event": "sampled", "sample": {"cpu": 1.5}})
        told = False
        while process.poll() is None:
            if self.departs is not None and not told:
                told = True
                _say(connection, {"event": "departs", **self.departs})
            said = lines.next(until=process, for_=0.1)
            if said == {}:
                continue
            if stop.is_set():
                return
            if said is None and process.poll() is None:
                _kill(process)
                self.left.append(entry)
                return
            if said is not None and said.get("ask") == "leave" and not self.deaf:
                self.told_to_leave.append(said["grace"])
                _kill(process)
        code, message = process.returncode, "that was it" if process.returncode else ""
        number = {"signal": -code} if code < 0 else {"code": code}
        _say(connection, {"event": "exited", "message": message, **number})


class _Lines:
    def __init__(self, connection: socket.socket, stop: threading.Event) -> None:
        self._connection = connection
        self._stop = stop
        self._rest = b""

    def next(
        self, until: subprocess.Popen[bytes] | None = None, for_: float = math.inf
    ) -> dict[str, Any] | None:
        """Give the next line; None at the end, when told to stop, or when a process has ended.

        Nothing where there is none ``for_`` so many seconds.
        """
        deadline = time.monotonic() + for_
        while b"\n" not in self._rest:
            if time.monotonic() > deadline:
                return {}
            if self._stop.is_set() or (until is not None and until.poll() is not None):
                return None
            if select.select([self._connection], [], [], 0.02)[0]:
                try:
                    data = self._connection.recv(1 << 16)
                except ConnectionResetError:  # closed with something unread
                    data = b""
                if not data:
                    return None
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return said


def _say(connection: socket.socket, event: dict[str, Any]) -> None:
    connection.sendall(json.dumps(event).encode() + b"\n")


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
