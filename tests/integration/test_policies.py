"""The IAM policies permit all that agents and clients do, and nothing that they never do.

Each role has a guard of its own before moto, which refuses what its policy lacks.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from boto3.session import Session

from fakes.aws import REGION, Moto, moto_server
from fakes.clouds import Metadata, aws_of_group
from fakes.iam import Guard, Need, Policy
from fakes.rig import Rig
from fakes.scaling import Group
from fakes.sqs import client, count
from simagent.cli.policies import policy
from simagent.client.agents import Agents
from simagent.client.calls import Calls
from simagent.client.listing import Wanted
from simagent.clouds.aws import Aws
from simagent.clouds.aws_autoscaling import AwsGroup
from simagent.config import Config
from simagent.config_load import load_config
from simagent.domain import keys
from simagent.domain.cluster import Head
from simagent.domain.fleet import Heartbeat
from simagent.domain.keys import TaskKeys
from simagent.domain.state import Status
from simagent.engines import open_queue, open_store, set_up_queues, set_up_store, try_queue
from simagent.ledger import Ledger
from simagent.ports.clock import SystemClock
from simagent.ports.setup import Way
from simagent.ports.store import NotFoundError, StoreRefusedError
from simagent.runtimes.sif_store import SifStore

pytestmark = pytest.mark.timeout(300)  # whole tasks, one after the other

MEGABYTE = 1 << 20
PROJECT = "lab"


@dataclass(frozen=True)
class Fleet:
    """A bucket and a queue, and how each role reaches them."""

    folder: Path
    moto: Moto
    bucket: str
    queue: str

    def settings(self, endpoint: str, **more: str) -> dict[str, str]:
        return {
            "store": f"s3://{self.bucket}/pre",
            "queue": f"sqs://{self.queue}-{{group}}",
            "s3_endpoint": endpoint,
            "s3_region": self.moto.region,
            "sqs_endpoint": endpoint,
            "sqs_region": self.moto.region,
            "project": PROJECT,
            **more,
        }

    def config(self, endpoint: str, **more: str) -> Config:
        return load_config(None, state_dir=self.folder / "state", **self.settings(endpoint, **more))

    @contextmanager
    def guard(self, role: str, **more: str) -> Iterator[Guard]:
        """Let calls pass as the role may make them; at the end none was refused."""
        document = policy(role, self.config("http://unused", **more), ["default"])
        with Guard(self.moto.endpoint, Policy(document)) as guard:
            yield guard
        assert guard.broken == []
        assert guard.denied == []

    def submit(self, rig: Rig, *commands: object, **fields: object) -> TaskKeys:
        return rig.submit(*commands, project=PROJECT, **fields)


@pytest.fixture
def fleet(tmp_path: Path, moto: Moto) -> Fleet:
    made = Fleet(tmp_path, moto, moto.name(), moto.name("fleet"))
    config = made.config(moto.endpoint)
    for _ in (*set_up_store(config, Way()), *set_up_queues(config, ["default"], Way())):
        pass
    return made


def test_the_policies_of_agents_and_clients_are_enough_and_not_more(fleet: Fleet) -> None:
    with_all = {"sif_cache": "true", "cluster": "c", "idle_action": "terminate"}
    with fleet.guard("agent", **with_all) as agents, fleet.guard("tenant") as clients:
        rig = Rig(fleet.folder, fleet.settings(agents.endpoint, allow_process="true"))
        user = Rig(fleet.folder, fleet.settings(clients.endpoint))
        with rig.agent():
            whole_task(fleet, user)
            killed_task(fleet, user)
            refused_task(fleet, user)
            dead_letters(fleet, user, agents)
        member_of_a_cluster(fleet.config(agents.endpoint))
        for guard in (agents, clients):
            config = fleet.config(guard.endpoint)
            try_queue(config)
            open_store(config, prove=True)
        broken_upload(fleet.config(agents.endpoint), "p/lab/tasks/x/big")
        broken_upload(fleet.config(clients.endpoint), "p/lab/tasks/x/big")
        kept_images(fleet.config(agents.endpoint), fleet.folder)
        end_of_a_machine(fleet, agents)
    assert agents.unused == set()
    assert clients.unused == set()


def whole_task(fleet: Fleet, user: Rig) -> None:
    """Inputs and outputs in parts, a look at its files, its logs, its end."""
    inputs = fleet.folder / "inputs"
    inputs.mkdir()
    (inputs / "large").write_bytes(os.urandom(18 * MEGABYTE))
    go = fleet.folder / "go"
    wait = f"echo made; cp large copy; until [ -e {go} ]; do sleep 0.05; done"
    task = fleet.submit(
        user,
        {"run": wait, "shell": True},
        inputs=["inputs/"],
        outputs={"layout": "files"},
        checkpoint={"paths": ["copy"], "every": 1},
    )
    user.until(lambda: user.running(task))
    user.until(lambda: "large" in [item.name for item in user.client.files(task).list("")[0]])
    user.until(lambda: any(agent.group == "default" for agent in agents_of(user.config())))
    user.client.sync(task, ["copy"], fleet.folder / "synced", timeout=60)
    # What a client left behind that was killed: the agent removes it at the end.
    open_store(user.config()).put(task.request("left"), b"{}")
    go.touch()
    assert user.finish(task, 60).status == "succeeded"
    assert user.log(task) == b"made\n"
    user.client.download(task, ["copy", "stdout.txt"], fleet.folder / "got")
    assert (fleet.folder / "got" / "copy").stat().st_size == 18 * MEGABYTE
    again = user.client.retry(task)
    assert user.finish(again, 60).status == "succeeded"
    assert len(list(user.client.list())) == 2
    assert list(user.client.list(Wanted(statuses=frozenset({Status.RUNNING})))) == []
    user.client.delete(task)
    assert list(user.client.prune(older_than=0)) == [again]


def agents_of(config: Config) -> list[Heartbeat]:
    return Agents(Calls(Ledger(open_store(config)), SystemClock())).all()


def killed_task(fleet: Fleet, user: Rig) -> None:
    """One that runs, and one that waits, which the client itself ends."""
    runs, waits = fleet.submit(user, "sleep 60"), fleet.submit(user, "true")
    user.until(lambda: user.running(runs))
    user.client.kill(waits, by="me")
    user.client.kill(runs, by="me")
    assert user.finish(waits).status == user.finish(runs).status == "killed"


def dead_letters(fleet: Fleet, user: Rig, agents: Guard) -> None:
    open_queue(fleet.config(agents.endpoint), "default").send("no bell at all")
    user.until(lambda: count(fleet.moto, f"{fleet.queue}-default-dead") == 1)


def refused_task(fleet: Fleet, user: Rig) -> None:
    """No agent can run it: they say so to each other, and it ends."""
    task = fleet.submit(user, "true", resources={"cpus": 10_000})
    user.until(lambda: user.client.refusals(task) or user.ended(task), 60)
    user.client.kill(task, by="me")
    user.finish(task)


def member_of_a_cluster(config: Config) -> None:
    """A head and a member show themselves, each sees the other, and the member leaves."""
    store = open_store(config)
    Ledger(store).change_document(keys.cluster_head("c"), Head(), lambda head: head)
    Ledger(store).change_document(keys.cluster_head("c"), Head(), lambda head: head)
    store.put(keys.cluster_member("c", "a"), b"{}")
    assert [entry.key for entry in store.scan(keys.cluster_members("c"))]
    store.get(keys.cluster_member("c", "a"))
    store.delete(keys.cluster_member("c", "a"))


def end_of_a_machine(fleet: Fleet, agents: Guard) -> None:
    """One that has nothing to do leaves its Auto Scaling group."""
    group = Group(fleet.moto, least=0)
    me, other = group.instances
    with pytest.MonkeyPatch.context() as patch, Metadata(aws_of_group(me)) as server:
        patch.setenv("AWS_ENDPOINT_URL_AUTO_SCALING", agents.endpoint)
        assert AwsGroup(Aws(lambda: 0.0, server.endpoint)).terminate(replace=False)
    assert group.instances == [other]


def broken_upload(config: Config, key: str) -> None:
    """One whose source fails late: its parts are given up."""

    def body() -> Iterator[bytes]:
        for _ in range(20):
            yield bytes(MEGABYTE)
        raise RuntimeError

    with suppress(RuntimeError):
        open_store(config).upload(key, body)


def kept_images(config: Config, folder: Path) -> None:
    """What Apptainer made is kept for all agents, found, and forgotten."""
    image, digest = folder / "image.sif", "sha256:" + "0" * 64
    image.write_bytes(os.urandom(9 * MEGABYTE))
    shelf = SifStore(open_store(config))
    shelf.keep_made(digest, image, "sha256:" + "1" * 64)
    shelf.find_made(digest, folder / "copy.sif")
    shelf.forget_made(digest)

    def body() -> Iterator[bytes]:
        for _ in range(20):
            yield bytes(MEGABYTE)
        raise RuntimeError

    with suppress(RuntimeError):
        open_store(config).upload("images/cache/x.sif", body)
    open_store(config).delete("images/cache/x.sif")


def test_setup_needs_what_its_policy_has_and_not_more(fleet: Fleet) -> None:
    other = Fleet(fleet.folder, fleet.moto, fleet.moto.name(), fleet.moto.name("fleet"))
    key = "arn:aws:kms:eu-west-1:123456789012:key/k"
    with other.guard("setup", s3_kms_key=key) as guard:
        config = other.config(guard.endpoint, s3_kms_key=key)
        for way in (Way(dry=True), Way(), Way(update=True)):
            for _ in (*set_up_store(config, way), *set_up_queues(config, ["default"], way)):
                pass
        name = f"{other.queue}-default"
        sqs = client(fleet.moto)
        url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
        sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "7"})
        for _ in set_up_queues(config, ["default"], Way(update=True)):
            pass
    assert guard.unused == set()


Call = Callable[[Config], object]


@pytest.mark.parametrize(
    ("role", "call", "lacking"),
    [
        ("tenant", lambda config: open_store(config).get("p/other/tasks/x/spec.json"), "GetObject"),
        ("tenant", lambda config: open_store(config).put("p/other/x", b""), "PutObject"),
        ("tenant", lambda config: open_store(config).put("open/default/X.other", b""), "PutObject"),
        ("tenant", lambda config: open_store(config).put("agents/a.json", b""), "PutObject"),
        ("tenant", lambda config: open_store(config).put("clusters/c/head.json", b""), "PutObject"),
        ("tenant", lambda config: list(open_store(config).scan("p/other/")), "ListBucket"),
        ("agent", lambda config: open_store(config).put("images/mine.sif", b""), "PutObject"),
        ("agent", lambda config: open_store(config).put("clusters/c/head.json", b""), "PutObject"),
        ("agent", lambda config: open_store(config).put("open/others/X.lab", b""), "PutObject"),
    ],
)
def test_what_a_role_may_not_do_is_refused_by_its_name(
    fleet: Fleet, role: str, call: Call, lacking: str
) -> None:
    document = policy(role, fleet.config("http://unused"), ["default"])
    with Guard(fleet.moto.endpoint, Policy(document)) as guard:
        with pytest.raises(StoreRefusedError, match=f"s3:{lacking} on arn:aws:s3:::{fleet.bucket}"):
            call(fleet.config(guard.endpoint))
        assert [need.action for need in guard.denied] == [f"s3:{lacking}"]


def test_without_the_permission_to_list_nothing_is_told_to_be_missing(fleet: Fleet) -> None:
    """So that the guard refuses as S3 does: without it the policy would look like enough."""
    document = policy("agent", fleet.config("http://unused"), ["default"])
    document["Statement"] = [s for s in document["Statement"] if s["Action"] != "s3:ListBucket"]
    key = "p/lab/tasks/x/spec.json"
    guarded = Guard(fleet.moto.endpoint, Policy(document))
    with guarded as guard, pytest.raises(StoreRefusedError, match="s3:ListBucket on arn"):
        open_store(fleet.config(guard.endpoint)).get(key)
    with fleet.guard("agent") as guard, pytest.raises(NotFoundError):
        open_store(fleet.config(guard.endpoint)).get(key)


@contextmanager
def as_user(endpoint: str, document: dict[str, Any]) -> Iterator[None]:
    """Let all calls to this moto be judged by its own IAM, with the policy of who makes them."""
    iam = Session().client("iam", endpoint_url=endpoint, region_name=REGION)
    iam.create_user(UserName="agent")
    iam.put_user_policy(
        UserName="agent", PolicyName="simagent", PolicyDocument=json.dumps(document)
    )
    made = iam.create_access_key(UserName="agent")["AccessKey"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", made["AccessKeyId"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", made["SecretAccessKey"])
        from_now_on = Request(f"{endpoint}/moto-api/reset-auth", data=b"0", method="POST")
        from_now_on.add_header("Content-Type", "text/plain")
        with urlopen(from_now_on):
            yield


def test_motos_own_iam_lets_an_agent_work_in_its_bucket(tmp_path: Path, moto: Moto) -> None:
    """A judge that is not ours. It knows no conditions, and of SQS no queues: S3 alone."""
    with moto_server() as own:
        fleet = Fleet(tmp_path, own, own.name(), "unused")
        store = {
            name: value
            for name, value in fleet.settings(own.endpoint, allow_process="true").items()
            if not name.startswith(("queue", "sqs"))
        }
        config = load_config(None, state_dir=tmp_path / "state", **store)
        for _ in set_up_store(config, Way()):
            pass
        document = policy("agent", config, ["default"])
        for statement in document["Statement"]:
            statement.pop("Condition", None)
        task = fleet.submit(Rig(tmp_path, store), "echo hello")
        with as_user(own.endpoint, document):
            rig = Rig(tmp_path, store)
            with rig.agent():
                assert rig.finish(task).status == "succeeded"
            with pytest.raises(StoreRefusedError, match=r"s3:PutObject on arn:.*open/default/"):
                fleet.submit(rig, "true")  # agents make no markers
            open_store(config).upload("p/lab/x", lambda: (bytes(MEGABYTE) for _ in range(20)))
            with pytest.raises(NotFoundError):
                open_store(config).get("p/lab/y")
            elsewhere = config.model_copy(update={"store": f"s3://{fleet.bucket}/else"})
            with pytest.raises(StoreRefusedError, match="s3:PutObject on arn"):
                open_store(elsewhere).put("p/lab/x", b"")


def test_the_guard_judges_as_iam_does() -> None:
    bucket = "arn:aws:s3:::b"
    judge = Policy(
        {
            "Statement": [
                {
                    "Sid": "List",
                    "Effect": "Allow",
                    "Action": "s3:ListBucket",
                    "Resource": bucket,
                    "Condition": {"StringLikeIfExists": {"s3:prefix": ["a/*"]}},
                },
                {
                    "Sid": "Get",
                    "Effect": "Allow",
                    "Action": ["s3:Get*"],
                    "Resource": f"{bucket}/a/*",
                },
            ]
        }
    )
    assert judge.allows(Need("s3:ListBucket", bucket, "a/b"))
    assert judge.allows(Need("s3:ListBucket", bucket))
    assert not judge.allows(Need("s3:ListBucket", bucket, "b/"))
    assert judge.allows(Need("s3:GetObject", f"{bucket}/a/x"))
    assert not judge.allows(Need("s3:PutObject", f"{bucket}/a/x"))
    assert not judge.allows(Need("s3:GetObject", f"{bucket}/b"))
