"""What a task spec may say, and what is said to those who got it wrong."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from simagent.domain.quantities import Bytes, Seconds
from simagent.domain.spec import MAX_RANKS, Command, Input, Spec, check_relative
from simagent.domain.support import unsupported

ID = "01HZZZZZZZZZZZZZZZZZZZZZZZ"
FULL: dict[str, Any] = {
    "name": "melt",
    "image": "docker://x/y:1",
    "runtime": "docker",
    "commands": [
        "lmp -in in.melt",
        ["echo", "a b"],
        {
            "run": "gmx pdb2gmx",
            "stdin": ["1", "2"],
            "env": {"OMP_NUM_THREADS": 2},
            "workdir": "sub",
            "mpi": {"np": 4, "hosts": 2, "ranks_per_host": 2, "bind": "core", "args": ["-v"]},
        },
        {"run": "a | b", "shell": True},
    ],
    "inputs": ["in", {"source": "https://h/x.zip", "destination": "mesh", "unpack": False}],
    "outputs": {"include": ["*.log"], "exclude": ["tmp/**"], "unchanged_inputs": True},
    "resources": {"cpus": 2.5, "memory": "4GiB", "gpus": 1, "disk": "1 TB", "shm": 64},
    "network": "host",
    "env": {"A": "b"},
    "time_limit": "2h",
    "grace": "1 min",
    "max_attempts": 5,
    "max_preemptions": 0,
    "on_preempt": "fail",
    "on_partition": "stop",
    "checkpoint": {"paths": ["*.rst"], "every": "15 min", "signal": "SIGUSR1"},
    "watches": [{"name": "converged", "regex": "done", "within": "log"}],
    "progress": "step ([0-9]+)",
    "require": ["gpu"],
    "group": "big",
    "project": "p1",
    "tags": {"run": 7},
    "priority": -3,
    "array": {"size": 10},
    "depends_on": [ID],
    "expires_at": 2e9,
    "retention": "30d",
    "idempotency_key": "k",
}


def spec(**fields: object) -> Spec:
    return Spec.model_validate({"commands": ["true"]} | fields)


def complaint(**fields: object) -> tuple[str, str]:
    """Give the field and the message of the first error; others may only follow from it."""
    with pytest.raises(ValidationError) as caught:
        spec(**fields)
    error = caught.value.errors()[0]
    return ".".join(str(part) for part in error["loc"]), error["msg"]


# --- Commands -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ("lmp -in in.melt", ("lmp", "-in", "in.melt")),
        ("echo 'a b' \"c d\" e\\ f", ("echo", "a b", "c d", "e f")),
        ("echo $HOME *.txt | cat; rm x", ("echo", "$HOME", "*.txt", "|", "cat;", "rm", "x")),
        (["echo", "a b", ""], ("echo", "a b", "")),
        ({"run": ["x"]}, ("x",)),
        ({"run": "x -y"}, ("x", "-y")),
        ({"run": "a | b", "shell": True}, ("/bin/sh", "-c", "a | b")),
    ],
)
def test_the_forms_of_a_command(command: object, argv: tuple[str, ...]) -> None:
    assert Command.model_validate(command).argv() == argv


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("", "name a program"),
        ("   ", "name a program"),
        ([], "name a program"),
        (["", "x"], "name a program"),
        ("''", "name a program"),
        ({"run": " ", "shell": True}, "name a program"),
        ("echo 'a", "close the quote"),
        ({"run": ["a"], "shell": True}, "must be one string"),
        ({"run": "a", "shell": True, "mpi": {"np": 2}}, "remove shell"),
        ("a\0b", "NUL"),
        (["a", "b\0"], "NUL"),
    ],
)
def test_commands_that_cannot_run(command: object, said: str) -> None:
    field, message = complaint(commands=["true", command])
    assert field.startswith("commands.1")
    assert said in message


@pytest.mark.parametrize(
    ("stdin", "read"),
    [
        (None, None),
        ("1\n2", b"1\n2"),
        (["1", "y"], b"1\ny\n"),
        ("", b""),
        ([], b""),
        ("ü", b"\xc3\xbc"),
    ],
)
def test_what_a_command_reads(stdin: object, read: bytes | None) -> None:
    assert Command.model_validate({"run": "x", "stdin": stdin}).stdin_bytes() == read


@pytest.mark.parametrize("np", [1, MAX_RANKS, "max"])
def test_numbers_of_ranks(np: object) -> None:
    command = Command.model_validate({"run": "x", "mpi": {"np": np}})
    assert command.mpi is not None
    assert command.mpi.np == np


@pytest.mark.parametrize("np", [0, -1, MAX_RANKS + 1, "many", 1.5, None])
def test_numbers_of_ranks_that_make_no_sense(np: object) -> None:
    with pytest.raises(ValidationError, match="np"):
        Command.model_validate({"run": "x", "mpi": {"np": np}})


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"A B": "x"}, "no name of a variable"),
        ({"": "x"}, "no name of a variable"),
        ({"1A": "x"}, "no name of a variable"),
        ({"A=B": "x"}, "no name of a variable"),
        ({"A\n": "x"}, "no name of a variable"),
        ({"SIMAGENT_EPOCH": "9"}, "agent's own"),
        ({"A": "x\0"}, "NUL"),
    ],
)
def test_variables_that_are_refused(env: dict[str, str], said: str) -> None:
    assert said in complaint(env=env)[1]
    assert said in complaint(commands=[{"run": "x", "env": env}])[1]


def test_numbers_become_the_text_of_variables_and_tags() -> None:
    made = spec(env={"N": 4, "X": 0.5}, tags={"n": 4})
    assert (made.env, made.tags) == ({"N": "4", "X": "0.5"}, {"n": "4"})


@pytest.mark.parametrize("value", [True, None, ["x"], {"y": 1}])
def test_other_values_do_not(value: object) -> None:
    # What would "True" be: `yes`, `true` or `1`? YAML's guess is not the program's.
    assert complaint(env={"A": value})[0] == "env.A"


# --- Paths and names ----------------------------------------------------------------------------

OUTWARD = ["/etc", "..", "a/../../b", "a/..", "//x", "a\0b"]


@pytest.mark.parametrize("path", OUTWARD)
def test_paths_stay_in_the_tasks_folder(path: str) -> None:
    assert complaint(inputs=[{"source": "x", "destination": path}])[0] == "inputs.0.destination"
    assert complaint(commands=[{"run": "x", "workdir": path}])[0] == "commands.0.workdir"
    assert complaint(outputs={"include": [path]})[0] == "outputs.include.0"
    assert complaint(outputs={"exclude": [path]})[0] == "outputs.exclude.0"
    assert complaint(checkpoint={"paths": [path]})[0] == "checkpoint.paths.0"


@pytest.mark.parametrize("path", [".", "a", "a/b", "./a", "..a", "a..b/c", "a//b", "**/*.log"])
def test_paths_beneath_are_kept_as_written(path: str) -> None:
    assert check_relative(path) == path


@pytest.mark.parametrize(
    ("source", "scheme"),
    [
        ("case", ""),
        ("./case.zip", ""),
        ("file:///data", "file"),
        ("https://h/x.zip", "https"),
        (f"task://{ID}/*.log", "task"),
    ],
)
def test_the_short_form_of_an_input(source: str, scheme: str) -> None:
    made = spec(inputs=[source]).inputs[0]
    assert made == Input(source=source)
    assert (made.scheme, made.destination, made.unpack) == (scheme, ".", None)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "-a", "a b", "a\n", "x" * 65, "ä"])
def test_names_that_cannot_stand_in_a_key(name: str) -> None:
    assert complaint(group=name)[0] == "group"
    assert complaint(project=name)[0] == "project"


@pytest.mark.parametrize("id_", ["", "a/b", "a.b", "..", "x" * 65])
def test_ids_that_cannot_stand_in_a_key(id_: str) -> None:
    assert complaint(depends_on=[id_])[0] == "depends_on.0"


# --- Fields -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"commads": []}, "commads"),
        ({"outputs": {"includes": []}}, "outputs.includes"),
        ({"resources": {"cores": 1}}, "resources.cores"),
        ({"commands": [{"run": "x", "cwd": "y"}]}, "commands.0.cwd"),
        ({"commands": [{"run": "x", "mpi": {"np": 1, "n": 1}}]}, "commands.0.mpi.n"),
        ({"inputs": [{"source": "x", "path": "y"}]}, "inputs.0.path"),
        ({"commands": []}, "commands"),
        ({"commands": "true"}, "commands"),
        ({"inputs": [""]}, "inputs.0.source"),
        ({"runtime": "podman"}, "runtime"),
        ({"network": "bridge"}, "network"),
        ({"time_limit": 0}, "time_limit"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_preemptions": -1}, "max_preemptions"),
        ({"priority": 101}, "priority"),
        ({"array": {"size": 0}}, "array.size"),
        ({"resources": {"cpus": 0}}, "resources.cpus"),
        ({"resources": {"gpus": -1}}, "resources.gpus"),
        ({"checkpoint": {"paths": []}}, "checkpoint.paths"),
        ({"checkpoint": {"paths": ["a"], "every": 0}}, "checkpoint.every"),
        ({"tags": {"a/b": "x"}}, "tags"),
        ({"format": 0}, "format"),
    ],
)
def test_an_error_names_its_field(fields: dict[str, object], field: str) -> None:
    assert complaint(**fields)[0] == field


def test_commands_have_to_be_there() -> None:
    with pytest.raises(ValidationError, match=r"commands\n +Field required"):
        Spec.model_validate({})


def test_the_schema_asks_for_a_command() -> None:
    schema = Spec.model_json_schema()
    assert schema["properties"]["commands"]["minItems"] == 1
    assert "commands" in schema["required"]


def test_a_spec_survives_json() -> None:
    made = Spec.model_validate(FULL)
    assert Spec.model_validate_json(made.model_dump_json()) == made
    assert Spec.model_validate(json.loads(json.dumps(made.model_dump(mode="json")))) == made
    short = made.model_dump(mode="json", exclude_defaults=True)
    assert Spec.model_validate(short) == made


def test_a_full_spec_means_what_it_says() -> None:
    made = Spec.model_validate(FULL)
    assert (made.time_limit, made.grace, made.retention) == (7200.0, 60.0, 2_592_000.0)
    assert (made.resources.memory, made.resources.disk) == (4 * 2**30, 10**12)
    assert [c.argv()[0] for c in made.commands] == ["lmp", "echo", "gmx", "/bin/sh"]
    assert set(FULL) | {"format"} == set(Spec.model_fields)


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        spec().name = "other"  # type: ignore[misc]


# --- Quantities ---------------------------------------------------------------------------------


class Quantities(BaseModel):
    seconds: Seconds = 0.0
    size: Bytes = 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (90, 90.0),
        ("90", 90.0),
        ("0.5", 0.5),
        ("250ms", 0.25),
        ("15 min", 900.0),
        (" 2H ", 7200.0),
        ("1.5h", 5400.0),
        ("10m", 600.0),
        ("3d", 259_200.0),
        ("7 sec", 7.0),
        ("8s", 8.0),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert Quantities.model_validate({"seconds": text}).seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (512, 512),
        ("512", 512),
        ("1 b", 1),
        ("4GiB", 4 * 2**30),
        ("500MB", 500_000_000),
        ("1.5 kib", 1536),
        ("2tb", 2 * 10**12),
        ("1KB", 1000),
        ("3 MiB", 3 * 2**20),
        ("1TiB", 2**40),
        ("1gb", 10**9),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert Quantities.model_validate({"size": text}).size == size


@pytest.mark.parametrize(
    "text", ["", "h", "1 year", "1h30m", "-5", "1e3", "0x10", "1,5h", "inf", "nan", "1 h m", "5MB"]
)
def test_durations_nobody_can_read(text: str) -> None:
    with pytest.raises(ValidationError, match="15 min"):
        Quantities.model_validate({"seconds": text})


@pytest.mark.parametrize("text", ["", "GiB", "4 Gi", "4XB", "-1MB", "1e9", "inf", "1 GB free"])
def test_sizes_nobody_can_read(text: str) -> None:
    with pytest.raises(ValidationError, match="4GiB"):
        Quantities.model_validate({"size": text})


@pytest.mark.parametrize("number", [-1, -0.5, float("inf"), float("nan"), [1], None])
def test_numbers_that_are_no_duration(number: object) -> None:
    with pytest.raises(ValidationError, match="seconds"):
        Quantities.model_validate({"seconds": number})


@pytest.mark.parametrize("number", [-1, 0.5, float("inf"), float("nan"), [1], None])
def test_numbers_that_are_no_size(number: object) -> None:
    with pytest.raises(ValidationError, match="size"):
        Quantities.model_validate({"size": number})


@pytest.mark.parametrize("field", ["seconds", "size"])
def test_numbers_beyond_all_measure(field: str) -> None:
    with pytest.raises(ValidationError, match="too large"):
        Quantities.model_validate({field: "9" * 400 + " d" if field == "seconds" else "9" * 400})


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        made = Quantities.model_validate({"seconds": text, "size": text})
    except ValidationError:
        return
    assert 0 <= made.size == int(made.seconds)


# --- What is not honoured yet -------------------------------------------------------------------


def test_what_everybody_uses_is_honoured() -> None:
    used = spec(
        runtime="process",
        network="host",
        inputs=["in"],
        env={"A": "b"},
        commands=["a", {"run": "b", "mpi": {"np": 2, "bind": "core", "args": ["-v"]}}],
        time_limit="1h",
        on_partition="stop",
        on_preempt="fail",
        checkpoint={"paths": ["x"], "every": 10},
        tags={"a": "b"},
    )
    assert list(unsupported(used)) == []


PLANNED: list[tuple[str, object]] = [
    ("watches", [{"name": "w"}]),
    ("progress", "x"),
    ("priority", 1),
    ("depends_on", [ID]),
    ("expires_at", 1.0),
    ("retention", 1.0),
    ("idempotency_key", "k"),
    ("runtime", "docker"),
    ("runtime", "apptainer"),
    ("network", "none"),
]


@pytest.mark.parametrize(("field", "value"), PLANNED)
def test_what_is_not_honoured_is_refused_by_name(field: str, value: object) -> None:
    (line,) = unsupported(spec(**{field: value}))
    assert line.startswith(f"{field}: ")


def test_what_is_not_honoured_within_a_part_is_refused_by_name() -> None:
    for name in ("gpus", "shm"):
        (line,) = unsupported(spec(resources={"cpus": 1, "memory": 1, "disk": 1, name: 1}))
        assert line.startswith(f"resources.{name}: ")


def test_ranks_on_several_hosts_need_the_network() -> None:
    ranks = {"image": "docker://i@sha256:" + "0" * 64, "network": "none"}
    over = [{"run": "b", "mpi": {"np": 2, "hosts": 2}}]
    (line,) = unsupported(spec(commands=["a", *over], **ranks))
    assert line.startswith("network: commands[1].mpi.hosts asks for several hosts")
    assert not list(unsupported(spec(commands=over, **(ranks | {"network": "host"}))))
    assert not list(
        unsupported(spec(commands=[{"run": "b", "mpi": {"np": 2, "hosts": 1}}], **ranks))
    )


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"runtime": "process"}, "runtime: process runs no images: remove it, or the image"),
        (
            {"runtime": "docker", "image": "file:///x.sif"},
            "runtime: docker cannot run file:///x.sif: use apptainer",
        ),
    ],
)
def test_what_cannot_be_done_in_a_container_is_refused(fields: Any, line: str) -> None:
    assert list(unsupported(spec(**{"image": "debian"} | fields))) == [line]


@pytest.mark.parametrize(
    "fields",
    [
        {"runtime": "docker"},
        {"commands": [{"run": "a", "mpi": {"np": 2}}]},
        {"runtime": "apptainer", "image": "store://images/x.sif"},
        {"network": "none"},
        {"network": "host", "resources": {"gpus": 1, "shm": "1GiB"}},
    ],
)
def test_what_can_be_done_in_a_container_is_not(fields: Any) -> None:
    assert list(unsupported(spec(**{"image": "debian"} | fields))) == []


def test_an_image_that_looks_like_an_option_is_no_image() -> None:
    with pytest.raises(ValidationError, match="no image reference"):
        spec(image="--privileged -v /:/host x")


def test_every_field_is_either_honoured_or_refused() -> None:
    """A field added to the spec has to be put on one of the two sides."""
    refused = {line.split(":")[0].split("[")[0].split(".")[0] for line in unsupported(full())}
    honoured = {
        "array",
        "format",
        "name",
        "image",
        "runtime",
        "resources",
        "inputs",
        "env",
        "time_limit",
        "grace",
        "max_attempts",
    }
    honoured |= {
        "require",
        "max_preemptions",
        "on_preempt",
        "on_partition",
        "group",
        "project",
        "tags",
    }
    partly = {"commands", "outputs", "network", "checkpoint"}
    assert refused - partly == set(Spec.model_fields) - honoured - partly


def full() -> Spec:
    return Spec.model_validate(FULL | {"network": "none"})


@pytest.mark.parametrize(
    "fields",
    [
        {"time_limit": True},
        {"resources": {"memory": True}},
        {"commands": [{"run": "x", "mpi": {"np": True}}]},
    ],
)
def test_true_is_no_number(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Spec.model_validate({"commands": ["true"], **fields})
