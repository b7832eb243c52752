"""The journal: what is written down survives, what cannot be read is fatal to nobody."""

import errno
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fakes.tasks import attempt
from simagent.domain.events import Event
from simagent.domain.keys import TaskKeys
from simagent.domain.reasons import Reason
from simagent.domain.state import Holder, Status
from simagent.worker.journal import Entry, Journal, Journals


def entry(task: str = "T1", epoch: int = 1, **fields: object) -> Entry:
    who = {"project": "p", "group": "g", "agent": "a", "incarnation": "i", "boot_id": "b"}
    made = {"task": task, "epoch": epoch, "attempt": attempt(epoch).model_dump()}
    return Entry.model_validate(who | made | fields)


def reopened(state_dir: Path) -> list[Journal]:
    """Read everything as the next incarnation does."""
    return list(Journals(state_dir).all())


def entries(state_dir: Path) -> list[Entry]:
    return [journal.entry for journal in reopened(state_dir)]


def aside(state_dir: Path) -> list[str]:
    folder = state_dir / "set-aside"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_what_was_written_is_found_after_a_restart(tmp_path: Path) -> None:
    journal = Journals(tmp_path).create(entry(receipt="r"))
    assert entries(tmp_path) == [entry(receipt="r")]
    journal.write(outcome=Status.FAILED, reason=Reason.OOM, steps_started=5.0, prepared=True)
    (found,) = entries(tmp_path)
    assert found == journal.entry
    assert (found.outcome, found.reason, found.steps_started) == (Status.FAILED, Reason.OOM, 5.0)
    assert found.keys == TaskKeys("p", "T1")
    assert found.holder == Holder(agent="a", incarnation="i", epoch=1)


