"""`simagent setup` against moto: what it makes, what it leaves alone, and what it says."""

import json
from pathlib import Path
from typing import Any

import pytest

from fakes.aws import Moto
from fakes.cli import Cli
from fakes.s3_answers import S3Answers
from fakes.sqs import client as sqs_client
from simagent.cli.policies import ROLES, policy
from simagent.config import Config
from simagent.config_load import load_config
from simagent.engines import set_up_queues, set_up_store, try_queue
from simagent.ports.setup import Finding, Way
from simagent.stores.s3_calls import Access, connect
from simagent.stores.s3_setup import BucketSetup

MAKE, UPDATE = Way(), Way(update=True)


class Fleet:
    """Names that no other test uses, and the command line that is to make what they name."""

    def __init__(self, folder: Path, moto: Moto) -> None:
        self.moto = moto
        self.bucket = moto.name()
        self.queue = moto.name("fleet")
        self.settings = {
            "store": f"s3://{self.bucket}/some/prefix",
            "queue": f"sqs://{self.queue}-{{group}}",
            "s3_endpoint": moto.endpoint,
            "s3_region": moto.region,
            "sqs_endpoint": moto.endpoint,
            "sqs_region": moto.region,
        }
        self.cli = Cli(folder)
        self.cli.env |= {f"SIMAGENT_{name.upper()}": v for name, v in self.settings.items()}
        self.s3: Any = connect(Access(moto.endpoint, moto.region), 1)

    def config(self, **more: str) -> Config:
        return load_config(None, state_dir=self.cli.state, **self.settings, **more)

    def set_up(self, way: Way = MAKE, *groups: str, **more: str) -> list[Finding]:
        config = self.config(**more)
        queues = set_up_queues(config, groups or ["default"], way)
        return [*set_up_store(config, way), *queues]

    def verdicts(self, way: Way = MAKE, *groups: str, **more: str) -> dict[str, str]:
        return {finding.what: finding.verdict for finding in self.set_up(way, *groups, **more)}

    def said(self, way: Way = MAKE) -> str:
        return "\n".join(finding.text for finding in self.set_up(way))

    def attributes(self, name: str) -> dict[str, str]:
        sqs = sqs_client(self.moto)
        url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
        found: dict[str, str] = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])[
            "Attributes"
        ]
        return found

    def rules(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.s3.get_bucket_lifecycle_configuration(
            Bucket=self.bucket
        )["Rules"]
        return found


@pytest.fixture
def fleet(tmp_path: Path, moto: Moto) -> Fleet:
    return Fleet(tmp_path, moto)


def test_all_that_a_fleet_needs_is_made_and_then_left_alone(fleet: Fleet) -> None:
    names = {f"queue {fleet.queue}-{group}{dead}" for group in ("a", "b") for dead in ("", "-dead")}
    first = fleet.verdicts(MAKE, "a", "b")
    assert {what for what, verdict in first.items() if verdict == "made"} == {
        *(f"bucket {fleet.bucket}", "public access", "lifecycle"),
        *names,
    }
    assert set(fleet.verdicts(MAKE, "a", "b").values()) == {"ok"}

    blocked = fleet.s3.get_public_access_block(Bucket=fleet.bucket)
    assert set(blocked["PublicAccessBlockConfiguration"].values()) == {True}
    (rule,) = fleet.rules()
    assert rule["Filter"] == {"Prefix": "some/prefix/"}
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    made, dead = fleet.attributes(f"{fleet.queue}-a"), fleet.attributes(f"{fleet.queue}-a-dead")
    assert made["ReceiveMessageWaitTimeSeconds"] == "20"
    assert made["VisibilityTimeout"] == "120"
    assert made["MessageRetentionPeriod"] == dead["MessageRetentionPeriod"] == "1209600"
    redrive = json.loads(made["RedrivePolicy"])
    assert (redrive["deadLetterTargetArn"], int(redrive["maxReceiveCount"])) == (
        dead["QueueArn"],
        1000,
    )
    # Nothing is left of the proof, and what was made works.
    assert "Contents" not in fleet.s3.list_objects_v2(Bucket=fleet.bucket)
    assert "0 messages wait" in try_queue(fleet.config(group="a"))


def test_a_dry_run_changes_nothing(fleet: Fleet) -> None:
    assert set(fleet.verdicts(Way(dry=True)).values()) == {"planned"}
    listed = [bucket["Name"] for bucket in fleet.s3.list_buckets()["Buckets"]]
    assert fleet.bucket not in listed
    assert "QueueUrls" not in sqs_client(fleet.moto).list_queues(QueueNamePrefix=fleet.queue)


def test_what_differs_is_told_and_set_right_only_if_asked_for(fleet: Fleet) -> None:
    fleet.s3.create_bucket(
        Bucket=fleet.bucket,
        CreateBucketConfiguration={"LocationConstraint": fleet.moto.region},
    )
    others = {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}}
    others |= {"Expiration": {"Days": 9}}
    fleet.s3.put_bucket_lifecycle_configuration(
        Bucket=fleet.bucket, LifecycleConfiguration={"Rules": [others]}
    )
    name = f"{fleet.queue}-default"
    given = {"VisibilityTimeout": "30", "DelaySeconds": "7"}
    sqs_client(fleet.moto).create_queue(QueueName=name, Attributes=given)

    said = fleet.said()
    assert "VisibilityTimeout is 30, not 120" in said
    assert "is not blocked" in said
    assert fleet.attributes(name)["VisibilityTimeout"] == "30"
    with pytest.raises(fleet.s3.exceptions.ClientError):
        fleet.s3.get_public_access_block(Bucket=fleet.bucket)
    # A rule about our own prefix harms nobody, and all others stay.
    assert [rule["ID"] for rule in fleet.rules()] == ["theirs", "simagent-incomplete-uploads"]

    plan = fleet.verdicts(Way(update=True, dry=True))
    assert plan["public access"] == plan[f"queue {name}"] == "planned"
    assert fleet.attributes(name)["VisibilityTimeout"] == "30"
    done = fleet.verdicts(UPDATE)
    assert done["public access"] == done[f"queue {name}"] == "changed"
    now = fleet.attributes(name)
    assert (now["VisibilityTimeout"], now["DelaySeconds"]) == ("120", "7")
    assert [rule["ID"] for rule in fleet.rules()] == ["theirs", "simagent-incomplete-uploads"]


