"""The hosts of an attempt are gathered: members answer at a real entrance, over a real relay."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fakes.disks import stalled_disk
from fakes.hosts import member
from fakes.rig import Rig
from fakes.steps import until
from fakes.tasks import attempt
from simagent.cluster import relay
from simagent.cluster import token as token_program
from simagent.cluster.calls import HostRefusedError
from simagent.cluster.duties import Hold, RefusedError
from simagent.cluster.entrance import Entrance
from simagent.cluster.messages import TOKEN, Check, Checked, Departs, Enter, Fetch, Fetched
from simagent.cluster.ssh import HeadKey
from simagent.domain import keys
from simagent.domain.cluster import Head as Record
from simagent.domain.cluster import Member
from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.domain.state import Kill, Status
from simagent.ports.clock import SystemClock, Waitable, Wake
from simagent.telemetry.timeline import Timeline
from simagent.wiring.agent import open_context
from simagent.worker import shared
from simagent.worker.context import Context
from simagent.worker.endings import Ending, StepLostError
from simagent.worker.gathering import _judge, gather, scatter
from simagent.worker.head import Head, Leadership
from simagent.worker.journal import Entry, Journal, Place
from simagent.worker.loop import Agent
from simagent.worker.orders import Orders
from simagent.worker.spanning import on_hosts
from simagent.worker.strays import Strays

DIGEST = "sha256:" + "0" * 64
IMAGE = f"docker://reg.example/i@{DIGEST}"


class Host:
    """A member's entrance, whose shared folder is ``shared``."""

    def __init__(self, folder: Path, shared: Path) -> None:
        self.socket = folder / "s"
        self.shared = shared
        self.fetched: list[str] = []
        self.refuses: RefusedError | None = None
        self.slow = False
        self.departs = Wake()
        self._stop = Wake()
        folder.mkdir()
        entrance = Entrance(self.socket, self, SystemClock(), users=[os.geteuid()])
        listener = entrance.listen()
        self._thread = threading.Thread(
            target=entrance.serve, args=(listener, self._stop), daemon=True
        )
        self._thread.start()

    def departure(self) -> Departs:
        raise AssertionError("it stays")

    def check(self, request: Check) -> Checked:
        user = (str(request.uid), str(os.getegid()))
        words = [token_program.__file__, str(self.shared), request.folder, TOKEN, *user]
        told = subprocess.run(
            [sys.executable, "-I", "-S", *words],
            input=request.token, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if told.returncode:
            raise RefusedError(Reason.MPI_HOST_LOST, told.stdout)
        return Checked(host="x", version=request.version)

    def fetch(self, request: Fetch, gone: Waitable) -> Fetched:
        slow = self.slow  # as it is while a test sees what follows
        self.fetched.append(request.image)
        assert request.digest == DIGEST
        if self.refuses is not None:
            raise self.refuses
        if slow:
            SystemClock().wait(100.0, gone, self._stop)
        return Fetched()

    def enter(self, request: Enter, gone: Waitable) -> Hold:
        raise NotImplementedError

    def end(self) -> None:
        self._stop.set()
        self._thread.join(10)


class Key(HeadKey):
    """Leads to the entrances by the relay itself, in place of ssh."""

    def __init__(self, hosts: dict[str, Host]) -> None:
        super().__init__(Path("/nowhere"))
        self._hosts = hosts

    @property
    def public(self) -> str:
        return "ssh-ed25519 AAAA"

    def command(self, member: Member) -> tuple[str, ...]:
        host = self._hosts.get(member.host)
        if host is None:
            return ("/bin/sh", "-c", "echo 'connect to host: No route to host' >&2; exit 255")
        script = (sys.executable, "-I", "-S", relay.__file__, str(host.socket))
        return (*script, "1.0", "15.0", "30.0")


class Lab:
    """A head with the members ``a`` and ``b``."""

    def __init__(self, folder: Path) -> None:
        self.shared = folder / "shared"
        self.shared.mkdir()
        rig = Rig(folder / "rig")
        rig.config().state_dir.mkdir(parents=True)
        ctx = open_context(rig.config())
        self.hosts = {name: Host(folder / name, self.shared) for name in ("a", "b")}
        self.ctx: Context = ctx
        self.begin(ctx.identity.incarnation)
        self.head.turn()
        self.show("a", "b")
        self.orders = Orders()
        self.timeline = Timeline(ctx.clock)

    def begin(self, incarnation: str) -> None:
        """Begin as the head, which has looked at nothing yet."""
        ctx = self.ctx
        own = Place(name="head", address="10.0.0.1", slots=2, agent=ctx.identity.agent)
        self.head = Head(
            Leadership(cluster="c", own=own, shared_dir=self.shared),
            ctx.ledger,
            ctx.clock,
            ctx.times,
            incarnation=incarnation,
            key=Key(self.hosts),
        )
        self.ctx = replace(ctx, head=self.head)

    def show(self, *hosts: str) -> None:
        for host in hosts:
            made = member(host)
            key = keys.cluster_member("c", made.agent)
            self.ctx.ledger.store.put(key, made.model_dump_json().encode())
        self.head.turn()

    def journal(self, epoch: int = 1) -> Journal:
        identity = self.ctx.identity
        made = attempt(epoch).with_(image_digest=DIGEST)
        entry = Entry(
            project="p", task="T", group="g", epoch=epoch, agent=identity.agent,
            incarnation=identity.incarnation, boot_id="b", attempt=made, runtime="docker",
            user=(os.geteuid(), 0),
        )  # fmt: skip
        return self.ctx.journals.create(on_hosts(entry, self.head.places(), self.head))

    def gather(self, journal: Journal) -> Ending | None:
        spec = Spec.model_validate({"commands": ["true"], "image": "reg.example/i:1"})
        return gather(self.ctx, spec, journal, self.orders, timeline=self.timeline)

    def named(self) -> list[str]:
        record = self.ctx.ledger.document(keys.cluster_head("c"), Record())
        return [f"{it.task}.{it.epoch}" for it in record.attempts]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    for host in made.hosts.values():
        host.end()


def test_hosts_are_named_tried_and_given_the_image(lab: Lab) -> None:
    journal = lab.journal()
    with capture_logs() as logs:
        assert lab.gather(journal) is None
    assert lab.named() == ["T.1"]
    assert [host.fetched for host in lab.hosts.values()] == [[IMAGE], [IMAGE]]
    (told,) = [line for line in logs if line["event"] == "hosts_gathered"]
    assert told["hosts"] == ["head", "a", "b"]
    assert set(lab.timeline.as_dict()) == {"gather", "gather_pull"}
    assert journal.base.is_relative_to(lab.shared / "c")
    scatter(lab.ctx, journal.entry)
    lab.head.turn()
    assert lab.named() == []
    journal.remove()
    assert list((lab.shared / "c").iterdir()) == []


def test_a_folder_that_is_not_the_same_one_is_found_before_anything_starts(
    lab: Lab, tmp_path: Path
) -> None:
    lab.hosts["b"].shared = tmp_path / "other"
    (tmp_path / "other").mkdir()
    with pytest.raises(StepLostError, match=r"host b: .*is not the folder it shares") as error:
        lab.gather(lab.journal())
    assert error.value.reason is Reason.MPI_HOST_LOST
    assert [place.name for place in lab.head.places()] == ["head", "a"], "b is left alone now"
    assert lab.hosts["a"].fetched == []


def test_a_shared_folder_that_is_not_mounted_is_said(lab: Lab) -> None:
    lab.shared.rmdir()
    with pytest.raises(StepLostError, match=r"there is no folder .*: is it mounted") as error:
        lab.gather(lab.journal())
    assert error.value.reason is Reason.MPI_HOST_LOST
    lab.shared.write_text("")
    with pytest.raises(StepLostError, match="cannot be used: Not a directory"):
        lab.gather(lab.journal(2))


def test_a_host_that_cannot_be_entered_is_named(lab: Lab) -> None:
    lab.hosts.pop("b").end()
    with pytest.raises(StepLostError, match=r"host b: .*No route to host") as error:
        lab.gather(lab.journal())
    assert error.value.reason is Reason.MPI_HOST_LOST


def test_a_host_that_lacks_the_image_is_named_with_the_reason(lab: Lab) -> None:
    lab.hosts["a"].refuses = RefusedError(Reason.IMAGE_NOT_FOUND, "there is no reg.example/i")
    ending = lab.gather(lab.journal())
    assert ending == Ending(
        Status.FAILED, Reason.IMAGE_NOT_FOUND, "host a: there is no reg.example/i"
    )
    lab.hosts["a"].refuses = RefusedError(Reason.IMAGE_PULL, "the registry is away")
    with pytest.raises(StepLostError, match="host a: the registry is away") as error:
        lab.gather(lab.journal(2))
    assert error.value.reason is Reason.IMAGE_PULL


def test_a_reason_of_a_newer_member_is_that_of_a_host(lab: Lab) -> None:
    place = lab.journal().entry.hosts[1]
    answers: dict[str, object] = {place.name: HostRefusedError("no_moon", "the moon is not up")}
    with pytest.raises(StepLostError, match=f"host {place.name}: the moon is not up") as error:
        _judge(lab.head, [place], answers)
    assert error.value.reason is Reason.AGENT_ERROR


def test_a_kill_does_not_wait_for_images(lab: Lab) -> None:
    lab.hosts["a"].slow = True
    done = threading.Event()

    def run() -> None:
        assert lab.gather(lab.journal()) is None
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: lab.hosts["a"].fetched)
    lab.orders.ask_kill(Kill(by="me", at=0.0))
    thread.join(60)
    assert done.is_set()


