"""What each cloud's metadata server tells, and what is made of it."""

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fakes import clouds
from fakes.clouds import Metadata
from simagent.clouds.aws import Aws
from simagent.clouds.azure import Azure
from simagent.clouds.dmi import cloud_of
from simagent.clouds.gcp import Gcp
from simagent.ports.cloud import Cloud, CloudError, Notice

NOW = 1_800_000_000.0


def wall() -> float:
    return NOW


@pytest.mark.parametrize(
    ("files", "cloud"),
    [
        ({"sys_vendor": "Amazon EC2", "product_name": "c7i.large"}, "aws"),
        ({"sys_vendor": "Xen", "bios_version": "4.11.amazon"}, "aws"),
        ({"sys_vendor": "Google", "product_name": "Google Compute Engine"}, "gcp"),
        (
            {
                "sys_vendor": "Microsoft Corporation",
                "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77",
            },
            "azure",
        ),
        ({"sys_vendor": "Microsoft Corporation"}, "none"),  # somebody's own Hyper-V
        ({"sys_vendor": "QEMU"}, "none"),
        ({}, "none"),
    ],
)
def test_a_cloud_is_known_by_its_firmware(
    tmp_path: Path, files: dict[str, str], cloud: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert cloud_of(tmp_path) == cloud


@pytest.mark.parametrize(("spot", "price"), [(True, "spot"), (False, "on-demand")])
def test_each_cloud_tells_what_the_machine_is(*, spot: bool, price: str) -> None:
    with (
        Metadata(clouds.aws(spot=spot)) as aws,
        Metadata(clouds.gcp(spot=spot)) as gcp,
        Metadata(clouds.azure(spot=spot)) as azure,
    ):
        assert Aws(wall, aws.endpoint).facts() == {
            "instance": "i-1234",
            "instance_type": "c7i.large",
            "region": "eu-west-1",
            "price": price,
        }
        assert Gcp(gcp.endpoint).facts() == {
            "instance": "4711",
            "instance_type": "c3-standard-4",
            "region": "europe-west1",
            "price": price,
        }
        assert Azure(wall, azure.endpoint).facts() == {
            "instance": "aa-bb",
            "instance_type": "Standard_D4s_v5",
            "region": "westeurope",
            "price": price,
        }


def test_no_notice_is_none() -> None:
    with (
        Metadata(clouds.aws()) as aws,
        Metadata(clouds.gcp()) as gcp,
        Metadata(clouds.azure()) as azure,
    ):
        asked: list[Cloud] = [
            Aws(wall, aws.endpoint),
            Gcp(gcp.endpoint),
            Azure(wall, azure.endpoint),
        ]
        assert [cloud.notice() for cloud in asked] == [None, None, None]


def test_aws_tells_two_minutes_before() -> None:
    with Metadata(clouds.aws() | clouds.aws_interruption(NOW + 110)) as server:
        notice = Aws(wall, server.endpoint).notice()
    assert notice == Notice("AWS is going to terminate this spot instance", 110.0)


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_a_wrong_clock_does_not_make_the_time_left_wrong(skew: float) -> None:
    with Metadata(clouds.aws() | clouds.aws_interruption(NOW + 110)) as server:
        notice = Aws(lambda: NOW + skew, server.endpoint).notice()
    assert notice is not None
    assert notice.left == 115.0


def test_aws_may_only_recommend_to_go() -> None:
    recommended = {"/latest/meta-data/events/recommendations/rebalance": "{}"}
    with Metadata(clouds.aws() | recommended) as server:
        notice = Aws(wall, server.endpoint).notice()
    assert notice is not None
    assert not notice.certain


def test_an_expired_token_is_replaced() -> None:
    with Metadata(clouds.aws() | clouds.aws_interruption(NOW + 60)) as server:
        cloud = Aws(wall, server.endpoint)
        assert cloud.notice() is not None
        server.expire()
        assert cloud.notice() is not None
        assert server.tokens == 2


def test_google_gives_half_a_minute() -> None:
    with Metadata(clouds.gcp() | clouds.gcp_preempted()) as server:
        assert Gcp(server.endpoint).notice() == Notice(
            "Google Cloud is going to preempt this instance", 29.0
        )


def test_azure_tells_of_the_first_event_that_ends_this_machine() -> None:
    events = clouds.azure_events(
        clouds.azure_event("Freeze", NOW + 5, "vm-7"),
        clouds.azure_event("Preempt", NOW + 10, "vm-8"),
        clouds.azure_event("Terminate", NOW + 300, "vm-7"),
        clouds.azure_event("Preempt", NOW + 28, "vm-7", "vm-8"),
    )
    with Metadata(clouds.azure() | events) as server:
        assert Azure(wall, server.endpoint).notice() == Notice("Azure announces: Preempt", 28.0)


def test_an_event_of_azure_that_has_begun_leaves_no_time() -> None:
    events = clouds.azure_events(clouds.azure_event("Preempt", None, "vm-7"))
    with Metadata(clouds.azure() | events) as server:
        assert Azure(wall, server.endpoint).notice() == Notice("Azure announces: Preempt", 0.0)


def test_events_of_azure_that_name_nothing_are_no_notice() -> None:
    events = clouds.azure_events(
        {"EventType": ["Preempt"]}, {"EventType": "Preempt", "Resources": None}
    )
    with Metadata(clouds.azure() | events) as server:
        assert Azure(wall, server.endpoint).notice() is None


@pytest.mark.parametrize("text", ["<html>Log in</html>", "[]", '"x"', ""])
def test_nonsense_is_an_error_not_a_notice(text: str) -> None:
    answers = {"/latest/meta-data/spot/instance-action": text, clouds.AZURE_EVENTS: text}
    with Metadata(answers) as server:
        with pytest.raises(CloudError):
            Aws(wall, server.endpoint).notice()
        with pytest.raises(CloudError):
            Azure(wall, server.endpoint).notice()


@pytest.mark.parametrize("head", [True, False], ids=["in the head", "in the body"])
def test_a_server_that_never_ends_its_answer_is_given_up_within_seconds(*, head: bool) -> None:
    answer = b"HTTP/1.1 200 OK\r\n" + (b"" if head else b"\r\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()

        def serve() -> None:
            asker, _ = listener.accept()
            with asker, suppress(OSError):
                asker.recv(4096)
                asker.sendall(answer)
                while not over.wait(0.5):
                    asker.sendall(b"X")

        thread = threading.Thread(target=serve)
        thread.start()
        began = time.monotonic()
        with pytest.raises(CloudError, match="no whole answer came within 5 s"):
            Gcp(f"http://127.0.0.1:{listener.getsockname()[1]}").facts()
        assert time.monotonic() - began < 15
        over.set()
        thread.join()


def test_a_server_that_hangs_is_given_up_within_seconds() -> None:
    with Metadata(hangs=True) as server:
        began = time.monotonic()
        with pytest.raises(CloudError, match="timed out"):
            Gcp(server.endpoint).facts()
        assert time.monotonic() - began < 20  # its connection alone would last 30 s


def test_google_s_maintenance_ends_a_machine_that_cannot_be_moved() -> None:
    with Metadata(clouds.gcp()) as server:
        cloud = Gcp(server.endpoint)
        assert cloud.notice() is None
        server.answers.update(clouds.gcp_maintenance("MIGRATE"))
        assert cloud.notice() is None
        server.answers.update(clouds.gcp_maintenance("TERMINATE"))
        notice = cloud.notice()
        assert notice is not None
        assert (notice.left, notice.certain) == (59.0, True)
        assert "maintenance" in notice.what


@pytest.mark.parametrize(("machines", "started"), [(["vm-7"], ["e"]), (["vm-7", "vm-8"], [])])
def test_azure_is_let_begin_what_is_about_this_machine_alone(
    machines: list[str], started: list[str]
) -> None:
    with Metadata(clouds.azure()) as server:
        cloud = Azure(wall, server.endpoint)
        cloud.done()
        server.answers.update(
            clouds.azure_events(clouds.azure_event("Terminate", NOW + 300, *machines))
        )
        assert cloud.notice() is not None
        assert server.started == []
        cloud.done()
        assert server.started == started


def test_a_page_in_the_place_of_a_token_is_a_failure_of_the_server() -> None:
    with Metadata(clouds.aws()) as server:
        server.token = "<html>\n<p>Please log in"
        with pytest.raises(CloudError, match="/latest/"):
            Aws(wall, server.endpoint).notice()
