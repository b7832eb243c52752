"""The command as users and scripts run it: processes, with a state folder of their own."""

import json
import os
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMMAND = Path(sysconfig.get_path("scripts")) / "simagent"
HELLO = "name: hello\ntags: {kind: demo}\ncommands: [echo hello, cp /dev/null made.txt]\n"


class Cli:
    """Runs ``simagent`` in a folder; ``state`` is where everything lands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.env = {name: v for name, v in os.environ.items() if not name.startswith("SIMAGENT_")}
        self.env["SIMAGENT_STATE_DIR"] = str(self.state)

    def __call__(
        self, *args: str | Path, code: int = 0, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end, which has to be the exit code."""
        done = subprocess.run(
            [COMMAND, *args],
            cwd=self.folder,
            env=self.env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def start(self, *args: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [COMMAND, *args],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @contextmanager
    def agent(self) -> Iterator[None]:
        """Run an agent beside; its log goes to a file, which no number of tasks fills as a pipe."""
        with (self.folder / "agent.log").open("wb") as log:
            process = subprocess.Popen(
                [COMMAND, "agent"],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        try:
            yield
        finally:
            process.terminate()
            process.wait(180)

    def submit(self, text: str, *args: str) -> str:
        return self("submit", "-", *args, stdin=text).stdout.strip()

    def shown(self, task: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self("show", task, "--json").stdout)
        return shown