def test_another_rule_that_removes_incomplete_uploads_will_do(fleet: Fleet) -> None:
    fleet.set_up()
    theirs = {"ID": "all", "Status": "Enabled", "Filter": {"Prefix": ""}}
    theirs |= {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2}}
    fleet.s3.put_bucket_lifecycle_configuration(
        Bucket=fleet.bucket, LifecycleConfiguration={"Rules": [theirs]}
    )
    assert "removed after 2 days, by all" in fleet.said()
    assert [rule["ID"] for rule in fleet.rules()] == ["all"]


def test_old_versions_are_warned_of_and_a_queue_with_a_key_keeps_it(fleet: Fleet) -> None:
    fleet.set_up()
    fleet.s3.put_bucket_versioning(
        Bucket=fleet.bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    name = f"{fleet.queue}-default"
    sqs = sqs_client(fleet.moto)
    url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
    sqs.set_queue_attributes(
        QueueUrl=url,
        Attributes={"KmsMasterKeyId": "alias/ours", "SqsManagedSseEnabled": "false"},
    )
    said = fleet.said(UPDATE)
    assert "NoncurrentVersionExpiration" in said
    assert "is encrypted with alias/ours" in said
    assert fleet.attributes(name)["KmsMasterKeyId"] == "alias/ours"


def test_a_key_of_kms_becomes_the_new_buckets_default(fleet: Fleet) -> None:
    key = "arn:aws:kms:eu-west-1:123456789012:key/k"
    assert fleet.verdicts(s3_kms_key=key)["encryption"] == "made"
    (rule,) = fleet.s3.get_bucket_encryption(Bucket=fleet.bucket)[
        "ServerSideEncryptionConfiguration"
    ]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["KMSMasterKeyID"] == key
    assert rule["BucketKeyEnabled"] is True


@pytest.mark.usefixtures("aws_credentials")
def test_what_a_server_does_not_have_is_told_and_skipped() -> None:
    """As a store that has buckets and objects alone answers."""
    with S3Answers(code="NotImplemented", status=501, but=("HeadBucket",)) as server:
        setup = BucketSetup("s3://box/pre", Access(server.endpoint, "us-east-1"), Way())
        found = list(setup.findings())
    assert found[0] == Finding("bucket box", "ok", "is there")
    assert {finding.verdict for finding in found[1:]} == {"skipped"}
    assert {finding.what for finding in found[1:]} == {
        *("public access", "lifecycle", "encryption", "versioning"),
    }


def test_policies_are_filled_in(fleet: Fleet) -> None:
    for role in ROLES:
        printed = policy(role, fleet.config(project="lab", s3_kms_key="k"), ["a", "b"])
        assert printed["Version"] == "2012-10-17"
        assert "<" not in json.dumps(printed)
        assert "key/k" in json.dumps(printed)
    tenant = json.dumps(policy("tenant", fleet.config(project="lab"), ["a", "b"]))
    assert "some/prefix/p/lab/*" in tenant
    assert "some/prefix/open/b/*.lab" in tenant
    assert "some/prefix/p/*" not in tenant
    assert "kms" not in tenant


def test_people_and_programs_are_told(fleet: Fleet) -> None:
    first = fleet.cli("setup", "-g", "a", "-g", "b").stdout
    assert f"made     bucket {fleet.bucket} " in first
    assert f'store = "s3://{fleet.bucket}/some/prefix"' in first
    fleet.s3.delete_public_access_block(Bucket=fleet.bucket)
    assert "simagent setup --update" in fleet.cli("setup", "-g", "a").stdout
    told = json.loads(fleet.cli("setup", "-g", "a", "--json").stdout)
    assert {"what": "public access", "verdict": "differs"}.items() <= told["findings"][1].items()
    assert told["settings"]["sqs_region"] == fleet.moto.region
    printed = json.loads(fleet.cli("setup", "--policy", "agent", "-g", "a").stdout)
    assert printed == told["policies"]["agent"]


def test_embedded_engines_need_no_setup(tmp_path: Path) -> None:
    assert "nothing to set up" in Cli(tmp_path)("setup").stdout
    assert "no policy" in Cli(tmp_path)("setup", "--policy", "agent", code=2).stderr


@pytest.mark.parametrize(
    ("options", "change", "code", "line"),
    [
        (["--policy", "king"], {}, 2, "'king' is no role: use one of agent, client"),
        (["--policy", "agent"], {"S3_KMS_KEY": "alias/k"}, 2, "write the ARN of alias/k"),
        (["-g", "a b"], {}, 2, "'a b' is no valid name"),
        (["-g", "a.b", "--json"], {}, 2, "use another group or queue"),
        ([], {"S3_ENDPOINT": "http://127.0.0.1:9"}, 1, "nothing listens"),
    ],
)
def test_what_is_wrong_is_one_line(
    fleet: Fleet, options: list[str], change: dict[str, str], code: int, line: str
) -> None:
    fleet.cli.env |= {f"SIMAGENT_{name}": value for name, value in change.items()}
    said = fleet.cli("setup", *options, code=code).stderr
    assert line in said
    assert len(said.splitlines()) == 1
    assert not [b for b in fleet.s3.list_buckets()["Buckets"] if b["Name"] == fleet.bucket]