def test_what_is_of_no_concern_asks_again(lab: Lab) -> None:
    lab.hosts["a"].slow = True
    thread = threading.Thread(target=lambda: lab.gather(lab.journal()))
    thread.start()
    until(lambda: lab.hosts["a"].fetched)
    lab.hosts["a"].slow = False
    lab.orders.wake.set()
    thread.join(60)
    assert not thread.is_alive()
    assert lab.hosts["a"].fetched == [IMAGE, IMAGE]


def test_a_head_that_has_just_been_started_again_finds_the_hosts_of_its_attempt(lab: Lab) -> None:
    journal = lab.journal()
    lab.begin("2")
    lab.head.adopt([journal.entry])
    assert lab.gather(journal) is None
    assert lab.hosts["a"].fetched == [IMAGE]


def test_what_was_prepared_is_not_gathered_again(lab: Lab) -> None:
    journal = lab.journal()
    journal.write(prepared=True)
    assert lab.gather(journal) is None
    assert lab.hosts["a"].fetched == []


def test_an_agent_that_leads_no_longer_gives_the_task_back(lab: Lab) -> None:
    journal = lab.journal()
    with pytest.raises(StepLostError, match="does not lead cluster c any more"):
        gather(
            replace(lab.ctx, head=None), Spec.model_validate({"commands": ["true"]}), journal,
            lab.orders, timeline=lab.timeline,
        )  # fmt: skip