def test_every_attempt_has_a_journal_of_its_own(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    made = [entry("T1", 1), entry("T1", 2), entry("T2", 1)]
    for each in made:
        journals.create(each)
    assert entries(tmp_path) == made
    folders = {journal.folder.name for journal in reopened(tmp_path)}
    assert folders == {"p.T1.1", "p.T1.2", "p.T2.1"}


def test_all_of_an_attempt_lies_in_its_folder(tmp_path: Path) -> None:
    journal = Journals(tmp_path).create(entry())
    folder = tmp_path / "attempts" / "p.T1.1"
    assert journal.folder == folder
    assert journal.artifacts == folder / "work/output/artifacts"
    paths = [journal.steps, journal.logs, journal.metrics]
    assert [path.relative_to(folder).as_posix() for path in paths] == [
        "steps",
        "logs",
        "metrics.jsonl",
    ]


def test_files_that_hosts_share_go_with_the_attempt(tmp_path: Path) -> None:
    shared = tmp_path / "shared" / "c" / "p.T1.1"
    journal = Journals(tmp_path / "state").create(entry(shared=str(shared), cluster="c"))
    assert journal.artifacts == shared / "work/output/artifacts"
    assert journal.logs.is_relative_to(tmp_path / "state")
    journal.artifacts.mkdir(parents=True)
    journal.remove()
    assert not shared.exists()
    assert (tmp_path / "shared" / "c").is_dir()


def test_files_that_hosts_share_are_kept_as_long_as_what_was_set_aside(tmp_path: Path) -> None:
    shared = tmp_path / "shared" / "c" / "p.T1.1"
    journals = Journals(tmp_path / "state")
    journal = journals.create(entry(shared=str(shared), cluster="c"))
    journal.artifacts.mkdir(parents=True)
    journals.set_aside(journal.folder, "lost")
    assert journal.artifacts.is_dir()
    journals.expire(before=time.time() - 60, agent=journal.entry.agent)
    assert journal.artifacts.is_dir()
    journals.expire(before=time.time() + 60, agent=journal.entry.agent)
    assert not shared.exists()
    assert aside(tmp_path / "state") == []


def test_files_that_hosts_share_go_with_it_once_it_can_be_read_whose_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared" / "c" / "p.T1.1"
    journals = Journals(tmp_path / "state")
    journal = journals.create(entry(shared=str(shared), cluster="c"))
    journal.artifacts.mkdir(parents=True)
    journals.set_aside(journal.folder, "lost")

    def short(_path: Path) -> bytes:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", short)
        journals.expire(before=time.time() + 60, agent=journal.entry.agent)
    journals.expire(before=time.time() + 60, agent=journal.entry.agent)
    assert not shared.exists()
    assert aside(tmp_path / "state") == []


def test_files_that_hosts_share_are_not_removed_by_a_clone_of_their_head(tmp_path: Path) -> None:
    shared = tmp_path / "shared" / "c" / "p.T1.1"
    journals = Journals(tmp_path / "state")
    journal = journals.create(entry(agent="the-first", shared=str(shared), cluster="c"))
    journal.artifacts.mkdir(parents=True)
    journals.set_aside(journal.folder, "it is of another agent, the-first")
    journals.expire(before=time.time() + 60, agent="its-clone")
    assert journal.artifacts.is_dir()
    assert aside(tmp_path / "state") == []


def test_a_write_that_fails_leaves_the_entry_as_it_was(tmp_path: Path) -> None:
    journal = Journals(tmp_path).create(entry())
    (journal.folder / ".journal.json.new").mkdir()
    with pytest.raises(OSError, match="journal"):
        journal.write(prepared=True)
    assert not journal.entry.prepared
    assert entries(tmp_path) == [entry()]


def test_an_interrupted_write_leaves_the_last_one(tmp_path: Path) -> None:
    journal = Journals(tmp_path).create(entry())
    (journal.folder / ".journal.json.new").write_text('{"half": ')
    assert entries(tmp_path) == [entry()]
    journal.write(prepared=True)
    assert entries(tmp_path)[0].prepared


def test_others_cannot_read_the_journal(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        journal = Journals(tmp_path).create(entry())
    finally:
        os.umask(before)
    assert (journal.folder / "journal.json").stat().st_mode & 0o777 == 0o600


def test_fields_of_a_newer_version_survive(tmp_path: Path) -> None:
    journal = Journals(tmp_path).create(entry())
    path = journal.folder / "journal.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"future": [1]}))
    (found,) = reopened(tmp_path)
    found.write(prepared=True)
    assert json.loads(path.read_text())["future"] == [1]


@pytest.mark.parametrize("version", [0, 1, None])
def test_what_an_older_version_did_not_write_has_its_default(
    tmp_path: Path, version: int | None
) -> None:
    journal = Journals(tmp_path).create(entry())
    path = journal.folder / "journal.json"
    needed = {name for name, field in Entry.model_fields.items() if field.is_required()}
    older = {name: value for name, value in json.loads(path.read_text()).items() if name in needed}
    path.write_text(json.dumps(older if version is None else older | {"format": version}))
    (found,) = reopened(tmp_path)
    assert found.entry.with_(format=1) == entry()
    found.write(prepared=True)
    assert entries(tmp_path)[0].prepared


def test_removing_forgets_everything(tmp_path: Path) -> None:
    journal = Journals(tmp_path).create(entry())
    journal.artifacts.mkdir(parents=True)
    (journal.artifacts / "big").write_text("x")
    journal.remove()
    assert not journal.folder.exists()
    journal.remove()
    assert entries(tmp_path) == []


def test_an_intent_that_was_never_applied_makes_way(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    old = journals.create(entry(incarnation="old"))
    (old.folder / "left").touch()
    journals.create(entry(incarnation="new"))
    assert [found.incarnation for found in entries(tmp_path)] == ["new"]
    assert not (old.folder / "left").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        b'{"format": 1, "task": 5}',
        b"[" * 100_000,
    ],
    ids=range(7),
)
def test_a_corrupt_journal_is_set_aside(tmp_path: Path, data: bytes) -> None:
    journals = Journals(tmp_path)
    bad = journals.create(entry("BAD"))
    journals.create(entry("GOOD"))
    (bad.folder / "evidence").write_text("kept")
    (bad.folder / "journal.json").write_bytes(data)
    with capture_logs() as logs:
        assert [found.task for found in entries(tmp_path)] == ["GOOD"]
    assert aside(tmp_path) == ["p.BAD.1"]
    assert (tmp_path / "set-aside/p.BAD.1/evidence").read_text() == "kept"
    assert [line["event"] for line in logs] == [Event.JOURNAL_SET_ASIDE]
    assert set(Event.JOURNAL_SET_ASIDE.fields) <= set(logs[0])
    assert logs[0]["error"]


@pytest.mark.parametrize("rest", [{}, {"task": {"moved": "elsewhere"}, "attempt": None}])
def test_a_newer_journal_stays_as_it_is(tmp_path: Path, rest: dict[str, object]) -> None:
    journals = Journals(tmp_path)
    journal = journals.create(
        entry("Q1", 3, project="p.q", image="sha256:1", shared="/s/c/p.Q1.3.a")
    )
    path = journal.folder / "journal.json"
    newer = json.dumps(json.loads(path.read_text()) | {"format": 2} | rest)
    path.write_text(newer)
    ended: list[Path] = []
    assert list(journals.all(end=ended.append)) == []
    (found,) = journals.newer()
    assert (found.folder, found.task, found.epoch) == (journal.folder, TaskKeys("p.q", "Q1"), 3)
    assert (found.image, found.shared) == ("sha256:1", "/s/c/p.Q1.3.a")
    assert (found.entry is None) == bool(rest)
    assert journals.handles() == {"sha256:1"}
    assert not journals.empty
    journals.expire(before=time.time() + 60, agent="a")
    assert ended == []
    assert aside(tmp_path) == []
    assert path.read_text() == newer


def test_only_journals_of_a_newer_version_are_taken_for_such(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journals.create(entry())
    (tmp_path / "attempts" / "notes.txt").write_text("?")
    (tmp_path / "attempts" / "p.BAD.1").mkdir()
    (tmp_path / "attempts" / "p.BAD.1" / "journal.json").write_text("[2]")
    assert journals.newer() == []


def test_a_folder_without_a_journal_is_removed(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journals.create(entry())
    empty = tmp_path / "attempts" / "T9.1"
    (empty / "work").mkdir(parents=True)
    assert [found.task for found in entries(tmp_path)] == ["T1"]
    assert not empty.exists()
    assert aside(tmp_path) == []


def test_a_stray_file_among_the_attempts_is_set_aside(tmp_path: Path) -> None:
    Journals(tmp_path).create(entry())
    (tmp_path / "attempts" / "notes.txt").write_text("?")
    assert [found.task for found in entries(tmp_path)] == ["T1"]
    assert aside(tmp_path) == ["notes.txt"]


def test_what_was_set_aside_before_is_not_overwritten(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    for content in ("first", "second", "third"):
        journal = journals.create(entry())
        (journal.folder / "content").write_text(content)
        journals.set_aside(journal.folder, "why")
    assert aside(tmp_path) == ["p.T1.1", "p.T1.1.1", "p.T1.1.2"]
    assert (tmp_path / "set-aside/p.T1.1/content").read_text() == "first"
    assert entries(tmp_path) == []


def test_what_was_set_aside_expires(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    for task in ("OLD", "NEW"):
        journals.set_aside(journals.create(entry(task)).folder, "why")
    os.utime(tmp_path / "set-aside/p.OLD.1", (1000, 1000))
    journals.expire(before=2000, agent="a")
    assert aside(tmp_path) == ["p.NEW.1"]


def test_what_somebody_removes_at_the_same_time_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journals = Journals(tmp_path)
    for task in ("OLD", "OLDER"):
        journals.set_aside(journals.create(entry(task)).folder, "why")
        os.utime(tmp_path / f"set-aside/p.{task}.1", (1000, 1000))
    look = Path.lstat

    def late(path: Path) -> os.stat_result:
        if path.name == "p.OLD.1":
            shutil.rmtree(path)
        return look(path)

    monkeypatch.setattr(Path, "lstat", late)
    journals.expire(before=2000, agent="a")
    assert aside(tmp_path) == []


def test_setting_aside_starts_the_time_to_expiry(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    folder = journals.create(entry()).folder
    os.utime(folder, (1000, 1000))
    journals.set_aside(folder, "why")
    journals.expire(before=2000, agent="a")
    assert aside(tmp_path) == ["p.T1.1"]


def test_a_stray_file_expires_too(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    stray = tmp_path / "attempts" / "notes.txt"
    stray.write_text("?")
    assert entries(tmp_path) == []
    os.utime(tmp_path / "set-aside/notes.txt", (1000, 1000))
    journals.expire(before=2000, agent="a")
    assert aside(tmp_path) == []


def test_nothing_to_expire_is_no_error(tmp_path: Path) -> None:
    Journals(tmp_path).expire(before=2000, agent="a")
    assert aside(tmp_path) == []
