"""Makes the bucket of a fleet's store, and what keeps it safe and clean."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from simagent.ports.setup import Finding, Way
from simagent.ports.store import NotFoundError, StoreError, StoreRefusedError
from simagent.stores.s3 import place_of
from simagent.stores.s3_calls import Access, S3Calls, connect
from simagent.stores.s3_errors import code_of, status_of

ABORT_AFTER = 7
"""Days until the parts of an upload that nobody completed are removed."""

_RULE = "simagent-incomplete-uploads"
_BLOCKED = {
    "BlockPublicAcls": True,
    "IgnorePublicAcls": True,
    "BlockPublicPolicy": True,
    "RestrictPublicBuckets": True,
}
_NOT_SET = {
    "NoSuchLifecycleConfiguration",
    "NoSuchPublicAccessBlockConfiguration",
    "ServerSideEncryptionConfigurationNotFoundError",
}
_UNKNOWN = {"MethodNotAllowed", "NotImplemented"}
_NO_CONSTRAINT = (None, "us-east-1", "aws-global")
"""Regions in which buckets are made without naming it."""


class BucketSetup:
    """Makes a bucket where it is not there, and looks after what a fleet needs of it.

    A bucket that is there may be others', too: but for a rule about the store's own prefix nothing
    of it is changed unless ``way`` says so. Methods raise StoreError.
    """

    def __init__(self, url: str, access: Access, way: Way) -> None:
        place = place_of(url, access)
        self._calls = S3Calls(place, access, connect)
        self._prefix = place.prefix
        self._kms_key = access.kms_key
        self._way = way
        self._made = False
        self.there = True
        """Whether the bucket is there: not in a dry run that would have made it."""

    def findings(self) -> Iterator[Finding]:
        """Do it, and tell of each thing when it is done."""
        yield self._bucket()
        if self.there:
            for name, look in (
                ("public access", self._public_access),
                ("lifecycle", self._lifecycle),
                ("encryption", self._encryption),
                ("versioning", self._versioning),
            ):
                yield self._known(name, look)

    def _bucket(self) -> Finding:
        what = f"bucket {self._calls.place.bucket}"
        try:
            found = self._calls.once("head_bucket")
        except NotFoundError:
            return self._make(what)
        # Who gave a wrong region was led to the right one.
        return Finding(what, "ok", f"is there{_in(found.get('BucketRegion'))}")

    def _make(self, what: str) -> Finding:
        region = self._calls.region
        if self._way.dry:
            self.there = False
            return Finding(what, "planned", f"would be made{_in(region)}, closed to the public")
        where = {} if region in _NO_CONSTRAINT else {"LocationConstraint": region}
        fields: dict[str, Any] = {"CreateBucketConfiguration": where} if where else {}
        self._calls.once("create_bucket", **fields)
        self._made = True
        return Finding(what, "made", f"is new{_in(region)}")

    def _known(self, name: str, look: Callable[[], Finding]) -> Finding:
        try:
            return look()
        except StoreError as error:
            if _is_unknown(error):
                return Finding(name, "skipped", "the server has no such setting")
            raise

    def _public_access(self) -> Finding:
        set_ = self._setting("get_public_access_block", "PublicAccessBlockConfiguration")
        return self._settle(
            "public access",
            right=all(set_.get(name) for name in _BLOCKED),
            good="is blocked",
            bad="is not blocked by the bucket's own settings",
            mend=partial(
                self._calls.once,
                "put_public_access_block",
                PublicAccessBlockConfiguration=_BLOCKED,
            ),
        )

    def _encryption(self) -> Finding:
        found = self._setting("get_bucket_encryption", "ServerSideEncryptionConfiguration")
        rules = found.get("Rules") or [{}]
        now = rules[0].get("ApplyServerSideEncryptionByDefault", {})
        key = now.get("KMSMasterKeyID")
        if self._kms_key is None:
            text = (
                f"with the key {key}: give all roles that key" if key else "as S3 does by default"
            )
            return Finding("encryption", "note" if key else "ok", text)
        default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": self._kms_key}
        rule = {"ApplyServerSideEncryptionByDefault": default, "BucketKeyEnabled": True}
        return self._settle(
            "encryption",
            right=key == self._kms_key,
            good=f"with {self._kms_key}",
            bad=f"of what others put there is not with {self._kms_key}",
            mend=partial(
                self._calls.once,
                "put_bucket_encryption",
                ServerSideEncryptionConfiguration={"Rules": [rule]},
            ),
        )

    def _settle(
        self, what: str, *, right: bool, good: str, bad: str, mend: Callable[[], object]
    ) -> Finding:
        """Leave a setting, or mend it, as is asked for."""
        if right:
            return Finding(what, "ok", good)
        if not (self._made or self._way.update):
            return Finding(what, "differs", bad)
        if self._way.dry:
            return Finding(what, "planned", f"{bad}: would be")
        mend()
        return Finding(what, "made" if self._made else "changed", good)

    def _lifecycle(self) -> Finding:
        found = self._answer("get_bucket_lifecycle_configuration")
        rules = list(found.get("Rules", ()))
        for rule in rules:
            days = rule.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation")
            if days and rule.get("Status") == "Enabled" and self._covers(rule):
                text = f"incomplete uploads are removed after {days} days, by {rule.get('ID')}"
                return Finding("lifecycle", "ok", text)
        text = f"incomplete uploads are removed after {ABORT_AFTER} days"
        if self._way.dry:
            return Finding("lifecycle", "planned", f"a rule would be added: {text}")
        rule = {
            "ID": _RULE,
            "Status": "Enabled",
            "Filter": {"Prefix": self._prefix},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": ABORT_AFTER},
        }
        # All rules are written at once: those that were there have to be among them.
        kept = [other for other in rules if other.get("ID") != _RULE]
        size = found.get("TransitionDefaultMinimumObjectSize")
        more = {"TransitionDefaultMinimumObjectSize": size} if size else {}
        self._calls.once(
            "put_bucket_lifecycle_configuration",
            LifecycleConfiguration={"Rules": [*kept, rule]},
            **more,
        )
        return Finding("lifecycle", "made", f"a rule: {text}")

    def _covers(self, rule: Mapping[str, Any]) -> bool:
        chosen = rule.get("Filter", {})
        if set(chosen) - {"Prefix"}:
            return False  # chosen by tags or sizes, which incomplete uploads do not have
        return self._prefix.startswith(chosen.get("Prefix", rule.get("Prefix", "")))

    def _versioning(self) -> Finding:
        if self._answer("get_bucket_versioning").get("Status") != "Enabled":
            return Finding("versioning", "ok", "is off: what is overwritten is not kept")
        text = (
            "is on: each renewal of a lease leaves an old version of an object, which is paid for "
            "until a rule of the bucket removes it (NoncurrentVersionExpiration)"
        )
        return Finding("versioning", "note", text)

    def _setting(self, operation: str, name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._answer(operation).get(name, {})
        return found

    def _answer(self, operation: str) -> Mapping[str, Any]:
        """Read a setting of the bucket; nothing where it was never set."""
        try:
            answer: Mapping[str, Any] = self._calls.once(operation)
        except StoreRefusedError as error:
            if isinstance(error.__cause__, Exception) and code_of(error.__cause__) in _NOT_SET:
                return {}
            raise
        return answer


def _in(region: str | None) -> str:
    return f", in {region}" if region else ""


def _is_unknown(error: StoreError) -> bool:
    cause = error.__cause__
    return isinstance(cause, Exception) and (
        code_of(cause) in _UNKNOWN or status_of(cause) in (405, 501)
    )
