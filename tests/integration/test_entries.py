"""The runs of a member, with real steps on a clock that the test moves on."""

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.clock import FakeClock, FastClock
from fakes.containers import DIGEST, FakeContainers, FakeImages
from fakes.steps import alive, until
from fakes.store import MemoryStore
from simagent.cluster.conversation import Conversation
from simagent.cluster.duties import RefusedError
from simagent.cluster.messages import Enter, Fetch
from simagent.domain.cluster import Head, Spanning
from simagent.domain.images import ImageRef
from simagent.domain.reasons import Reason
from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.ports.clock import Waitable, Wake
from simagent.ports.images import Image, ImageError, Progress
from simagent.ports.runtime import RuntimeFailedError, StepPlan
from simagent.runtimes.process import ProcessRuntime, ProcessStep
from simagent.worker.containers import WORKDIR
from simagent.worker.context import Identity, Settings
from simagent.worker.entries import FRESH, KEPT, UNASKED, Entries
from simagent.worker.entry import EntryHold
from simagent.worker.entry_plans import check_gpus, check_request, plan_entry
from simagent.worker.member import MemberDuties
from simagent.worker.membership import Membership
from simagent.worker.users import TaskUsers

ATTEMPT = Spanning(project="default", task="melt", epoch=1)
ME = (os.geteuid(), os.getegid())
NOBODY_GONE = Wake()


