"""Calls to SQS by boto3: bounded in time, and their errors in the words of the queue's port."""

import os
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from boto3.session import Session
from botocore import exceptions as boto
from botocore.config import Config as BotoConfig
from botocore.parsers import ResponseParserError

from simagent.ports.queue import QueueError, QueueRefusedError, QueueUnavailableError
from simagent.ports.reach import denied, skew, unread_keys, why_unreachable

LONGEST_POLL = 20
"""Seconds: what SQS takes for a long poll at most."""

# The agent's loop waits for the answers, and systemd's watchdog for the loop: two tries, each 2 s
# to connect and 4 s to answer. A poll is tried once, for the loop makes the next; SQS answers it
# when its time is over.
_CONNECT, _ANSWER = 2, 4
_SHORT = BotoConfig(
    connect_timeout=_CONNECT,
    read_timeout=_ANSWER,
    retries={"total_max_attempts": 2, "mode": "standard"},
    max_pool_connections=16,
)
_POLL = BotoConfig(
    connect_timeout=_CONNECT,
    read_timeout=LONGEST_POLL + _ANSWER,
    retries={"total_max_attempts": 1, "mode": "standard"},
    max_pool_connections=16,
)

# boto3 trips over what is JSON and yet nothing that SQS would say.
_UNREADABLE = (ResponseParserError, AttributeError, KeyError, TypeError)
_PROOF = {"get_queue_url": {"QueueUrl"}, "send_message": {"MessageId"}}
"""What good answers of SQS's tell; other calls are made with the URL that the first one told."""