def test_a_link_in_the_place_of_the_clusters_folder_is_not_followed(lab: Lab) -> None:
    elsewhere = lab.shared.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (lab.shared / "c").symlink_to(elsewhere)
    with pytest.raises(StepLostError, match=r"mpi\.shared_dir: .*cannot be used"):
        lab.gather(lab.journal())
    assert elsewhere.stat().st_mode & 0o777 == 0o700
    assert list(elsewhere.iterdir()) == []


def test_folders_that_no_journal_knows_are_removed_but_those_of_others_are_not(lab: Lab) -> None:
    kept = lab.journal()
    aside = lab.journal(2)
    assert lab.gather(kept) is None
    aside.base.mkdir()
    lab.ctx.journals.set_aside(aside.folder, "lost")
    agent, folder = lab.ctx.identity.agent, lab.shared / "c"
    others = {"p.T.1.other-agent", f"p.T.1.other.{agent}"}
    for name in (f"p.OLD.1.{agent}", *others):
        (folder / name / "work").mkdir(parents=True)
    Strays(lab.ctx).remove()
    names = {path.name for path in folder.iterdir()}
    assert names == {kept.base.name, aside.base.name, *others}


def test_a_cluster_folder_of_another_user_is_not_used(lab: Lab) -> None:
    if os.geteuid() != 0:
        pytest.skip("machine: only root can give files to another user")
    (lab.shared / "c").mkdir()
    os.chown(lab.shared / "c", 12345, -1)
    with pytest.raises(StepLostError, match=r"c belongs to another user.*: remove it") as error:
        lab.gather(lab.journal())
    assert error.value.reason is Reason.MPI_HOST_LOST


# --- A file server that does not answer ---------------------------------------------------------


@pytest.fixture
def stalled(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A shared folder that nothing can be done with any more."""
    monkeypatch.setattr(shared, "WITHIN", 0.5)
    monkeypatch.setattr(shared, "REMOVED_WITHIN", 0.5)
    with stalled_disk(lab.shared) as made:
        yield made


@pytest.mark.usefixtures("stalled")
def test_an_attempt_ends_where_the_file_server_does_not_answer(lab: Lab) -> None:
    with pytest.raises(StepLostError, match=r"shared does not answer within 0.5 s: look after its"):
        lab.gather(lab.journal())


@pytest.mark.usefixtures("stalled")
def test_strays_are_left_where_the_file_server_does_not_answer(lab: Lab) -> None:
    with capture_logs() as logs:
        Strays(lab.ctx).remove()
    (told,) = (line for line in logs if line["event"] == "shared folder not looked through")
    assert "does not answer" in told["error"]


@pytest.mark.usefixtures("stalled")
def test_a_journal_is_forgotten_where_the_file_server_does_not_answer(lab: Lab) -> None:
    journal = lab.journal()
    journal.remove()
    assert not journal.folder.exists()


@pytest.mark.usefixtures("stalled")
def test_an_agent_starts_and_stops_where_the_file_server_does_not_answer(lab: Lab) -> None:
    agent = Agent(lab.ctx, until_empty=True)
    thread = threading.Thread(target=agent.run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