class AwayRuntime(ProcessRuntime):
    """An engine that can go away: then nobody knows what it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.on_look: Callable[[], None] = lambda: None

    def start(self, plan: StepPlan) -> ProcessStep:
        self._look()
        return super().start(plan)

    def attach(self, plan: StepPlan) -> ProcessStep | None:
        self._look()
        return super().attach(plan)

    def _look(self) -> None:
        self.on_look()
        if self.away:
            raise RuntimeFailedError(Reason.RUNTIME_FAILED, "the engine does not answer")


class BlockedImages(FakeImages):
    """Fails for the first who asks, once it is let."""

    def __init__(self, began: threading.Event, let: threading.Event) -> None:
        super().__init__()
        self._began = began
        self._let = let

    def ensure(
        self, ref: ImageRef, *wakes: Waitable, progress: Progress | None = None, pin: bool = False
    ) -> Image:
        if not self._began.is_set():
            self._began.set()
            assert self._let.wait(30.0)
            raise ImageError(Reason.IMAGE_PULL, "not just now")
        return super().ensure(ref, *wakes, progress=progress, pin=pin)

    def expect_refusal(self, entries: Entries, asked: Enter) -> None:
        with pytest.raises(RefusedError, match="not just now"):
            entries.enter(asked, NOBODY_GONE)


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Membership]:
    shared = tmp_path / "shared"
    (shared / "work").mkdir(parents=True)
    yield Membership(
        cluster="grid",
        ledger=Ledger(MemoryStore()),
        clock=FakeClock(),
        times=Times(),
        identity=Identity(
            agent="vm2", incarnation="1", boot_id="b", version="1", machine={"hostname": "vm2"}
        ),
        folder=tmp_path / "state" / "member",
        runtimes={"process": AwayRuntime()},
        settings=Settings(users=TaskUsers(common=ME)),
        shared_dir=shared,
    )
    for path in (shared / "work").glob("pid*"):
        pid = int(path.read_text() or 0)
        if pid and alive(pid):
            os.kill(pid, signal.SIGKILL)
            pytest.fail(f"{path.name} was left behind")


def runtime(member: Membership) -> AwayRuntime:
    found = member.runtimes["process"]
    assert isinstance(found, AwayRuntime)
    return found


def request(name: str = "run", command: str = "", **changes: object) -> Enter:
    fields = {
        "entry": name,
        "attempt": ATTEMPT,
        "agent": "vm1",
        "step": 0,
        "runtime": "process",
        "image": None,
        "folder": "work",
        "uid": ME[0],
        "gid": ME[1],
        "env": {},
        "command": command or f"echo $$ >pid-{name}; exec sleep 600",
        "grace": 2.0,
    }
    return Enter.model_validate(fields | changes)


def contained(member: Membership, images: FakeImages, runtime: str = "docker") -> Membership:
    """Give a member that has containers, too."""
    settings = replace(member.settings, containers=(runtime,))
    runtimes = {**member.runtimes, runtime: FakeContainers(runtime)}
    return replace(member, runtimes=runtimes, images={runtime: images}, settings=settings)


def clock(member: Membership) -> FakeClock:
    assert isinstance(member.clock, FakeClock)
    return member.clock


def pid(member: Membership, name: str = "run") -> int:
    assert member.shared_dir is not None
    path = member.shared_dir / "work" / f"pid-{name}"
    until(lambda: path.exists() and path.read_text())
    return int(path.read_text())


def tended(member: Membership, entries: Entries) -> bool:
    entries.tend()
    return entries.count == 0


def test_what_a_restarted_agent_finds_is_ended_when_nobody_asks_for_it(
    member: Membership,
) -> None:
    Entries(member).enter(request(), NOBODY_GONE)
    running = pid(member)
    entries = Entries(member)  # of the next incarnation
    entries.tend()
    assert entries.running() == (ATTEMPT,)
    clock(member).advance(UNASKED - 1)
    entries.tend()
    assert alive(running)
    clock(member).advance(2)
    until(lambda: tended(member, entries))
    assert not alive(running)
    exited = entries.enter(request(), NOBODY_GONE).wait(0.0)
    assert exited is not None
    assert exited.message == "nobody asked for it within 60 s"


def test_what_is_asked_for_again_goes_on(member: Membership) -> None:
    Entries(member).enter(request(), NOBODY_GONE)
    running = pid(member)
    entries = Entries(member)
    entries.tend()
    hold = entries.enter(request(), NOBODY_GONE)
    clock(member).advance(10 * UNASKED)
    entries.tend()
    assert alive(running)
    hold.release()
    clock(member).advance(UNASKED - 1)
    entries.tend()
    assert alive(running)
    clock(member).advance(2)
    until(lambda: tended(member, entries))


def test_another_connection_takes_a_run_over(member: Membership) -> None:
    entries = Entries(member)
    first = entries.enter(request(), NOBODY_GONE)
    assert not clock(member).wait(0, first.taken)
    second = entries.enter(request(), NOBODY_GONE)
    assert clock(member).wait(0, first.taken)
    first.release()  # of what it has no more
    clock(member).advance(2 * UNASKED)
    entries.tend()
    assert alive(pid(member))
    second.leave(0.5, "it is over")
    ended = second.wait(30.0)
    assert ended is not None
    assert ended.message == "it is over"


def test_only_what_the_head_should_name_by_now_is_ended(member: Membership) -> None:
    entries = Entries(member)
    entries.enter(request(), NOBODY_GONE)
    running = pid(member)
    named, none = Head(attempts=(ATTEMPT,)), Head()
    entries.judge(none, clock(member).now())
    clock(member).advance(FRESH - 1)
    entries.judge(none, clock(member).now())
    read_early = clock(member).now()
    clock(member).advance(FRESH)
    entries.judge(none, read_early)  # a read that took long
    entries.judge(named, clock(member).now())
    entries.judge(Head(attempts=(ATTEMPT.with_(epoch=2), ATTEMPT)), clock(member).now())
    entries.tend()
    assert alive(running)
    hold = entries.enter(request(), NOBODY_GONE)
    entries.judge(Head(attempts=(ATTEMPT.with_(epoch=2),)), clock(member).now())
    ended = hold.wait(30.0)
    assert ended is not None
    assert ended.message == "the head does not have its attempt any more"


def test_a_runs_end_is_forgotten_after_a_while(member: Membership) -> None:
    entries = Entries(member)
    ended = entries.enter(request(command="exit 3"), NOBODY_GONE).wait(30.0)
    assert ended is not None
    (folder,) = member.entries.iterdir()
    assert [path.name for path in folder.iterdir()] == ["ended.json"]
    entries = Entries(member)
    assert entries.enter(request(command="exit 3"), NOBODY_GONE).wait(0.0) == ended
    clock(member).advance(KEPT + 1)
    entries.tend()
    assert list(member.entries.iterdir()) == []


def test_a_run_that_was_written_down_but_never_began_is_forgotten(member: Membership) -> None:
    entries = Entries(member)
    runtime(member).away = True
    with pytest.raises(RefusedError, match="the engine does not answer"):
        entries.enter(request(), NOBODY_GONE)
    assert entries.running() == (ATTEMPT,), "nobody knows whether it runs"
    runtime(member).away = False
    entries.tend()
    assert entries.count == 0
    assert list(member.entries.iterdir()) == []


def test_an_engine_that_is_away_is_waited_for(member: Membership) -> None:
    Entries(member).enter(request(), NOBODY_GONE)
    running = pid(member)
    entries = Entries(member)
    runtime(member).away = True
    entries.tend()
    clock(member).after(20.0, lambda: setattr(runtime(member), "away", False))
    hold = entries.enter(request(), NOBODY_GONE)
    assert alive(running)
    hold.leave(1.0, "it is over")
    assert hold.wait(30.0) is not None


def test_a_refusal_to_one_connection_leaves_nothing_to_another(member: Membership) -> None:
    began, refused = threading.Event(), threading.Event()
    images = BlockedImages(began, refused)
    entries = Entries(contained(member, images))
    asked = request(command="echo $$ >pid-run; exec sleep 600", runtime="docker", image=IMAGE)
    first = threading.Thread(target=lambda: images.expect_refusal(entries, asked))
    first.start()
    assert began.wait(30.0)
    holds: list[EntryHold] = []
    second = threading.Thread(target=lambda: holds.append(entries.enter(asked, NOBODY_GONE)))
    second.start()
    refused.set()
    for thread in (first, second):
        thread.join(30.0)
    assert entries.count == 1, "it is looked after"
    holds[0].leave(1.0, "it is over")
    assert holds[0].wait(30.0) is not None


def test_a_run_that_is_to_end_while_it_is_started_ends(member: Membership) -> None:
    entries = Entries(member)
    runtime(member).on_look = lambda: entries.end_all("the machine goes away", 1.0)
    hold = entries.enter(request(), NOBODY_GONE)
    ended = hold.wait(30.0)
    assert ended is not None
    assert ended.message == "the machine goes away"


def test_a_run_that_a_newer_version_began_is_left_alone(member: Membership) -> None:
    Entries(member).enter(request(), NOBODY_GONE)
    running = pid(member)
    path = member.entries / "run" / "entry.json"
    before = path.read_text()
    newer = json.dumps(json.loads(before) | {"format": 2, "request": {"moved": "elsewhere"}})
    path.write_text(newer)
    entries = Entries(member)
    clock(member).advance(10 * UNASKED)
    entries.tend()
    with pytest.raises(RefusedError, match="a newer version of the agent has begun it here"):
        entries.enter(request(), NOBODY_GONE)
    assert entries.holds(path.parent / "steps")
    assert alive(running)
    assert path.read_text() == newer
    path.write_text(before)
    entries = Entries(member)  # of that version, which is here again
    entries.tend()
    assert entries.running() == (ATTEMPT,)
    clock(member).advance(2 * UNASKED)
    until(lambda: tended(member, entries))


def test_a_damaged_record_is_no_obstacle(member: Membership) -> None:
    folder = member.entries / "x"
    folder.mkdir(parents=True)
    (folder / "entry.json").write_text("{")
    (member.entries / "empty").mkdir()
    assert Entries(member).count == 0
    assert list(member.entries.iterdir()) == []


def test_a_member_that_is_drained_begins_nothing(member: Membership) -> None:
    entries = Entries(member)
    entries.closed = "it is being drained"
    with pytest.raises(RefusedError, match="it is being drained"):
        entries.enter(request(), NOBODY_GONE)
    assert list(member.entries.iterdir()) == []


def test_without_a_shared_folder_nothing_runs(member: Membership) -> None:
    entries = Entries(replace(member, shared_dir=None))
    with pytest.raises(RefusedError, match=r"mpi\.shared_dir is not set"):
        entries.enter(request(), NOBODY_GONE)


def test_the_agents_own_variables_do_not_reach_the_ranks(
    member: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    entries = Entries(member)
    env = request(command="env >env", env={"OMPI_X": "1"})
    assert entries.enter(env, NOBODY_GONE).wait(30.0) is not None
    assert member.shared_dir is not None
    names = {line.partition("=")[0] for line in (member.shared_dir / "work/env").open()}
    assert {"OMPI_X", "PATH", "SIMAGENT_ENTRY"} <= names
    assert "AWS_SECRET_ACCESS_KEY" not in names


IMAGE = f"docker://registry.example.org/melt@{DIGEST}"


def test_in_an_image_the_shared_folder_is_the_work_folder(member: Membership) -> None:
    images = FakeImages()
    member = contained(member, images)
    asked = request(
        command="pwd >where",
        runtime="docker",
        image=IMAGE,
        workdir="sub",
        cpus=1.5,
        memory_bytes=1 << 30,
        shm_bytes=1 << 20,
    )
    assert member.shared_dir is not None
    (member.shared_dir / "work" / "sub").mkdir()
    entries = Entries(member)
    assert entries.enter(asked, NOBODY_GONE).wait(30.0) is not None
    containers = member.runtimes["docker"]
    assert isinstance(containers, FakeContainers)
    (plan,) = containers.plans
    box = plan.sandbox
    assert box is not None
    assert images.fetched == [IMAGE]
    assert (box.image, box.network, box.shm_bytes) == ("an image", "host", 1 << 20)
    assert {str(m.target): m.source.name for m in box.mounts} == {
        str(WORKDIR): "work",
        "/tmp": "tmp",
        "/var/tmp": "tmp",
    }
    assert plan.cwd == Path(WORKDIR, "sub")
    assert (plan.limits.cpus, plan.limits.memory_bytes) == (1.5, 1 << 30)
    assert plan.launch is None


def test_ranks_that_the_hosts_own_mpi_starts_are_in_containers_each(member: Membership) -> None:
    member = contained(member, FakeImages("apptainer"), "apptainer")
    asked = request(
        command="orted --here",
        runtime="apptainer",
        image=IMAGE,
        program=("lmp", "-in", "x"),
        ranks=4,
        env={"LD_PRELOAD": "/workdir/mine.so", "APPTAINER_BIND": "/"},
    )
    check_request(member, asked)
    plan = plan_entry(member, asked, member.entries / "x", "an image")
    assert plan.argv == ("lmp", "-in", "x")
    assert plan.launch is not None
    assert plan.launch.argv == ("/bin/sh", "-c", "orted --here")
    assert plan.launch.np == 4
    assert "PATH" in plan.launch.env
    assert "PATH" not in plan.env
    # MPI's daemon runs outside of the containers: there the task's variables would be the way out.
    assert "LD_PRELOAD" in plan.env
    assert not {"LD_PRELOAD", "APPTAINER_BIND"} & plan.launch.env.keys()
    with pytest.raises(RefusedError, match=r"mpi\.mode is contained") as caught:
        check_request(replace(member, hybrid=False), asked)
    assert caught.value.reason is Reason.UNSUPPORTED


def test_gpus_are_given_to_ranks_here_as_on_the_head(member: Membership) -> None:
    member = replace(contained(member, FakeImages()), gpus=("GPU-a", "GPU-b", "GPU-c"))
    asked = request(runtime="docker", image=IMAGE, gpus=2)
    plan = plan_entry(member, asked, member.entries / "x", "an image")
    assert plan.sandbox is not None
    assert (plan.sandbox.gpus, plan.sandbox.gpu_ids) == (2, ("GPU-a", "GPU-b"))
    plan = plan_entry(replace(member, gpus=()), asked, member.entries / "x", "an image")
    assert plan.sandbox is not None
    assert (plan.sandbox.gpus, plan.sandbox.gpu_ids) == (2, ()), "it is not known which there are"


def test_a_host_with_too_few_gpus_says_so(member: Membership) -> None:
    check_gpus(member, 4)  # it is not known how many there are
    with pytest.raises(RefusedError, match=r"gpus: 2 are asked for, 1 are here") as caught:
        check_gpus(replace(member, gpus=("GPU-a",)), 2)
    assert caught.value.reason is Reason.UNSUPPORTED


def test_an_image_that_is_another_one_here_than_on_the_head_is_refused(member: Membership) -> None:
    duties = MemberDuties(contained(member, FakeImages()), Entries(member))
    file = "docker-archive:/images/lammps.tar"
    duties.fetch(Fetch(runtime="docker", image=file, digest=DIGEST), NOBODY_GONE)
    duties.fetch(Fetch(runtime="docker", image=file), NOBODY_GONE)  # a head of an older version
    other = "sha256:" + "cd" * 32
    with pytest.raises(RefusedError, match=r"another one here .* have the same file") as caught:
        duties.fetch(Fetch(runtime="docker", image=file, digest=other), NOBODY_GONE)
    assert caught.value.reason is Reason.IMAGE_UNUSABLE


def test_why_an_image_cannot_be_had_is_passed_on(member: Membership) -> None:
    images = FakeImages(errors=[ImageError(Reason.IMAGE_DENIED, "log in first")])
    duties = MemberDuties(contained(member, images), Entries(member))
    fetch = Fetch(runtime="docker", image=IMAGE)
    with pytest.raises(RefusedError, match="log in first") as caught:
        duties.fetch(fetch, NOBODY_GONE)
    assert caught.value.reason is Reason.IMAGE_DENIED
    duties.fetch(fetch, NOBODY_GONE)
    with pytest.raises(RefusedError, match="image: ") as caught:
        duties.fetch(fetch.with_(image="--privileged"), NOBODY_GONE)
    with pytest.raises(RefusedError, match="apptainer is not set up here: there is docker"):
        duties.fetch(fetch.with_(runtime="apptainer"), NOBODY_GONE)


def test_a_long_fetch_shows_that_it_lives_and_ends_with_its_head(member: Membership) -> None:
    images = FakeImages(stalls=True)
    duties = MemberDuties(contained(member, images), Entries(member))
    ours, theirs = socket.socketpair()
    fast = FastClock(5.0)
    talk = threading.Thread(target=Conversation(theirs, duties, fast, Wake()).run)
    talk.start()
    ours.settimeout(30.0)
    ours.sendall(Fetch(runtime="docker", image=IMAGE).model_dump_json().encode() + b"\n")
    said = ours.makefile()
    assert [json.loads(said.readline())["event"] for _ in range(3)] == ["beat"] * 3
    said.close()
    ours.close()
    talk.join(30.0)
    assert not talk.is_alive()
    theirs.close()
