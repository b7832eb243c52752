"""The command line: it parses, calls, and prints.

Modules that are imported when a command line is parsed (`app`, `commands`, `options`) import
nothing heavy, so that `--help` is fast; the commands import what they need when they are called.
"""

import os
import sys


def main() -> None:
    """Run the command line; every error ends here, as lines on standard error and an exit code."""
    from simagent.cli.commands import app

    try:
        app(prog_name="simagent")
    except KeyboardInterrupt:
        _leave(130, at_once=True)
    except BrokenPipeError:
        code = 1
    except Exception as error:  # noqa: BLE001 - the last resort: it is shown, or raised again
        from simagent.cli.failures import show

        code = show(error)
    _leave(code)


def _leave(code: int, *, at_once: bool = False) -> None:
    for fd, file in ((1, sys.stdout), (2, sys.stderr)):
        try:
            file.flush()
        except OSError:  # the reader has gone: Python would trip over it once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
    if at_once:  # Python would wait for threads, and what they wait for may never answer
        os._exit(code)
    sys.exit(code)
