"""The command line: it parses, calls, and prints.

Modules that are imported when a command line is parsed (`app`, `commands`, `options`) import
nothing heavy, so that `--help` is fast; the commands import what they need when they are called.
"""

from simagent.cli.leaving import INTERRUPTED, leave


def main() -> None:
    """Run the command line; every error ends here, as lines on standard error and an exit code."""
    from simagent.cli.commands import app

    try:
        app(prog_name="simagent")
    except KeyboardInterrupt:
        leave(INTERRUPTED, at_once=True)
    except BrokenPipeError:
        code = 1
    except Exception as error:  # noqa: BLE001 - the last resort: it is shown, or raised again
        from simagent.cli.failures import show

        code = show(error)
    leave(code)
