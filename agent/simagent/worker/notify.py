"""Tells systemd how the agent is: sd_notify(3), a datagram to $NOTIFY_SOCKET."""

import os
import socket

_LONGEST = 1000
_START_WITHIN = 180
"""Seconds: all that is asked at the start has a time of its own; together they take less."""
_TO_END = 10.0
"""Seconds for the rest, when nothing runs any more."""


class Notifier:
    """Sends states to systemd; does nothing where systemd did not start the agent."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._status = ""

    def starting(self) -> None:
        """The agent is about to look at what it needs, some of which may not answer for long."""
        self._send(f"EXTEND_TIMEOUT_USEC={_START_WITHIN}000000")
        self.status("looking at the store, the queue and the cloud")

    def ready(self) -> None:
        """The agent takes tasks."""
        self._send("READY=1")

    def alive(self) -> None:
        """The main loop made progress."""
        self._send("WATCHDOG=1")

    def stopping(self, within: float = 0.0) -> None:
        """The agent is about to end, in so many seconds: what it runs may have to be given back.

        Whoever says this and ends later than TimeoutStopSec is killed, if no more was asked for.
        """
        self._send("STOPPING=1")
        if within > 0.0:
            self._send(f"EXTEND_TIMEOUT_USEC={round((within + _TO_END) * 1e6)}")

    def status(self, text: str) -> None:
        """Show a line in `systemctl status`: one line, whatever is in the text."""
        line = " ".join(text.split())
        if len(line) > _LONGEST:
            line = f"{line[:_LONGEST]} ..."
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(state.encode(errors="backslashreplace"), self._address)
        except OSError:
            return  # systemd's watchdog notices when none of these arrive
