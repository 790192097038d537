"""Large objects in parts. A part that fails is sent again, not the object; memory holds a few parts, never all."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from heliostat.errors import StorageError
from heliostat.storage.s3_errors import code_of, is_transient

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PART_BYTES = 16 * 1024 * 1024
"""S3 takes 10,000 parts: objects of 156 GiB."""
_AT_ONCE = 4

T = TypeVar("T")


class Retried(Protocol):
    """Does something with a client, again while that may help; raises ``StorageError``."""

    def __call__(self, action: Callable[["S3Client"], T]) -> T:
        """What the action returns."""


def cut(chunks: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """The same bytes in pieces of ``PART_BYTES``; the last one is shorter, and there is none of nothing.

    Pieces are ``bytes``, which botocore sends as they are; of anything else it makes a copy.
    """
    piece = bytearray()
    for chunk in chunks:
        left = memoryview(chunk).cast("B")
        while left:
            room = PART_BYTES - len(piece)
            piece += left[:room]
            left = left[room:]
            if len(piece) == PART_BYTES:
                yield bytes(piece)
                piece.clear()
    if piece:
        yield bytes(piece)


@dataclass(frozen=True, slots=True)
class MultipartUpload:
    """One object to be written in parts.

    Args:
        bucket: Its bucket.
        key: Its whole key.
        retried: Makes requests.
        retried_briefly: Makes the request that cleans up after a failure, which has taken long enough.
    """

    bucket: str
    key: str
    retried: Retried
    retried_briefly: Retried

    def send(self, pieces: Iterable[bytes]) -> None:
        """Writes the object; holds eight pieces at most. After a failure, S3 is told to forget the parts.

        An upload whose beginning got lost on the way back stays known to S3, without parts and without a price.
        """
        upload_id = self.retried(self._begin)
        try:
            with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="multipart") as pool:
                parts, size_bytes = self._send_parts(pool, upload_id, pieces)
            self._complete(upload_id, parts, size_bytes)
        except BaseException:
            with suppress(StorageError):
                self.retried_briefly(partial(self._abort, upload_id=upload_id))
            raise

    def _begin(self, client: "S3Client") -> str:
        answer = client.create_multipart_upload(Bucket=self.bucket, Key=self.key, ChecksumAlgorithm="CRC32")
        if "UploadId" not in answer:  # botocore takes a body that was cut to nothing for an answer without fields
            raise ResponseParserError("an answer without UploadId")
        return answer["UploadId"]

    def _send_parts(
        self, pool: ThreadPoolExecutor, upload_id: str, pieces: Iterable[bytes]
    ) -> tuple[list["CompletedPartTypeDef"], int]:
        running: deque[Future[CompletedPartTypeDef]] = deque()
        parts = []
        size_bytes = 0
        for number, piece in enumerate(pieces, start=1):
            size_bytes += len(piece)
            if len(running) == _AT_ONCE:
                parts.append(running.popleft().result())
            action = partial(self._send_part, upload_id=upload_id, number=number, piece=piece)
            running.append(pool.submit(self.retried, action))
        return [*parts, *(each.result() for each in running)], size_bytes

    def _send_part(self, client: "S3Client", *, upload_id: str, number: int, piece: bytes) -> "CompletedPartTypeDef":
        answer = client.upload_part(
            Bucket=self.bucket,
            Key=self.key,
            UploadId=upload_id,
            PartNumber=number,
            Body=piece,
            ChecksumAlgorithm="CRC32",
        )
        part: CompletedPartTypeDef = {"PartNumber": number, "ETag": answer["ETag"]}
        if "ChecksumCRC32" in answer:
            part["ChecksumCRC32"] = answer["ChecksumCRC32"]
        return part

    def _complete(self, upload_id: str, parts: list["CompletedPartTypeDef"], size_bytes: int) -> None:
        unsure = False

        def attempt(client: "S3Client") -> None:
            nonlocal unsure
            try:
                client.complete_multipart_upload(
                    Bucket=self.bucket, Key=self.key, UploadId=upload_id, MultipartUpload={"Parts": parts}
                )
            except (BotoCoreError, ClientError) as error:
                # An upload that is gone after an answer got lost was completed by the attempt without an answer.
                if not (unsure and _is_gone(error) and self._size(client) == size_bytes):
                    unsure = unsure or is_transient(error)
                    raise

        self.retried(attempt)

    def _size(self, client: "S3Client") -> int:
        return client.head_object(Bucket=self.bucket, Key=self.key)["ContentLength"]

    def _abort(self, client: "S3Client", *, upload_id: str) -> None:
        client.abort_multipart_upload(Bucket=self.bucket, Key=self.key, UploadId=upload_id)


def _is_gone(error: BotoCoreError | ClientError) -> bool:
    return isinstance(error, ClientError) and code_of(error) == "NoSuchUpload"