_NO_QUEUE = {"NonExistentQueue", "QueueDoesNotExist"}
_STALE = {"ReceiptHandleIsInvalid", "MessageNotInflight"}
_DENIED = {"AccessDenied", "AccessDeniedException", "AuthFailure", "InvalidSecurity"}
_UNKNOWN_KEY = {"InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId"}
_BAD_SIGNATURE = {"SignatureDoesNotMatch", "InvalidSignatureException"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException"}
_CLOCK = {"RequestExpired", "RequestTimeTooSkewed"}
_CLOCK_WORDS = ("Signature expired", "not yet current")
# As the pages of proxies are, where SQS would have named a code.
_OF_STRANGERS = {302, 303, 307, 401, 403, 404, 407}
_BUSY = {"KmsThrottled", "OverLimit", "RequestThrottled", "SlowDown", "Throttling"}
_BUSY |= {"ThrottlingException", "TooManyRequestsException"}
# Such keys are found by the next try, once they were put there or the machine's role answers.
_NO_KEYS = (boto.NoCredentialsError, boto.PartialCredentialsError)
_LOG_IN = (boto.UnauthorizedSSOTokenError, boto.SSOTokenLoadError, boto.TokenRetrievalError)
_MISTAKES = (boto.InvalidRegionError, boto.ParamValidationError, boto.ProfileNotFound)


class StaleReceiptError(QueueError):
    """The receipt is of a message that was received again, or is gone."""


class NoQueueError(QueueRefusedError):
    """There is no queue of that name, or none that may be seen."""


class SqsCalls:
    """Calls about queues of one region, by their names. Cheap to make, and safe between threads.

    ``region`` and the credentials are found as boto3 finds them where they are not given.
    Raises `QueueRefusedError` where there is no ``ca_bundle``.
    """

    def __init__(
        self, region: str | None, endpoint: str | None, ca_bundle: Path | None = None
    ) -> None:
        if ca_bundle is not None and not ca_bundle.is_file():
            raise QueueRefusedError(f"sqs_ca_bundle: there is no file {ca_bundle}")
        self._region = region
        self._endpoint = endpoint
        self._ca_bundle = ca_bundle
        self._mutex = threading.Lock()
        self._session: Session | None = None
        self._clients: dict[str, Any] = {}
        self._urls: dict[str, str] = {}

    @property
    def region(self) -> str:
        """The region that the queues are in, once one of them was asked for."""
        client = next(iter(self._clients.copy().values()), None)
        return str(client.meta.region_name if client else self._region or "")

    def on_queue(self, name: str, operation: str, **fields: object) -> dict[str, Any]:
        """Call an operation on a queue. Raises QueueError, `StaleReceiptError` among them."""
        return self.call(name, operation, QueueUrl=self.find(name), **fields)

    def find(self, name: str) -> str:
        """Give the URL of a queue. Raises QueueError."""
        url = self._urls.get(name)
        if url is None:
            url = str(self.call(name, "get_queue_url", QueueName=name)["QueueUrl"])
            self._urls[name] = url
        return url

    def call(self, name: str, operation: str, **fields: object) -> dict[str, Any]:
        """Call any operation; ``name`` is the queue to name where it fails. Raises QueueError."""
        kind = "poll" if operation == "receive_message" else "short"
        try:
            answer: dict[str, Any] = getattr(self._client(kind), operation)(**fields)
        except boto.ClientError as error:
            raise self._answered(error, name) from error
        except _UNREADABLE as error:
            raise self._foreign(name) from error
        except boto.BotoCoreError as error:
            raise self._unanswered(error, name) from error
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        told = _PROOF.get(operation, answer.keys())
        page = str(headers.get("content-type", "")).startswith("text/html")
        if page or not told <= answer.keys():
            raise self._foreign(name)
        return answer

    def _foreign(self, name: str) -> QueueError:
        return QueueUnavailableError(
            f"{self._where(name)}: what answers there is no SQS, as where a network wants a "
            "log-in: check the network, and sqs_endpoint"
        )

    def _client(self, kind: str) -> Any:
        with self._mutex:
            if kind not in self._clients:
                # A session of its own: boto3's default one is not safe between threads.
                self._session = self._session or Session()
                self._clients[kind] = self._session.client(
                    "sqs",
                    region_name=self._region,
                    endpoint_url=self._endpoint,
                    verify=str(self._ca_bundle) if self._ca_bundle else None,
                    config=_POLL if kind == "poll" else _SHORT,
                )
            return self._clients[kind]

    def _begin_anew(self) -> None:
        """Let the next call look for credentials again: a client that found none never would."""
        with self._mutex:
            self._session = None
            self._clients.clear()

    def _where(self, name: str) -> str:
        place = f"{self._endpoint}, {self.region}" if self._endpoint else self.region
        return f"sqs://{name} ({place})"

    def _answered(self, error: boto.ClientError, name: str) -> QueueError:
        """Classify what SQS said."""
        code = str(error.response.get("Error", {}).get("Code", "")).rpartition(".")[2]
        said = " ".join(str(error.response.get("Error", {}).get("Message", "")).split()) or code
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        where = self._where(name)
        if status in _OF_STRANGERS and code in ("", str(status)):
            return self._foreign(name)
        if code in _STALE or _tells_of_receipt(code, said):
            return StaleReceiptError(f"{where}: {said}")
        if code in _NO_QUEUE:
            self._urls.pop(name, None)
            return NoQueueError(
                f"{where} does not exist there, or may not be seen: create it (simagent setup), or "
                "set queue, sqs_region or sqs_endpoint to where it is"
            )
        if code in _CLOCK or any(words in said for words in _CLOCK_WORDS):
            headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            return QueueUnavailableError(f"{where}: {skew(headers, time.time())}: {said}")
        if code in _EXPIRED:
            self._begin_anew()
            return QueueUnavailableError(f"{where}: the AWS credentials have expired: renew them")
        if code in _UNKNOWN_KEY | _BAD_SIGNATURE:
            self._begin_anew()
            return QueueRefusedError(f"{where} does not know the AWS credentials: {said}")
        if code in _BUSY or status == 429 or status >= 500:
            return QueueUnavailableError(f"{where}: {said}")
        if code in _DENIED or code.lower().startswith("kms"):
            arn = f"arn:aws:sqs:{self.region}:*:{name}"
            return QueueRefusedError(
                f"{where}: {denied(said, f'sqs:{error.operation_name}', arn)}: give the AWS "
                f"credentials that permission (simagent setup --policy ROLE prints what they "
                f"need): {said}"
            )
        return QueueRefusedError(f"{where}: sqs:{error.operation_name}: {said}")

    def _unanswered(self, error: boto.BotoCoreError, name: str) -> QueueError:
        """Classify what kept boto3 from an answer."""
        said = " ".join(str(error).split())
        if isinstance(error, boto.NoRegionError):
            return QueueRefusedError(f"sqs://{name}: no region is known: set sqs_region")
        where = self._where(name)
        if isinstance(error, _NO_KEYS):
            self._begin_anew()
            return QueueUnavailableError(
                f"{where}: no AWS credentials found{unread_keys(os.environ)}: give this machine a "
                "role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        if isinstance(error, _LOG_IN):
            self._begin_anew()
            return QueueUnavailableError(f"{where}: the AWS login is over, log in again: {said}")
        if isinstance(error, _MISTAKES):
            return QueueRefusedError(f"{where}: {said}")
        host = urlsplit(str(error.kwargs.get("endpoint_url", ""))).netloc
        why = why_unreachable(error, host or "the server", trust="sqs_ca_bundle")
        if isinstance(error, boto.SSLError):
            why = why or f"a CA of your own goes into sqs_ca_bundle: {said}"
            return QueueUnavailableError(f"{where}: no trusted connection: {why}")
        return QueueUnavailableError(f"{where} does not answer: {why or said}")


def find_region(named: str | None) -> str:
    """Give the region that was named, or the one that boto3 finds. Raises `QueueRefusedError`."""
    try:
        region = named or Session().region_name
    except boto.BotoCoreError as error:
        raise QueueRefusedError(" ".join(str(error).split())) from error
    if not region:
        raise QueueRefusedError("no region is known: set sqs_region")
    return str(region)


def _tells_of_receipt(code: str, said: str) -> bool:
    """Tell whether a parameter was refused for being the receipt of a message that moved on."""
    if code not in ("InvalidParameterValue", "InvalidParameterValueException"):
        return False
    # "… for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired.", and
    # "… Message does not exist or is not available for visibility timeout change."
    return "ReceiptHandle" in said or "not available for visibility timeout" in said
