"""A store in an S3 bucket, through boto3.

Endpoint and credentials come from the standard AWS environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, profiles, roles)
of the process that uses the store, never from its URL, so that a store can be logged and sent to other machines. What
is transient is retried here and nowhere else: botocore's own retries are off. Credentials that expired are read anew.
A version is the object's ETag.

What the wire changes or cuts is found, and sent or read again: writes carry a CRC32 that the server checks, whole reads
are held against the server's if it keeps one (not for objects written in parts), and ranges against Content-Range. A
byte that changes inside a range is found by the hashes of whoever reads it.
"""

import builtins
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Self, TypeVar

import stamina
from botocore.exceptions import BotoCoreError, ClientError, IncompleteReadError
from botocore.parsers import ResponseParserError

from heliostat.errors import (
    InvalidUrlError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    VersionConflictError,
)
from heliostat.storage.retries import count_retry
from heliostat.storage.s3_backoff import Backoff
from heliostat.storage.s3_client import ProcessClient
from heliostat.storage.s3_errors import (
    Remedy,
    is_missing,
    is_precondition,
    is_transient,
    reason_of,
    remedy_of,
    status_of,
    storage_error,
)
from heliostat.storage.s3_multipart import PART_BYTES, MultipartUpload, cut
from heliostat.storage.store import (
    Chunks,
    ObjectInfo,
    Store,
    check_range,
    is_key,
    normalise_key,
    normalise_prefix,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

RETRY_BUDGET_S = 10.0
"""No attempt begins later than this. With the timeout of connecting, a dead endpoint is named within 15 s."""
_RANGE_NOT_SATISFIABLE = 416
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class S3Store(Store):
    """Objects of one bucket whose keys start with ``prefix/``."""

    bucket: str
    prefix: str = ""
    retry_budget_s: float = RETRY_BUDGET_S
    _client: ProcessClient = field(default_factory=ProcessClient, repr=False, compare=False)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """The store of ``s3://bucket/prefix``.

        Raises:
            InvalidUrlError: No valid bucket name, or credentials or a query in the address (they are not repeated).
        """
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if "@" in url or ":" in bucket:  # a password may hold a slash, and then lies in what looks like the prefix
            raise InvalidUrlError(
                "the S3 address holds credentials before an '@'",
                "Give s3://bucket/prefix, and credentials by the AWS environment (AWS_ACCESS_KEY_ID, profiles, roles)",
            )
        if "?" in url or "#" in url:
            raise InvalidUrlError("the S3 address holds a query or fragment", "Give s3://bucket/prefix and no more")
        if not _BUCKET.fullmatch(bucket):
            raise InvalidUrlError(
                f"{bucket!r} is no name of an S3 bucket: 3 to 63 of a-z, 0-9, dot and dash", "Give s3://bucket/prefix"
            )
        return cls(bucket, normalise_key(prefix) if prefix.strip("/") else "")

    @property
    def url(self) -> str:
        """``s3://bucket/prefix``."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """See ``Store.get``. The body's length is checked; a cut body is read again."""
        check_range(start, end)
        if start == end:
            self.size(key)  # S3 has no empty ranges, but a missing object is still an error
            return b""
        full = self._full(key)
        return self._call(key, lambda client: _read(client, self.bucket, full, start, end)[0])

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """See ``Store.get_versioned``."""
        full = self._full(key)
        return self._call(key, lambda client: _read(client, self.bucket, full))

    def size(self, key: str) -> int:
        """See ``Store.size``."""
        full = self._full(key)
        return self._call(key, lambda client: _size(client, self.bucket, full))

    def exists(self, key: str) -> bool:
        """See ``Store.exists``."""
        try:
            self.size(key)
        except ObjectNotFoundError:
            return False
        return True

    def put(self, key: str, data: bytes) -> None:
        """See ``Store.put``."""
        if len(data) > PART_BYTES:
            return self.put_chunks(key, lambda: [data])
        full = self._full(key)
        self._call(key, lambda client: client.put_object(Bucket=self.bucket, Key=full, Body=data))
        return None

    def put_chunks(self, key: str, chunks: Chunks) -> None:
        """See ``Store.put_chunks``. Holds at most eight parts of 16 MiB; only a part that fails is sent again."""
        full = self._full(key)
        pieces = cut(chunks())
        first = next(pieces, b"")
        if len(first) < PART_BYTES:
            return self.put(key, first)
        hurried = self.patient(min(self.retry_budget_s, RETRY_BUDGET_S))
        upload = MultipartUpload(self.bucket, full, partial(self._call, key), partial(hurried._call, key))
        return upload.send(chain([first], pieces))

    def create(self, key: str, data: bytes) -> str:
        """See ``Store.create``."""
        full = self._full(key)
        try:
            return self._conditionally(
                key,
                data,
                lambda client: client.put_object(Bucket=self.bucket, Key=full, Body=data, IfNoneMatch="*")["ETag"],
            )
        except _PreconditionFailed:
            raise ObjectExistsError(f"{self._name(key)} exists already", "Read it: another writer came first") from None

    def replace(self, key: str, data: bytes, version: str) -> str:
        """See ``Store.replace``."""
        full = self._full(key)
        try:
            return self._conditionally(
                key,
                data,
                lambda client: client.put_object(Bucket=self.bucket, Key=full, Body=data, IfMatch=version)["ETag"],
            )
        except (_PreconditionFailed, ObjectNotFoundError):
            raise VersionConflictError(
                f"{self._name(key)} no longer has version {version}", "Read it again and decide anew"
            ) from None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See ``Store.list``. Reads all pages first: servers that keep folders (SeaweedFS) list out of order."""
        full = f"{self.prefix}/{normalise_prefix(prefix)}".lstrip("/")
        yield from sorted(self._listed(full))

    def folders(self, prefix: str = "") -> builtins.list[str]:
        """See ``Store.folders``."""
        full = f"{self.prefix}/{normalise_prefix(prefix)}".lstrip("/")
        full = full if not full or full.endswith("/") else f"{full}/"
        found = chain.from_iterable(page.get("CommonPrefixes", []) for page in self._pages(full, "/"))
        names = (each["Prefix"].removeprefix(full).rstrip("/") for each in found)
        return sorted(name for name in names if is_key(name))

    def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        full = self._full(key)
        try:
            self._call(key, lambda client: client.delete_object(Bucket=self.bucket, Key=full))
        except ObjectNotFoundError:
            return

    def sub(self, prefix: str) -> Self:
        """See ``Store.sub``; the connections are shared."""
        return type(self)(self.bucket, self._full(prefix), self.retry_budget_s, self._client)

    def patient(self, budget_s: float) -> Self:
        """See ``Store.patient``; the connections are shared."""
        return replace(self, retry_budget_s=budget_s)

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{normalise_key(key)}".lstrip("/")

    def _name(self, key: str) -> str:
        return f"{self.url}/{key}" if key else self.url

    def _call(self, key: str, action: Callable[["S3Client"], T]) -> T:
        """Do it, again while that may help and the budget lasts; name what remains."""
        refused: S3Client | None = None

        def attempt() -> T:
            nonlocal refused
            client = self._client.get(other_than=refused)
            try:
                return action(client)
            except (BotoCoreError, ClientError) as error:
                refused = client if remedy_of(error) in (Remedy.RENEW, Remedy.RENEW_ONCE) else None
                raise

        # The backoff alone decides when to stop: stamina's own timeout is looked at before a wait, not after it.
        retrying = stamina.RetryingCaller(attempts=None, timeout=None)
        try:
            with Backoff(self.retry_budget_s, f"s3://{self.bucket}", self._name(key)) as backoff:
                return retrying(backoff, attempt)
        except (BotoCoreError, ClientError) as error:
            raise self._translated(error, key) from error

    def _translated(self, error: BotoCoreError | ClientError, key: str) -> StorageError:
        return storage_error(error, self._name(key), self._client.endpoint(), self.retry_budget_s)

    def _conditionally(self, key: str, data: bytes, write: Callable[["S3Client"], str]) -> str:
        """A write with a condition, retried; when a lost answer leaves it unclear who won, the bytes tell.

        The first attempt may have been applied although its answer never came. Its repetition then fails on our own
        object, which would be taken for another writer's.
        """
        unsure = False

        def attempt(client: "S3Client") -> str:
            nonlocal unsure
            try:
                return write(client)
            except (BotoCoreError, ClientError) as error:
                if is_transient(error):
                    unsure = True
                    raise
                if not is_precondition(error):
                    raise
            found = self._present(client, key) if unsure else None
            if found is None or found[0] != data:
                raise _PreconditionFailed
            return found[1]

        return self._call(key, attempt)

    def _present(self, client: "S3Client", key: str) -> tuple[bytes, str] | None:
        try:
            return _read(client, self.bucket, self._full(key))
        except ClientError as error:
            if is_missing(error):
                return None
            raise

    def _listed(self, full_prefix: str) -> Iterator[ObjectInfo]:
        skip = len(self.prefix) + 1 if self.prefix else 0
        for page in self._pages(full_prefix):
            named = ((entry["Key"][skip:], entry["Size"]) for entry in page.get("Contents", []))
            # Markers of empty folders and what foreign tools wrote under impossible names cannot be addressed here.
            yield from (ObjectInfo(key, size_bytes) for key, size_bytes in named if is_key(key))

    def _pages(self, full_prefix: str, delimiter: str = "") -> Iterator["ListObjectsV2OutputTypeDef"]:
        token = ""
        while True:
            ask = partial(_list_page, bucket=self.bucket, prefix=full_prefix, token=token, delimiter=delimiter)
            page = self._call("", ask)
            yield page
            if not page["IsTruncated"]:
                return
            token = page["NextContinuationToken"]


class _PreconditionFailed(Exception):
    """The condition of a write did not hold."""


def _size(client: "S3Client", bucket: str, key: str) -> int:
    try:
        return client.head_object(Bucket=bucket, Key=key)["ContentLength"]
    except ClientError as error:
        if status_of(error) not in (400, 403):
            raise
        # The answer to HEAD has no body that would say whether credentials expired or are wrong; this one has.
        count_retry(reason_of(error))
        response = client.get_object(Bucket=bucket, Key=key)
        response["Body"].close()
        return response["ContentLength"]


def _read(client: "S3Client", bucket: str, key: str, start: int = 0, end: int | None = None) -> tuple[bytes, str]:
    """Bytes [start, end) and the ETag."""
    try:
        if start == 0 and end is None:  # also of an empty object, which has no range at all
            response = client.get_object(Bucket=bucket, Key=key)
        else:
            span = f"bytes={start}-{'' if end is None else end - 1}"
            response = client.get_object(Bucket=bucket, Key=key, Range=span)
    except ClientError as error:
        if status_of(error) == _RANGE_NOT_SATISFIABLE:
            return b"", ""  # the range begins at or after the end
        raise
    with closing(response["Body"]) as body:
        data = body.read()
    expected = response["ContentLength"]
    if start or end is not None:
        expected = _range_size(response.get("ContentRange", ""), start, end)
    if len(data) != expected:
        raise IncompleteReadError(actual_bytes=len(data), expected_bytes=expected)
    return data, response["ETag"]


def _range_size(content_range: str, start: int, end: int | None) -> int:
    """Size of the range that was asked for, by the object's size that the answer tells; -1 if it is another range.

    Content-Length alone would be believed where something on the way set it to what it let through.
    """
    answered = _CONTENT_RANGE.fullmatch(content_range)
    if answered is None:
        return -1
    first, last, size = map(int, answered.groups())
    stop = size if end is None else min(end, size)
    return stop - start if (first, last + 1) == (start, stop) else -1


def _list_page(
    client: "S3Client", bucket: str, prefix: str, token: str, delimiter: str
) -> "ListObjectsV2OutputTypeDef":
    if token:
        page = client.list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter=delimiter, ContinuationToken=token)
    else:
        page = client.list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter=delimiter)
    if "IsTruncated" not in page:  # botocore takes a body that was cut to nothing for an answer without fields
        raise ResponseParserError("an answer without IsTruncated")
    return page
