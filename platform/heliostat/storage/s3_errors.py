"""What the failures of S3 mean: what helps against each, and which of our errors remains. Pure functions."""

from enum import Enum, auto

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigParseError,
    ConnectionError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError

from heliostat.errors import (
    ObjectNotFoundError,
    StorageError,
    StoreDeniedError,
    StoreFailedError,
    StoreUnreachableError,
)


class Remedy(Enum):
    """What may help against a failure."""

    WAIT = auto()
    """Time. The request may also have been applied: its outcome is unknown."""
    RENEW = auto()
    """Credentials that are read anew, now or when whoever renews them has done so."""
    RENEW_ONCE = auto()
    """Credentials that are read anew, if they were replaced a moment ago; they are refused for good otherwise."""
    NONE = auto()


_WAIT = (ConnectionError, FlexibleChecksumError, HTTPClientError, IncompleteReadError, ResponseParserError)
_RENEW = (CredentialRetrievalError, MetadataRetrievalError)
_RENEW_ONCE = (
    ConfigParseError,  # the credentials file, half written
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
_CODES = {
    # What the server received is not what was sent: the wire changed or cut it.
    "BadDigest": Remedy.WAIT,
    "IncompleteBody": Remedy.WAIT,
    "XAmzContentChecksumMismatch": Remedy.WAIT,
    "XAmzContentSHA256Mismatch": Remedy.WAIT,
    "ConditionalRequestConflict": Remedy.WAIT,  # 409: two conditional writes at the same instant; AWS asks to try again
    "OperationAborted": Remedy.WAIT,
    "RequestLimitExceeded": Remedy.WAIT,
    "RequestTimeout": Remedy.WAIT,
    "SlowDown": Remedy.WAIT,
    "Throttling": Remedy.WAIT,
    "ThrottlingException": Remedy.WAIT,
    "TooManyRequestsException": Remedy.WAIT,
    # Signed too long ago: the process or its machine slept, or its clock is wrong until it is set again.
    "RequestExpired": Remedy.WAIT,
    "RequestTimeTooSkewed": Remedy.WAIT,
    "ExpiredToken": Remedy.RENEW,
    "ExpiredTokenException": Remedy.RENEW,
    "InvalidToken": Remedy.RENEW,
    "TokenRefreshRequired": Remedy.RENEW,
    "AuthorizationHeaderMalformed": Remedy.RENEW_ONCE,
}
_CLOCK_CODES = {"RequestExpired", "RequestTimeTooSkewed"}


def status_of(error: ClientError) -> int:
    """HTTP status of the answer."""
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def code_of(error: ClientError) -> str:
    """S3's error code (``NoSuchKey``), or the HTTP status as text where the answer had no body (HEAD)."""
    return error.response["Error"]["Code"]


def reason_of(error: Exception) -> str:
    """S3's error code, or the class of an exception: what may be repeated without giving away a secret."""
    return code_of(error) if isinstance(error, ClientError) else type(error).__name__


def remedy_of(error: BaseException) -> Remedy:
    """What may help against it."""
    if isinstance(error, ClientError):
        return _CODES.get(code_of(error)) or _remedy_of_status(status_of(error))
    if isinstance(error, _WAIT):
        return Remedy.WAIT
    if isinstance(error, _RENEW):
        return Remedy.RENEW
    return Remedy.RENEW_ONCE if isinstance(error, _RENEW_ONCE) else Remedy.NONE


def _remedy_of_status(status: int) -> Remedy:
    if status == 501:  # a server without conditional writes will not learn them
        return Remedy.NONE
    if status >= 500 or status == 429:
        return Remedy.WAIT
    return Remedy.RENEW_ONCE if status in (401, 403) else Remedy.NONE


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later. It may also have been applied: its outcome is unknown."""
    return remedy_of(error) is Remedy.WAIT


def is_precondition(error: Exception) -> bool:
    """Whether the condition of a write did not hold."""
    return isinstance(error, ClientError) and status_of(error) == 412


def is_missing(error: ClientError) -> bool:
    """Whether the object (not the bucket, nor a multipart upload) is not there."""
    return status_of(error) == 404 and code_of(error) not in ("NoSuchBucket", "NoSuchUpload")


def storage_error(error: BotoCoreError | ClientError, name: str, endpoint: str, retry_budget_s: float) -> StorageError:
    """Our error for one that retrying did not cure.

    Only S3's code enters the message, never its text, which may repeat parts of the request.

    Args:
        error: What boto3 raised.
        name: ``s3://bucket/key``.
        endpoint: Host and port.
        retry_budget_s: How long it was tried, in seconds.
    """
    reason = reason_of(error)
    where = f"{name} at {endpoint}"
    if reason in _CLOCK_CODES:
        return StoreDeniedError(
            f"{where} finds the time of the requests too far from its own ({reason})", "Set this machine's clock"
        )
    remedy = remedy_of(error)
    if remedy is Remedy.WAIT:
        return StoreUnreachableError(
            f"{where} gave no answer within {retry_budget_s:g} s of retrying ({reason})",
            "Check AWS_ENDPOINT_URL, the network and the server",
        )
    if remedy is Remedy.RENEW:
        return StoreDeniedError(
            f"{where} does not accept the credentials ({reason}), and none newer came within {retry_budget_s:g} s",
            "Renew them in the environment, the credentials file or the role",
        )
    if remedy is Remedy.RENEW_ONCE:
        return StoreDeniedError(
            f"{where} does not accept the credentials ({reason})",
            "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or the role, and the bucket's policy",
        )
    if isinstance(error, ClientError) and code_of(error) == "NoSuchBucket":
        return StoreFailedError(f"{where}: there is no such bucket", "Create it, or correct the address")
    if isinstance(error, ClientError) and is_missing(error):
        return ObjectNotFoundError(f"there is no object {where}", "Check the name")
    return StoreFailedError(f"{where} failed ({reason})", "Check the server and what it supports")
