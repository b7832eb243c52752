"""What the SQS queue does beyond the contract of all queues, and what it says where it cannot."""

import json
import threading
from collections.abc import Callable
from queue import SimpleQueue

import pytest

from fakes.aws import Moto
from fakes.sqs import ListedQueue, client, count, make_queue
from fakes.sqs_answers import SqsAnswers
from simagent.config import ConfigError
from simagent.config_load import load_config
from simagent.engines import open_queue, try_queue
from simagent.ports.clock import SystemClock, Wake
from simagent.ports.queue import Message, Queue, QueueRefusedError, QueueUnavailableError
from simagent.queues.sqs import DEAD, SqsQueue
from simagent.queues.sqs_poll import Poll
from simagent.queues.sqs_setup import create_queue

# For the credentials that come with it.
pytestmark = pytest.mark.usefixtures("moto")

CLOCK = SystemClock()


@pytest.fixture
def name(moto: Moto) -> str:
    return moto.name()


@pytest.fixture
def queue(moto: Moto, name: str) -> ListedQueue:
    return make_queue(moto, name, CLOCK, "default")


def at(server: SqsAnswers) -> SqsQueue:
    return SqsQueue("q", "default", CLOCK, region="eu-west-1", endpoint=server.endpoint)


def must_receive(queue: Queue, *, wait: float = 20.0) -> Message:
    message = queue.receive(visibility=600, wait=wait, wake=Wake())
    assert message is not None
    return message


def attributes(moto: Moto, name: str) -> dict[str, str]:
    sqs = client(moto)
    url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
    answer = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
    return dict(answer["Attributes"])


# Polls


def test_a_message_for_a_poll_that_was_left_is_given_back(queue: ListedQueue) -> None:
    wake = Wake()
    threading.Timer(0.5, wake.set).start()
    began = CLOCK.now()
    assert queue.receive(visibility=600, wait=20, wake=wake) is None
    assert CLOCK.now() - began < 15
    queue.send("x")
    assert must_receive(queue).body == "x"
    assert CLOCK.now() - began < 19


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_a_poll_brings_is_given_back_once_it_is_left(when: str) -> None:
    message, came = Message("x", "receipt", 1), threading.Event()
    returned = SimpleQueue[Message]()

    def call() -> Message:
        came.wait(60)
        return message

    poll = Poll(call, returned.put)
    if when == "before":
        poll.leave()
    came.set()
    assert CLOCK.wait(60, poll)
    if when == "after":
        assert returned.empty()
        assert poll.result() == message
        poll.leave()
    assert returned.get(timeout=60) == message


def test_a_poll_that_is_left_in_a_stall_holds_nobody_up() -> None:
    wake = Wake()
    with SqsAnswers(stall=True) as server:
        threading.Timer(0.2, wake.set).start()
        began = CLOCK.now()
        assert at(server).receive(visibility=600, wait=20, wake=wake) is None
        assert CLOCK.now() - began < 15


def test_a_poll_that_stalls_is_an_outage_soon_after_its_time() -> None:
    with SqsAnswers(stall=True) as server:
        began = CLOCK.now()
        with pytest.raises(QueueUnavailableError, match="does not answer"):
            at(server).receive(visibility=600, wait=1, wake=Wake())
        assert 1 < CLOCK.now() - began < 30


def test_a_call_that_stalls_is_given_up_after_two_tries() -> None:
    with SqsAnswers(stall=True) as server:
        began = CLOCK.now()
        with pytest.raises(QueueUnavailableError, match="does not answer"):
            at(server).send("x")
        assert CLOCK.now() - began < 40
        assert server.calls.count("SendMessage") == 2


def test_an_idle_receiver_makes_one_request_in_each_wait() -> None:
    with SqsAnswers() as server:
        queue = at(server)
        for _ in range(3):
            assert queue.receive(visibility=600, wait=1, wake=Wake()) is None
        assert server.calls == ["GetQueueUrl", *["ReceiveMessage"] * 3]


def test_many_messages_are_sent_ten_with_a_call() -> None:
    with SqsAnswers() as server:
        at(server).send_many([str(number) for number in range(25)])
        assert server.calls == ["GetQueueUrl", *["SendMessageBatch"] * 3]
        assert server.taken == [str(number) for number in range(25)]


def test_what_sqs_did_not_take_of_a_batch_is_sent_again() -> None:
    with SqsAnswers(untaken=2) as server:
        at(server).send_many(["a", "b"])
        assert sorted(server.taken) == ["a", "b"]


def test_what_sqs_never_takes_of_a_batch_is_an_outage() -> None:
    with SqsAnswers(untaken=9) as server:
        with pytest.raises(
            QueueUnavailableError, match=r"1 of 2 messages were not taken: .*not now"
        ):
            at(server).send_many(["a", "b"])
        assert server.taken == ["a"]


# Messages


@pytest.mark.parametrize("body", ["", "\x00\x1b", "\ufffe", "\ud800"])
def test_texts_that_sqs_refuses_come_through(queue: ListedQueue, body: str) -> None:
    queue.send(body)
    assert must_receive(queue).body == body


