"""Local inputs: found and packed where the task is submitted, or refused with the fix."""

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from simagent.domain.spec import Spec
from simagent.ports.store import Body
from simagent.transfer.inputs import InputChangedError, plan_inputs


def plan(
    base: Path, *inputs: str | Mapping[str, object]
) -> tuple[list[dict[str, object]], dict[int, Body]]:
    spec = Spec.model_validate({"commands": ["true"], "inputs": inputs})
    planned, bodies = plan_inputs(spec, base)
    return [item.model_dump(exclude_defaults=True) for item in planned.inputs], bodies


def contents(body: Body) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(b"".join(body()))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_folder_means_its_contents(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "x").write_text("x")
    (tmp_path / "in" / "empty").mkdir()
    (tmp_path / "in" / "l").symlink_to("sub/x")
    items, bodies = plan(tmp_path, "in", {"source": "in", "destination": "d"})
    assert items == [
        {"source": "upload://0", "unpack": True},
        {"source": "upload://1", "destination": "d", "unpack": True},
    ]
    assert contents(bodies[0]) == {"sub/x": b"x", "empty/": b"", "l": b"sub/x"}
    assert contents(bodies[0]) == contents(bodies[1]), "a body can be made anew for every try"


@pytest.mark.parametrize(
    ("destination", "folder", "name"),
    [
        (".", ".", "x.in"),
        ("d/", "d/", "x.in"),
        ("d", ".", "d"),
        ("d/y.in", "d", "y.in"),
    ],
)
def test_a_file(tmp_path: Path, destination: str, folder: str, name: str) -> None:
    (tmp_path / "x.in").write_text("run 100")
    items, bodies = plan(tmp_path, {"source": "x.in", "destination": destination})
    assert items[0].get("destination", ".") == folder
    assert contents(bodies[0]) == {name: b"run 100"}


def test_an_archive_is_taken_as_it_is(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x", "x")
    data = (tmp_path / "a.zip").read_bytes()
    items, bodies = plan(tmp_path, "a.zip", {"source": "a.zip", "unpack": False})
    assert b"".join(bodies[0]()) == data
    assert contents(bodies[1]) == {"a.zip": data}
    assert [item["unpack"] for item in items] == [True, True]


def test_urls_are_left_to_the_agent(tmp_path: Path) -> None:
    urls = ["https://example.com/a.zip", "task://T1/**", "file:///data/x"]
    (tmp_path / "x").write_text("x")
    items, bodies = plan(tmp_path, *urls, "x")
    assert [item["source"] for item in items] == [*urls, "upload://3"]
    assert list(bodies) == [3]


def test_a_link_named_by_the_user_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("real")
    (tmp_path / "link").symlink_to("real")
    assert contents(plan(tmp_path, {"source": "link", "destination": "x"})[1][0]) == {"x": b"real"}


def test_what_cannot_be_taken_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "mesh").symlink_to("/data/mesh")
    (tmp_path / "fifos").mkdir()
    os.mkfifo(tmp_path / "fifos" / "f")
    os.mkfifo(tmp_path / "fifo")
    for source, match in {
        "missing": "does not exist: correct the path",
        "bad.zip": "unpack: false",
        "links": "copy what it points at",
        "fifos": "is a fifo: remove it",
        "fifo": "no file or folder",
    }.items():
        (tmp_path / "ok").write_text("ok")
        with pytest.raises(ValueError, match=rf"inputs\[1\]\.source: .*{match}"):
            plan(tmp_path, "ok", source)


def test_a_file_that_changes_while_it_is_uploaded_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x" * 100)
    _, bodies = plan(tmp_path, "x")
    (tmp_path / "x").write_text("x" * 50)
    with pytest.raises(InputChangedError, match="submit again"):
        contents(bodies[0])
