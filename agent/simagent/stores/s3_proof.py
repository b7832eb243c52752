"""Finding out, by trying, what a server does with the checksums that it is sent."""

from contextlib import suppress

from simagent.ports.store import StoreError
from simagent.stores.s3_calls import S3Calls, checked
from simagent.stores.s3_errors import code_of

_SENT, _OTHER = b"1", b"2"
_MISMATCH = {"BadDigest", "XAmzContentChecksumMismatch"}


def checks_contents(calls: S3Calls, name: str) -> bool:
    """Tell whether the server refuses what differs from its checksum, whole objects and parts.

    There are servers that ignore it. ``name`` is of an object that may be written over. Whatever
    else is answered is no proof; raises nothing.
    """
    try:
        whole = _refuses(calls, "put_object", name, **calls.written())
        return whole and _refuses_part(calls, name)
    except StoreError:
        return False


def _refuses_part(calls: S3Calls, name: str) -> bool:
    made = calls.once("create_multipart_upload", name, ChecksumAlgorithm="CRC32", **calls.written())
    try:
        return _refuses(calls, "upload_part", name, UploadId=made["UploadId"], PartNumber=1)
    finally:
        with suppress(StoreError):
            calls.again("abort_multipart_upload", name, UploadId=made["UploadId"])


def _refuses(calls: S3Calls, operation: str, name: str, **fields: object) -> bool:
    try:
        calls.once(operation, name, Body=_SENT, **checked(_OTHER), **fields)
    except StoreError as error:
        return isinstance(error.__cause__, Exception) and code_of(error.__cause__) in _MISMATCH
    return False