@pytest.mark.parametrize("body", ["not json", "[" * 100_000, "{}"])
def test_what_others_marked_wrongly_as_encoded_comes_as_it_is(
    queue: ListedQueue, moto: Moto, body: str
) -> None:
    """Whoever may send could stop each agent that receives it."""
    sqs = client(moto)
    mark = {"simagent.encoding": {"DataType": "String", "StringValue": "json"}}
    url = sqs.get_queue_url(QueueName=queue.name)["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody=body, MessageAttributes=mark)
    message = must_receive(queue)
    assert message.body == body
    queue.reject(message, "bad")
    assert count(moto, queue.name) == 0


def test_a_message_that_is_too_large_is_refused(queue: ListedQueue, moto: Moto) -> None:
    queue.send("x" * 262_144)
    with pytest.raises(QueueRefusedError, match="262145 bytes: SQS takes at most 262144"):
        queue.send("x" * 262_145)
    with pytest.raises(QueueRefusedError):
        queue.send("é" * 131_073)
    assert count(moto, queue.name) == 1


def test_a_large_message_with_a_long_reason_becomes_a_dead_letter(queue: ListedQueue) -> None:
    queue.send("\U0001d11e" * 65_536)
    queue.reject(must_receive(queue), "\x00" * 5_000)
    ((body, reason),) = queue.dead_letters()
    assert body == "\U0001d11e" * 20_000
    assert reason == "?" * 1_000


def test_what_cannot_become_a_dead_letter_is_not_lost(moto: Moto, name: str) -> None:
    client(moto).create_queue(QueueName=name)
    queue = SqsQueue(name, "default", CLOCK, region=moto.region, endpoint=moto.endpoint)
    queue.send("no bell")
    with pytest.raises(QueueRefusedError, match=f"sqs://{name}-dead .* does not exist"):
        queue.reject(must_receive(queue), "bad")
    assert count(moto, name) == 1


def test_delays_and_visibilities_beyond_those_of_sqs_are_cut(
    queue: ListedQueue, moto: Moto
) -> None:
    queue.send("x", delay=100_000)
    assert count(moto, queue.name) == 1
    queue.send("y")
    message = queue.receive(visibility=100_000, wait=5, wake=Wake())
    assert message is not None
    assert message.body == "y"


def test_a_message_cannot_be_hidden_for_more_than_sqs_allows(
    queue: ListedQueue, moto: Moto
) -> None:
    sqs = client(moto)
    url = sqs.get_queue_url(QueueName=queue.name)["QueueUrl"]
    sqs.tag_queue(QueueUrl=url, Tags={"longest": "60"})
    queue.send("x")
    message = must_receive(queue)
    queue.hide(message.receipt, 30)
    with pytest.raises(QueueRefusedError, match="beyond the limit"):
        queue.hide(message.receipt, 61)


# Making queues


def test_a_queue_is_made_with_its_dead_letters_and_set_right_where_it_is(
    moto: Moto, name: str
) -> None:
    client(moto).create_queue(QueueName=name, Attributes={"MessageRetentionPeriod": "60"})
    for _ in range(2):
        create_queue(name, region=moto.region, endpoint=moto.endpoint)
    made, dead = attributes(moto, name), attributes(moto, name + DEAD)
    assert made["ReceiveMessageWaitTimeSeconds"] == "20"
    assert made["MessageRetentionPeriod"] == dead["MessageRetentionPeriod"] == "1209600"
    redrive = json.loads(made["RedrivePolicy"])
    assert redrive["deadLetterTargetArn"] == dead["QueueArn"]
    assert int(redrive["maxReceiveCount"]) == 1000


@pytest.mark.parametrize("group", ["a.b", "g" * 60])
def test_a_group_that_cannot_name_a_queue_is_refused(group: str) -> None:
    with pytest.raises(QueueRefusedError, match="75 letters") as caught:
        SqsQueue("simagent-of-my-lab-{group}", group, CLOCK)
    assert len(str(caught.value).splitlines()) == 1


# Refusals and outages

CALLS: dict[str, Callable[[SqsQueue], object]] = {
    "send": lambda queue: queue.send("x"),
    "receive": lambda queue: queue.receive(visibility=30, wait=0, wake=Wake()),
    "check": SqsQueue.check,
}


@pytest.mark.parametrize("call", CALLS)
def test_a_queue_that_does_not_exist_is_named(moto: Moto, name: str, call: str) -> None:
    queue = SqsQueue(name, "default", CLOCK, region=moto.region, endpoint=moto.endpoint)
    with pytest.raises(QueueRefusedError) as caught:
        CALLS[call](queue)
    line = str(caught.value)
    assert f"sqs://{name} (" in line
    assert moto.region in line
    assert "create it (simagent setup), or set queue, sqs_region or sqs_endpoint" in line
    # It is found as soon as it is there.
    create_queue(name, region=moto.region, endpoint=moto.endpoint)
    CALLS[call](queue)


def test_a_queue_that_is_gone_is_named_and_found_again(queue: ListedQueue, moto: Moto) -> None:
    queue.send("x")
    sqs = client(moto)
    sqs.delete_queue(QueueUrl=sqs.get_queue_url(QueueName=queue.name)["QueueUrl"])
    with pytest.raises(QueueRefusedError, match="does not exist"):
        queue.send("x")
    create_queue(queue.name, region=moto.region, endpoint=moto.endpoint)
    queue.send("x")


@pytest.mark.parametrize(
    ("code", "said", "status", "kind", "words"),
    [
        ("AccessDeniedException", "not authorized", 403, QueueRefusedError, "sqs:SendMessage on"),
        ("KmsAccessDenied", "no key", 400, QueueRefusedError, "sqs:SendMessage on"),
        ("InvalidClientTokenId", "the token", 403, QueueRefusedError, "does not know the AWS"),
        ("SignatureDoesNotMatch", "differs", 403, QueueRefusedError, "does not know the AWS"),
        (
            *("SignatureDoesNotMatch", "Signature expired: 20200101T000000Z is now earlier", 403),
            *(QueueUnavailableError, "clock is wrong"),
        ),
        ("RequestExpired", "too old", 400, QueueUnavailableError, "clock is wrong"),
        ("ExpiredToken", "expired", 403, QueueUnavailableError, "have expired: renew them"),
        ("RequestThrottled", "slower", 403, QueueUnavailableError, "slower"),
        ("KmsThrottled", "slower", 400, QueueUnavailableError, "slower"),
        ("ServiceUnavailable", "not now", 503, QueueUnavailableError, "not now"),
        ("OverLimit", "too many", 403, QueueUnavailableError, "too many"),
        ("UnsupportedOperation", "can\nnot", 400, QueueRefusedError, "sqs:SendMessage: can not"),
    ],
)
def test_an_error_says_in_a_line_what_is_wrong(
    code: str, said: str, status: int, kind: type[Exception], words: str
) -> None:
    with SqsAnswers(code=code, said=said, status=status) as server:
        with pytest.raises(kind) as caught:
            at(server).send("x")
        line = str(caught.value)
        assert words in line
        assert line.startswith(f"sqs://q ({server.endpoint}, eu-west-1)")
        assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("ReceiptHandleIsInvalid", "The input receipt handle is invalid."),
        ("AWS.SimpleQueueService.MessageNotInflight", "not in flight"),
        (
            "InvalidParameterValue",
            "Value AQEB for parameter ReceiptHandle is invalid. "
            "Reason: The receipt handle has expired.",
        ),
    ],
)
def test_a_receipt_that_sqs_calls_expired_changes_nothing(code: str, said: str) -> None:
    with SqsAnswers(code=code, said=said) as server:
        queue = at(server)
        queue.hide("AQEB", 5)
        queue.delete("AQEB")
        queue.reject(Message("x", "AQEB", 1), "bad")
        assert "SendMessage" not in server.calls


