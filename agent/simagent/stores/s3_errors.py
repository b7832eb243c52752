"""What S3 and boto3 say when something fails, in the words of the store's port."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from botocore import exceptions as boto

from simagent.ports.reach import denied, skew, unread_keys, why_unreachable
from simagent.ports.store import (
    NoSpaceError,
    NotFoundError,
    PreconditionError,
    StoreError,
    StoreForbiddenError,
    StoreLockedOutError,
    StoreRefusedError,
    StoreUnavailableError,
)

NO_CONDITIONS = (
    "the endpoint has no conditional writes (If-None-Match, If-Match), which keep two agents from "
    "one task: use a store that has them, as AWS, MinIO and Ceph RGW"
)

_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
WRONG = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity"}
_REGION = {
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "TemporaryRedirect",
}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"}
# Answered with 400 to 409, and yet worth another try.
_PASSING = {
    "BadDigest",
    "IncompleteBody",
    # The list of parts was damaged on its way, or they are gone: they are sent again.
    "InvalidPart",
    "InvalidPartOrder",
    "MalformedXML",
    "NoSuchUpload",
    "OperationAborted",
    "RequestThrottled",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
# As the pages of proxies are, where S3 would have named a code.
_OF_STRANGERS = {401, 403, 404, 407}
_NO_KEYS = (boto.NoCredentialsError, boto.PartialCredentialsError)
_LOG_IN = (boto.UnauthorizedSSOTokenError, boto.SSOTokenLoadError, boto.TokenRetrievalError)
_MISTAKES = (
    boto.InvalidRegionError,
    boto.NoRegionError,
    boto.ParamValidationError,
    boto.ProfileNotFound,
    boto.UnsupportedS3ConfigurationError,
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store is, for messages."""

    bucket: str
    prefix: str
    endpoint: str | None

    def __str__(self) -> str:
        at = f" at {self.endpoint}" if self.endpoint else ""
        return f"s3://{self.bucket}/{self.prefix.rstrip('/')}{at}"


