"""The lines of shell that start a program in a container, in the shells that images have."""

import os
import subprocess
from pathlib import Path
from shutil import which

import pytest

from simagent.runtimes.docker_container import FOLDER, NEW, REPORT_BYTES, SCRIPT
from simagent.runtimes.static_shell import static_shell

SHELLS = ["dash", "bash", "bash --posix", "busybox sh"]


class Shell:
    """A shell of this machine, and a folder in place of the container's own."""

    def __init__(self, argv: list[str], folder: Path) -> None:
        self.argv = argv
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir()
        (folder / "stdin").write_bytes(b"in\n")
        (folder / "agent").touch()

    def run(self, *program: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> int:
        (self.folder / "report").write_bytes(f"{NEW}\n".encode().ljust(REPORT_BYTES))
        for name in ("stdout", "stderr"):
            (self.folder / name).touch()
        script = SCRIPT.replace(FOLDER, str(self.folder))
        argv = [*self.argv, "-c", script, "simagent", "30", "60", "1", str(cwd or self.work)]
        usual = {"PATH": os.environ["PATH"], "TINI_KILL_PROCESS_GROUP": "1"}
        # A session of its own, so that the guard can be ended with it.
        started = subprocess.Popen([*argv, *program], env=env or usual, start_new_session=True)
        code = started.wait(30)
        os.killpg(started.pid, 9)
        return code

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()

    @property
    def report(self) -> str:
        return self.text("report").splitlines()[0].strip()

    def program(self, name: str, content: str, mode: int = 0o755) -> str:
        (self.work / name).write_text(content)
        (self.work / name).chmod(mode)
        return f"./{name}"


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    argv = request.param.split()
    if which(argv[0]) is None:
        pytest.skip(f"{argv[0]} is missing (make engines installs it)")
    return Shell(argv, tmp_path)


def test_the_program_runs(shell: Shell) -> None:
    assert shell.run("sh", "-c", "cat; echo err >&2; pwd; exit 7") == 7
    assert shell.text("stdout") == f"in\n{shell.work}\n"
    assert shell.text("stderr") == "err\n"
    assert shell.report == "begun"


def test_words_stay_words(shell: Shell) -> None:
    words = ["a b", "", "*", "$HOME", "-x", "'", '"\\n']
    assert shell.run("printf", "<%s>\\n", *words) == 0
    assert shell.text("stdout").splitlines() == [f"<{word}>" for word in words]


def test_variables_are_as_given(shell: Shell) -> None:
    env = {"PATH": os.environ["PATH"], "line": "1", "name": "2", "IFS": "3", "TEXT": "a\nb"}
    assert shell.run("env", env=env | {"TINI_KILL_PROCESS_GROUP": "1"}) == 0
    said = shell.text("stdout")
    assert "line=1\n" in said
    assert "name=2\n" in said
    assert "TEXT=a\nb\n" in said
    assert "TINI" not in said
    assert "_sa_" not in said


def test_codes_of_programs_are_their_own(shell: Shell) -> None:
    for code in (125, 126, 127):
        assert shell.run("sh", "-c", f"exit {code}") == code
        assert shell.report == "begun"


def test_programs_that_cannot_run(shell: Shell) -> None:
    cases = [
        ("no-such-program", "command_not_found no-such-program: no such program in the image, in"),
        ("./none", "command_not_found ./none: no such program in the image"),
        (str(shell.work), f"not_executable {shell.work}: is a folder"),
        (shell.program("closed", "#!/bin/sh\n", 0o644), "not_executable ./closed: permission"),
        (shell.program("odd", "neither"), "not_executable ./odd: neither a program"),
        (shell.program("orphan", "#!/no/such/interpreter\n"), "failed 12"),
    ]
    for program, report in cases:
        assert shell.run(program) in (126, 127)
        assert shell.report.startswith(report)


def test_a_folder_that_is_not_there(shell: Shell) -> None:
    assert shell.run("true", cwd=shell.work / "gone") == 127
    assert shell.report.startswith(f"not_executable cannot start in {shell.work}/gone")


def test_the_first_in_path_that_can_be_executed_counts(shell: Shell) -> None:
    for name, mode in (("one", 0o644), ("two", 0o755)):
        (shell.work / name).mkdir()
        shell.program(f"{name}/tool", f"#!/bin/sh\necho {name}\n", mode)
    env = {"PATH": f"{shell.work}/one:{shell.work}/two:/usr/bin:/bin"}
    assert shell.run("tool", env=env) == 0
    assert shell.text("stdout") == "two\n"


def test_nothing_runs_twice(shell: Shell) -> None:
    assert shell.run("echo", "once") == 0
    argv = [*shell.argv, "-c", SCRIPT.replace(FOLDER, str(shell.folder)), "simagent"]
    done = subprocess.run([*argv, "30", "60", "1", str(shell.work), "echo", "twice"], check=False)
    assert done.returncode == 125
    assert shell.text("stdout") == "once\n"
    assert shell.report == "again"


def test_only_static_programs_are_shells_for_any_image(tmp_path: Path) -> None:
    assert static_shell((Path("/bin/sh"),)) is None, "it needs the C library"
    assert static_shell((tmp_path / "none",)) is None
    (tmp_path / "text").write_text("#!/bin/sh\n")
    assert static_shell((tmp_path / "text",)) is None