def test_a_server_that_is_away_is_an_outage() -> None:
    with SqsAnswers() as server:
        queue = at(server)
    for call in CALLS.values():
        with pytest.raises(QueueUnavailableError, match="does not answer"):
            call(queue)


def test_credentials_are_looked_for_again(queue: ListedQueue) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(variable)
        with pytest.raises(QueueUnavailableError, match="no AWS credentials found: give"):
            queue.send("x")
    queue.send("x")


def test_no_region_is_named() -> None:
    with pytest.raises(QueueRefusedError, match="no region is known: set sqs_region"):
        SqsQueue("q", "default", CLOCK).send("x")


# Settings


@pytest.mark.parametrize(
    "url",
    ["sqs://", "sqs://a/b", "sqs://a.fifo", "sqs://{user}", "sqs:///a", "sqs://" + "a" * 76],
)
def test_a_name_that_no_queue_can_have_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^queue: .* is no queue of SQS: use sqs://NAME"):
        load_config(None, queue=url)


@pytest.mark.parametrize("url", ["localhost:9324", "ftp://x", "http://"])
def test_an_endpoint_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^sqs_endpoint: .* is no endpoint: use https://HOST"):
        load_config(None, sqs_endpoint=url)


def test_a_queue_without_the_groups_name_is_that_of_one_group(moto: Moto, name: str) -> None:
    make_queue(moto, name, CLOCK, "gpu")
    engine = {"sqs_endpoint": moto.endpoint, "sqs_region": moto.region}
    config = load_config(None, queue=f"sqs://{name}", group="gpu", **engine)
    open_queue(config, "gpu").send("x")
    with pytest.raises(QueueRefusedError, match="of group 'gpu' alone, not of 'cpu'"):
        open_queue(config, "cpu")


def test_the_doctor_sends_nothing_that_agents_would_hear(moto: Moto, name: str) -> None:
    make_queue(moto, name + "-{group}", CLOCK, "gpu")
    engine = {"sqs_endpoint": moto.endpoint, "sqs_region": moto.region}
    config = load_config(None, queue=f"sqs://{name}-{{group}}", group="gpu", **engine)
    assert try_queue(config) == "0 messages wait, 0 dead letters"
    assert count(moto, f"{name}-gpu") == 0