def code_of(error: Exception) -> str:
    """Give the code of an answer that tells of a failure; empty where there was none."""
    if not isinstance(error, boto.ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: Exception) -> int:
    """Give the HTTP status of an answer that tells of a failure; 0 where there was none."""
    if not isinstance(error, boto.ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def classify(
    error: Exception, place: Place, key: str = "", *, conditional: bool = False
) -> StoreError:
    """Make of what boto3 raised what the port promises; ``key`` is that of the object."""
    if isinstance(error, boto.ClientError):
        return _answered(error, place, key, conditional=conditional)
    if isinstance(error, RecursionError):
        return StoreUnavailableError(
            f"{place}: what answers there sends each call elsewhere: check the network, "
            "s3_endpoint and s3_region"
        )
    said = " ".join(str(error).split())
    if isinstance(error, _NO_KEYS):
        return StoreLockedOutError(
            f"{place}: no credentials found{unread_keys(os.environ)}: give this machine a role, or "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if isinstance(error, _LOG_IN):
        return StoreLockedOutError(f"{place}: the login is over, log in again: {said}")
    if isinstance(error, _MISTAKES):
        return StoreRefusedError(f"{place}: {said}")
    host = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url", ""))).netloc
    why = why_unreachable(error, host or "the server", trust="s3_ca_bundle")
    if isinstance(error, boto.SSLError):
        why = why or f"a CA of your own goes into s3_ca_bundle: {said}"
        return StoreUnavailableError(f"{place}: no trusted connection: {why}")
    if isinstance(error, boto.FlexibleChecksumError):
        return StoreUnavailableError(f"{place}: {key} did not arrive as it was stored: {said}")
    return StoreUnavailableError(f"{place} does not answer: {why or said}")


def stranger(place: Place) -> StoreError:
    """Make the error of an answer that is not S3's."""
    return StoreUnavailableError(
        f"{place}: what answers there is no S3, as where a network wants a log-in: check the "
        "network, and s3_endpoint"
    )


def _answered(error: boto.ClientError, place: Place, key: str, *, conditional: bool) -> StoreError:
    code, status = code_of(error), status_of(error)
    said = " ".join(str(error.response.get("Error", {}).get("Message", "")).split()) or code
    action = f"s3:{error.operation_name}"
    if conditional and (status in (409, 412) or code == "NoSuchKey"):
        return PreconditionError(f"{key}: {said}")
    if conditional and (status == 501 or code == "NotImplemented"):
        return StoreRefusedError(f"{place}: {NO_CONDITIONS}")
    if status in _OF_STRANGERS and code in ("", str(status)) and not _has_no_page(error):
        return stranger(place)
    if code == "NoSuchBucket":
        return StoreRefusedError(
            f"{place}: there is no bucket {place.bucket}: create it (simagent setup), or name "
            "another store"
        )
    if code in ("NoSuchKey", "404"):
        return NotFoundError(f"{place}: no object {key}")
    if code in _CLOCK:
        how = skew(_headers(error), time.time())
        return StoreLockedOutError(f"{place}: {how}: {said}")
    if code in EXPIRED:
        return StoreLockedOutError(f"{place}: the credentials have expired: renew them")
    if code in WRONG:
        return StoreForbiddenError(
            f"{place} does not take the credentials, check them (AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or this machine's role): {said}"
        )
    if code in _REGION or status in (301, 307):
        region = _headers(error).get("x-amz-bucket-region") or _detail(error, "Region")
        where = region or "another region"
        return StoreRefusedError(
            f"{place}: the bucket is in {where}: set s3_region to that: {said}"
        )
    if code in _FULL or status == 507:
        return NoSpaceError(f"{place} is full: {said}")
    passing = code.removeprefix("KMS.") in _PASSING
    if passing or status in (408, 429) or (status >= 500 and status != 501):
        return StoreUnavailableError(f"{place}: {action}: {said}")
    if status == 403:
        what = denied(said, *_permission(error.operation_name, place, key))
        return StoreForbiddenError(
            f"{place}: {what}: give the credentials that permission "
            f"(simagent setup --policy ROLE prints what they need): {said}"
        )
    return StoreRefusedError(f"{place}: {action}: {said} ({code}, HTTP {status})")


def _headers(error: boto.ClientError) -> Mapping[str, str]:
    """Give the headers of the answer, their names in lower case."""
    found: Mapping[str, str] = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return found


def _has_no_page(error: boto.ClientError) -> bool:
    """Tell whether no answer to the call has a page that would name a code."""
    return str(error.operation_name).startswith("Head")


def _detail(error: boto.ClientError, name: str) -> str:
    return str(error.response.get("Error", {}).get(name, ""))


_OF_OBJECTS = {
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "DeleteObject": "s3:DeleteObject",
    # Without s3:ListBucket an object that is missing is a 403, too.
    "GetObject": "s3:GetObject (or s3:ListBucket)",
    "HeadObject": "s3:GetObject (or s3:ListBucket)",
}
_OF_BUCKETS = {
    "CreateBucket": "s3:CreateBucket",
    "GetBucketEncryption": "s3:GetEncryptionConfiguration",
    "GetBucketLifecycleConfiguration": "s3:GetLifecycleConfiguration",
    "GetBucketVersioning": "s3:GetBucketVersioning",
    "GetPublicAccessBlock": "s3:GetBucketPublicAccessBlock",
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "PutBucketEncryption": "s3:PutEncryptionConfiguration",
    "PutBucketLifecycleConfiguration": "s3:PutLifecycleConfiguration",
    "PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
}


def _permission(operation: str, place: Place, key: str) -> tuple[str, str]:
    """Name the IAM action that allows a call, and what it is about."""
    bucket = f"arn:aws:s3:::{place.bucket}"
    if operation in _OF_BUCKETS:
        return _OF_BUCKETS[operation], bucket
    return _OF_OBJECTS.get(operation, "s3:PutObject"), f"{bucket}/{key or place.prefix + '*'}"
