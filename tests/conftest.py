"""What all tests share."""

import os
import signal
from collections import Counter
from collections.abc import Generator

import pytest

pytest_plugins = ["engines.fixtures", "fakes.aws", "fakes.s3"]

_OF_THE_MACHINE = "machine: "
"""How a reason to skip begins where nothing that could be installed would help."""


def pytest_configure() -> None:
    """Let the programs that tests start hear Ctrl-C, also where a shell runs the tests aside."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _reasons(reporter: pytest.TerminalReporter) -> Counter[str]:
    return Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in reporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> Generator[None, None, None]:
    """Say last, and loudly, what this machine left untested."""
    yield
    reasons = _reasons(terminalreporter)
    if reasons:
        terminalreporter.section("NOT TESTED ON THIS MACHINE", sep="!", red=True, bold=True)
        for reason, count in sorted(reasons.items()):
            terminalreporter.line(f"{count} skipped: {reason}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where all that can be installed has to be there, as in CI, and something was not."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not os.environ.get("SIMAGENT_TEST_EVERYTHING"):
        return
    mendable = [r for r in _reasons(reporter) if not r.startswith(_OF_THE_MACHINE)]
    if mendable and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
