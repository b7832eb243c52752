"""The Python client as programs use it: scripts, threads, terminals, notebooks, wrong input."""

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fakes.cli import Cli
from simagent import (
    Client,
    ClientError,
    ConfigError,
    Progress,
    Spec,
    StoreError,
    Task,
    TaskFailedError,
    UsageError,
    WaitTimeoutError,
)

CHATTER = "i=0; while test $i -lt 1000; do echo line $i; i=$((i+1)); sleep 0.05; done"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A machine with an agent that takes two tasks at a time."""
    cli = Cli(tmp_path_factory.mktemp("client"))
    cli.env["SIMAGENT_SLOTS"] = "2"
    (cli.folder / "case").mkdir()
    (cli.folder / "case" / "mesh.txt").write_text("4 cells\n")
    with cli.agent():
        yield cli


@pytest.fixture
def client(home: Cli, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    for name in os.environ:
        if name.startswith("SIMAGENT_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(home.folder)
    with Client(state_dir=home.state) as client:
        yield client


def script(home: Cli, code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    file = home.folder / "script.py"
    file.write_text(code)
    return subprocess.run(
        [sys.executable, file],
        cwd=home.folder,
        env=home.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def refusal(call: Callable[[], object]) -> list[str]:
    with pytest.raises(UsageError) as caught:
        call()
    return str(caught.value).splitlines()


def test_a_script_runs_a_folder_and_fetches_what_it_made(home: Cli) -> None:
    done = script(
        home,
        "from simagent import Client\n"
        "task = Client().submit('case', commands=['cp mesh.txt made.txt', 'cat made.txt'])\n"
        "assert task.wait(check=True).status == 'succeeded'\n"
        "print(task.download('made.txt', to='got'), *task.logs())\n",
    )
    assert (done.stdout, done.stderr) == ("[PosixPath('got/made.txt')] 4 cells\n", "")
    assert (home.folder / "got" / "made.txt").read_text() == "4 cells\n"


def test_the_command_line_and_the_client_see_the_same(home: Cli, client: Client) -> None:
    task = client.submit(commands=["echo same"], tags={"made": "here"})
    task.wait()
    assert home("show", task.id).stdout == task.show() + "\n"
    assert home.shown(task.id) == task.describe()
    listed = home("list", "--tag", "made=here").stdout.splitlines()
    assert [line.split()[0] for line in listed[1:]] == [t.id for t in client.tasks(tag="made=here")]


@pytest.mark.parametrize(
    ("wanted", "fields", "line"),
    [
        (None, {}, "commands: is missing: add it"),
        (None, {"commands": "echo a"}, "commands: has to be a list, not 'echo a'"),
        (None, {"commands": (["a", 5],)}, "commands[0][1]: has to be text (in quotes), not 5"),
        ({"commands": ["true"], "imagee": "x"}, {}, "imagee: unknown field: did you mean image?"),
        ("case", {}, "case is a folder, an input: tell with commands=[…] what runs on it"),
        ("nowhere", {}, "nowhere: cannot be read: No such file or directory"),
        ("case/mesh.txt", {}, "case/mesh.txt: what is in it? Name it .toml, .yaml or .json"),
        (5, {}, "a int is no task: give a folder, a task file, a dict or a Spec"),
        (None, {"commands": ["true"], "inputs": ["gone"]}, "inputs[0].source: "),
        (None, {"commands": ["true"], "resources": {"memory": "much"}}, "resources.memory: "),
        (None, {"commands": ["true"], "task_id": "a/b"}, "'a/b' "),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    client: Client, wanted: Any, fields: Any, line: str
) -> None:
    before = [task.id for task in client.tasks()]
    (said,) = refusal(lambda: client.submit(wanted, **fields))
    assert said.startswith(line)
    assert "pydantic" not in said
    assert [task.id for task in client.tasks()] == before


def test_arguments_that_are_wrong_are_named(client: Client) -> None:
    assert refusal(lambda: client.tasks(status="runing")) == [
        "status: 'runing' is no status: did you mean running?"
    ]
    assert refusal(lambda: client.tasks(tag="demo"))[0].startswith("tag: 'demo' has no value")
    assert refusal(lambda: client.tasks(limit=-1))[0].startswith("limit: -1 is less than none")
    assert refusal(lambda: client.prune(older_than="long"))[0].startswith("older_than: cannot read")
    task = client.submit(commands=["true"])
    assert refusal(lambda: task.wait(-1))[0].startswith("timeout: -1 is no duration")
    assert refusal(lambda: task.kill(grace="x"))[0].startswith("grace: cannot read 'x'")
    assert refusal(lambda: task.tail("a", -1))[0].startswith("n: -1 is less than none")
    wrong: Any = "stdin"
    assert refusal(lambda: next(task.logs(stream=wrong)))[0].startswith("stream: 'stdin' is none")


def test_settings_that_are_wrong_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ftp://x' is not supported"):
        Client(store="ftp://x")
    with pytest.raises(ConfigError, match="stor: unknown setting: did you mean store"):
        Client(stor="file:///x")
    with pytest.raises(ConfigError, match=r"config: .*gone.toml does not exist"):
        Client(config=tmp_path / "gone.toml")


def test_a_file_of_settings_and_keywords_before_it(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    engines = f'store = "file://{tmp_path}/s"\nqueue = "sqlite://{tmp_path}/q"\n'
    file.write_text(f'{engines}project = "a"')
    assert Client(config=file).project == "a"
    assert Client(config=str(file), project="b").submit(commands=["true"]).project == "b"
    assert (tmp_path / "s" / "p" / "b").is_dir()


def test_a_task_that_is_not_there(client: Client) -> None:
    task = client.task("01J00000000000000000000000")
    for call in (task.wait, task.show, task.kill, task.delete, task.ls, task.retry, task.download):
        with pytest.raises(ClientError, match="no task 01J0") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_keywords_go_before_what_is_submitted(client: Client, tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("name: file\ncommands: [cat data.txt]\ninputs: [data.txt]")
    (tmp_path / "data.txt").write_text("beside the file\n")
    task = client.submit(tmp_path / "task.yaml", name="mine")
    assert (task.spec.name, task.wait().status) == ("mine", "succeeded")
    assert list(task.logs()) == ["beside the file"]
    spec = Spec.model_validate({"commands": ["true"], "name": "spec", "group": "elsewhere"})
    assert client.check(spec, name="").name == ""
    assert client.check(spec).group == "elsewhere"


def test_a_folder_goes_before_the_other_inputs(client: Client) -> None:
    task = client.submit(
        "case/", inputs=[{"source": "case/mesh.txt", "destination": "copy.txt"}], commands=["ls"]
    )
    task.wait(check=True)
    assert [item for item in task.logs() if item.endswith("txt")] == ["copy.txt", "mesh.txt"]


def test_bytes_that_are_sent_are_told(client: Client, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(os.urandom(3_000_000))
    sent: list[int] = []
    client.submit(tmp_path, commands=["true"], on_progress=sent.append)
    assert sent == sorted(sent)
    assert sent[-1] >= 3_000_000


def test_who_waits_is_told_of_the_progress(client: Client) -> None:
    task = client.submit(commands=[{"run": f"{CHATTER}; exit 4", "shell": True}])
    with pytest.raises(WaitTimeoutError, match=f"task {task.id} is .* after 0.1 s: it goes on"):
        task.wait(0.1, progress=False)
    told: list[Progress] = []
    caller = threading.current_thread()

    def tell(now: Progress) -> None:
        assert threading.current_thread() is caller
        told.append(now)
        if now.line:
            task.kill(grace=1)

    with pytest.raises(TaskFailedError, match="killed") as failed:
        task.wait(progress=tell, check=True)
    assert failed.value.task_id == task.id
    assert failed.value.state.status == told[-1].status == "killed"
    assert told[-1].line.startswith("line ")
    assert [now.elapsed for now in told] == sorted(now.elapsed for now in told)


def test_lines_of_both_streams_whatever_their_bytes(client: Client) -> None:
    run = r"printf 'a\r\n\xc3'; sleep 0.3; printf '\xa9\n\xff\n\nlast'; echo other >&2"
    task = client.submit(commands=[{"run": run.replace(r"\x", r"\x"), "shell": True}])
    task.wait()
    data = b"".join(piece.data for piece in task.log_pieces(["stdout"]))
    assert list(task.logs(stream="stdout")) == data.decode(errors="replace").split("\n")
    assert list(task.logs(stream="stderr")) == ["other"]
    assert sorted(task.logs()) == sorted([*task.logs(stream="stdout"), "other"])


def test_files_of_a_running_task(client: Client) -> None:
    task = client.submit(commands=[{"run": "echo a > f; echo b >> f; sleep 600", "shell": True}])
    until(lambda: task.status == "running")
    until(lambda: any(item.name == "f" and item.size == 4 for item in task.ls()))
    assert task.tail("f", 1) == "b\n"
    with pytest.raises(ClientError, match="gone"):
        task.tail("gone")
    task.kill(grace=0)
    assert task.wait().status == "killed"
    assert b"".join(task.follow("f")) == b"a\nb\n"


def test_two_clients_in_threads_and_one_that_they_share(home: Cli, client: Client) -> None:
    ended: list[str] = []

    def work(mine: Client, number: int) -> None:
        task = mine.submit(commands=[f"echo {number}"], name=f"thread-{number}")
        task.wait()
        ended.extend(task.logs())

    with Client(state_dir=home.state) as other:
        threads = [
            threading.Thread(target=work, args=((client, other)[n % 2], n), daemon=True)
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sorted(ended) == [str(n) for n in range(8)]
    assert len({task.id for task in client.tasks(name="thread-*")}) == 8


def test_a_notebook_shows_something_short(client: Client) -> None:
    task = client.submit(commands=["true"], name="<b>wing</b>")
    assert repr(task) == f"<Task {task.id}>"
    task.wait()
    assert repr(task) == f"<Task {task.id} succeeded>"
    shown = task._repr_html_()
    assert "&lt;b&gt;wing" in shown
    assert "succeeded" in shown
    assert {task, client.task(task.id)} == {task}
    assert len(repr(client)) < 300


def test_a_closed_client_says_so(home: Cli) -> None:
    with Client(state_dir=home.state) as client:
        task = client.submit(commands=["true"])
    for call in (client.tasks, lambda: task.status, lambda: client.submit(commands=["true"])):
        with pytest.raises(ClientError, match="the client is closed: make another one"):
            call()


def test_a_line_on_a_terminal_and_nothing_elsewhere(home: Cli) -> None:
    code = (
        "from simagent import Client\n"
        "task = Client().submit(commands=['echo on-the-way', 'sleep 2'])\n"
        "task.wait()\n"
    )
    assert script(home, code).stderr == ""
    ours, theirs = pty.openpty()
    done = subprocess.Popen([sys.executable, "-c", code], env=home.env, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 4096):
            shown += data
    except OSError:  # its other end was closed
        pass
    os.close(ours)
    assert done.wait(60) == 0
    assert b"running" in shown
    assert b"on-the-way" in shown
    assert shown.endswith(b"\r\x1b[K")


@pytest.fixture
def nowhere() -> str:
    """Settings of a store where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """Settings of a store that takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


AWS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.mark.parametrize("kind", ["nowhere", "silent"])
def test_a_store_that_does_not_answer_is_told_of_and_left_at_once(
    home: Cli, kind: str, request: pytest.FixtureRequest
) -> None:
    home.env |= AWS | {"AWS_REGION": "eu-west-1"}
    endpoint = request.getfixturevalue(kind)
    home.env |= {"SIMAGENT_STORE": "s3://bucket", "SIMAGENT_S3_ENDPOINT": endpoint}
    try:
        began = time.monotonic()
        process = home.start("show", "01J00000000000000000000000")
        assert process.stderr is not None
        line = process.stderr.readline()
        assert time.monotonic() - began < 30
        assert "does not answer" in line
        assert re.fullmatch(r"simagent: .*: trying for [345]\d s more\n", line)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.wait(60) == 130
        assert time.monotonic() - began < 15, "a call waits 30 s for its answer"
        assert process.communicate() == ("", "")
    finally:
        for name in (*AWS, "AWS_REGION", "SIMAGENT_STORE", "SIMAGENT_S3_ENDPOINT"):
            del home.env[name]


def test_who_interrupts_a_command_does_not_wait_for_its_threads() -> None:
    code = (
        "import threading, time\n"
        "from simagent.cli.opening import leave_when_interrupted\n"
        "leave_when_interrupted()\n"
        "thread = threading.Thread(target=time.sleep, args=(60,))\n"
        "thread.start()\n"
        "said = 'begun'\n"
        "while True:\n"
        "    try:\n"
        "        print(said, flush=True)\n"
        "        thread.join()\n"
        "    except KeyboardInterrupt:\n"
        "        said = 'tidied'\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "tidied\n"
    assert process.wait(20) == 130
    process.stdout.close()


def test_a_program_hears_it_as_a_warning(nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    told: list[str] = []
    heard = threading.Event()

    def tell(text: str) -> None:
        told.append(text)
        heard.set()

    client = Client(store="s3://bucket", s3_endpoint=nowhere, s3_region="x", on_notice=tell)
    task = client.task("T")

    def wait() -> None:
        with suppress(StoreError):
            task.wait()

    threading.Thread(target=wait, daemon=True).start()
    assert heard.wait(30)
    assert nowhere.removeprefix("http://") in told[0]
    assert told[0].endswith(" s more")


def test_a_wait_is_no_longer_than_asked_for_also_in_an_outage(
    nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    with Client(store="s3://bucket", s3_endpoint=nowhere, s3_region="x") as client:
        began = time.monotonic()
        with pytest.raises(StoreError, match="does not answer"):
            client.task("T").wait(0.5)
        assert time.monotonic() - began < 20


def until(look: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.05)


def test_a_type_checker_sees_the_keywords(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(
        "from simagent import Client, Task\n"
        "task: Task = Client().submit('case', commands=['a'], time_limit='2h')\n"
        "Client().submit(comands=['a'])\n"
        "reveal_type(task.wait().status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "user.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 'user.py:3: error: Unexpected keyword argument "comands"' in done.stdout
    assert 'Revealed type is "simagent.domain.state.Status"' in done.stdout
    assert "Found 1 error" in done.stdout


def test_keywords_are_the_fields_of_a_spec() -> None:
    from simagent import SpecFields

    assert set(SpecFields.__annotations__) == set(Spec.model_fields) - {"format"}
    assert Task.__doc__
