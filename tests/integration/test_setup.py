"""`simagent setup` against moto: what it makes, what it leaves alone, and what it says."""

import json
from pathlib import Path
from typing import Any

import pytest

from fakes.aws import Moto
from fakes.cli import Cli
from fakes.s3_answers import S3Answers
from fakes.sqs import client as sqs_client
from simagent.ports.setup import Finding, Way
from simagent.stores.s3_calls import Access, connect
from simagent.stores.s3_setup import BucketSetup


class Fleet:
    """Names that no other test uses, and the command line that is to make what they name."""

    def __init__(self, folder: Path, moto: Moto) -> None:
        self.moto = moto
        self.bucket = moto.name()
        self.queue = moto.name("fleet")
        self.cli = Cli(folder)
        self.cli.env |= {
            "SIMAGENT_STORE": f"s3://{self.bucket}/some/prefix",
            "SIMAGENT_QUEUE": f"sqs://{self.queue}-{{group}}",
            "SIMAGENT_S3_ENDPOINT": moto.endpoint,
            "SIMAGENT_S3_REGION": moto.region,
            "SIMAGENT_SQS_ENDPOINT": moto.endpoint,
            "SIMAGENT_SQS_REGION": moto.region,
        }
        self.s3: Any = connect(Access(moto.endpoint, moto.region), 1)

    def findings(self, *options: str) -> dict[str, str]:
        found = json.loads(self.cli("setup", "--json", *options).stdout)["findings"]
        return {finding["what"]: finding["verdict"] for finding in found}

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
    names = {
        f"queue {fleet.queue}-{group}{dead}" for group in ("a", "b") for dead in ("", "-dead")
    }
    first = fleet.findings("-g", "a", "-g", "b")
    assert {what for what, verdict in first.items() if verdict == "made"} == {
        *(f"bucket {fleet.bucket}", "public access", "lifecycle"),
        *names,
    }
    assert set(fleet.findings("-g", "a", "-g", "b").values()) == {"ok"}

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
    assert "0 messages wait" in fleet.cli("doctor", "--config", conf(fleet, "a")).stdout


def conf(fleet: Fleet, group: str) -> Path:
    file = fleet.cli.folder / "agent.toml"
    file.write_text(f'group = "{group}"\nallow_process = true\n')
    return file


def test_a_dry_run_changes_nothing(fleet: Fleet) -> None:
    assert set(fleet.findings("--dry-run").values()) == {"planned"}
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

    said = fleet.cli("setup").stdout
    assert "VisibilityTimeout is 30, not 120" in said
    assert "is not blocked" in said
    assert "simagent setup --update" in said
    assert fleet.attributes(name)["VisibilityTimeout"] == "30"
    with pytest.raises(fleet.s3.exceptions.ClientError):
        fleet.s3.get_public_access_block(Bucket=fleet.bucket)
    # A rule about our own prefix harms nobody, and all others stay.
    assert [rule["ID"] for rule in fleet.rules()] == ["theirs", "simagent-incomplete-uploads"]

    plan = fleet.findings("--update", "--dry-run")
    assert plan["public access"] == plan[f"queue {name}"] == "planned"
    assert fleet.attributes(name)["VisibilityTimeout"] == "30"
    done = fleet.findings("--update")
    assert done["public access"] == done[f"queue {name}"] == "changed"
    now = fleet.attributes(name)
    assert (now["VisibilityTimeout"], now["DelaySeconds"]) == ("120", "7")
    assert [rule["ID"] for rule in fleet.rules()] == ["theirs", "simagent-incomplete-uploads"]


def test_another_rule_that_removes_incomplete_uploads_will_do(fleet: Fleet) -> None:
    fleet.findings()
    theirs = {"ID": "all", "Status": "Enabled", "Filter": {"Prefix": ""}}
    theirs |= {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2}}
    fleet.s3.put_bucket_lifecycle_configuration(
        Bucket=fleet.bucket, LifecycleConfiguration={"Rules": [theirs]}
    )
    assert "removed after 2 days, by all" in fleet.cli("setup").stdout
    assert [rule["ID"] for rule in fleet.rules()] == ["all"]


def test_old_versions_are_warned_of_and_a_queue_with_a_key_keeps_it(fleet: Fleet) -> None:
    fleet.findings()
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
    said = fleet.cli("setup", "--update").stdout
    assert "NoncurrentVersionExpiration" in said
    assert "is encrypted with alias/ours" in said
    assert fleet.attributes(name)["KmsMasterKeyId"] == "alias/ours"


def test_a_key_of_kms_becomes_the_new_buckets_default(fleet: Fleet) -> None:
    key = "arn:aws:kms:eu-west-1:123456789012:key/k"
    fleet.cli.env["SIMAGENT_S3_KMS_KEY"] = key
    assert fleet.findings()["encryption"] == "made"
    (rule,) = fleet.s3.get_bucket_encryption(Bucket=fleet.bucket)[
        "ServerSideEncryptionConfiguration"
    ]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["KMSMasterKeyID"] == key
    assert rule["BucketKeyEnabled"] is True


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


def test_policies_are_for_other_programs(fleet: Fleet) -> None:
    for role in ("agent", "client", "tenant", "setup"):
        printed = json.loads(fleet.cli("setup", "--policy", role, "--project", "lab").stdout)
        assert printed["Version"] == "2012-10-17"
        assert "<" not in json.dumps(printed)
    tasks = json.dumps(json.loads(fleet.cli("setup", "--policy", "tenant").stdout))
    assert "some/prefix/p/default/*" in tasks
    assert "some/prefix/p/*" not in tasks
    assert "IAM policy tenant" in fleet.cli("setup", "--print-policies").stdout


def test_embedded_engines_need_no_setup(tmp_path: Path) -> None:
    assert "nothing to set up" in Cli(tmp_path)("setup").stdout
    assert "no policy" in Cli(tmp_path)("setup", "--policy", "agent", code=2).stderr


@pytest.mark.parametrize(
    ("options", "change", "code", "line"),
    [
        (["--policy", "king"], {}, 2, "'king' is no role: use one of agent, client"),
        (["--policy", "agent"], {"S3_KMS_KEY": "alias/k"}, 2, "write the ARN of alias/k"),
        (["-g", "a b"], {}, 1, "a b"),
        ([], {"S3_ENDPOINT": "http://127.0.0.1:9"}, 1, "nothing listens"),
        ([], {"STORE": "s3://A_b.c/x"}, 1, "A_b.c"),
    ],
)
def test_what_is_wrong_is_one_line(
    fleet: Fleet, options: list[str], change: dict[str, str], code: int, line: str
) -> None:
    fleet.cli.env |= {f"SIMAGENT_{name}": value for name, value in change.items()}
    said = fleet.cli("setup", *options, code=code).stderr
    assert line in said
    assert len(said.splitlines()) == 1
