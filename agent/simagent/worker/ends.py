"""What is done at the end of an agent's life: a program is run, or the cloud is asked."""

import shutil
import subprocess
from collections.abc import Sequence

from simagent.ports.cloud import CloudError, StaysError, Terminable
from simagent.worker.endoflife import EndFailedError, EndRefusedError

POWEROFF = ("systemctl", "poweroff")

_WITHIN = 60.0
_MOST_SAID = 200


class Command:
    """A program that ends the machine, or has it ended; it gets a minute."""

    def __init__(self, name: str, argv: Sequence[str], within: float = _WITHIN) -> None:
        """``name`` tells people what it does."""
        self.name = name
        self._argv = list(argv)
        self._within = within

    def __call__(self, *, idle: bool) -> None:
        """Run it to its end. Raises `EndFailedError`."""
        del idle
        program = shutil.which(self._argv[0])
        if program is None:
            raise EndFailedError(f"there is no program {self._argv[0]}")
        try:
            done = subprocess.run(
                [program, *self._argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=self._within,
                check=False,
            )
        except subprocess.TimeoutExpired:
            text = f"{self._argv[0]} had not ended after {self._within:g} s"
            raise EndFailedError(text) from None
        except OSError as error:
            raise EndFailedError(f"{program}: {error.strerror or error}") from None
        if done.returncode != 0:
            said = " ".join(done.stdout.decode(errors="replace").split())[-_MOST_SAID:]
            text = f"{' '.join(self._argv)} ended with {done.returncode}"
            raise EndFailedError(f"{text}: {said}" if said else text)


class Terminate:
    """The cloud ends the machine; where none looks after it there, it is powered off."""

    name = "terminate"

    def __init__(self, cloud: Terminable, poweroff: Command) -> None:
        self._cloud = cloud
        self._poweroff = poweroff

    def __call__(self, *, idle: bool) -> None:
        """Have it terminated. Raises `EndFailedError`, `EndRefusedError`."""
        try:
            looked_after = self._cloud.terminate(replace=not idle)
        except StaysError as error:
            raise EndRefusedError(str(error)) from None
        except CloudError as error:
            raise EndFailedError(str(error)) from None
        if not looked_after:
            self._poweroff(idle=idle)
