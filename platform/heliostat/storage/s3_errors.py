"""What the failures of S3 mean: which may pass, and which of our errors the others are. Pure functions."""

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
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

_PASSING = (ConnectionError, HTTPClientError, IncompleteReadError, ResponseParserError)
_PASSING_CODES = {
    "ConditionalRequestConflict",  # 409: two conditional writes at the same instant; AWS asks to try again
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
_DENIED = (
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
)
_DENIED_CODES = {"AuthorizationHeaderMalformed", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}


def status_of(error: ClientError) -> int:
    """HTTP status of the answer."""
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def code_of(error: ClientError) -> str:
    """S3's error code (``NoSuchKey``), or the HTTP status as text where the answer had no body (HEAD)."""
    return error.response["Error"]["Code"]


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later. It may also have been applied: its outcome is unknown."""
    if isinstance(error, ClientError):
        status = status_of(error)
        not_implemented = status == 501  # a server without conditional writes will not learn them
        return (status >= 500 and not not_implemented) or status == 429 or code_of(error) in _PASSING_CODES
    return isinstance(error, _PASSING)


def is_precondition(error: Exception) -> bool:
    """Whether the condition of a write did not hold."""
    return isinstance(error, ClientError) and status_of(error) == 412


def is_missing(error: ClientError) -> bool:
    """Whether the object (not the bucket) is not there."""
    return status_of(error) == 404 and code_of(error) != "NoSuchBucket"


def storage_error(error: BotoCoreError | ClientError, name: str, endpoint: str, retry_budget_s: float) -> StorageError:
    """Our error for one that retrying did not cure.

    Only S3's code enters the message, never its text, which may repeat parts of the request.

    Args:
        error: What boto3 raised.
        name: ``s3://bucket/key``.
        endpoint: Host and port.
        retry_budget_s: How long it was tried, in seconds.
    """
    reason = code_of(error) if isinstance(error, ClientError) else type(error).__name__
    where = f"{name} at {endpoint}"
    if is_transient(error):
        return StoreUnreachableError(
            f"{where} gave no answer within {retry_budget_s:g} s of retrying ({reason})",
            "Check AWS_ENDPOINT_URL, the network and the server",
        )
    if isinstance(error, _DENIED) or _is_denied(error):
        return StoreDeniedError(
            f"{where} does not accept the credentials ({reason})",
            "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or the role, and the bucket's policy",
        )
    if isinstance(error, ClientError) and code_of(error) == "NoSuchBucket":
        return StoreFailedError(f"{where}: there is no such bucket", "Create it, or correct the address")
    if isinstance(error, ClientError) and is_missing(error):
        return ObjectNotFoundError(f"there is no object {where}", "Check the name")
    return StoreFailedError(f"{where} failed ({reason})", "Check the server and what it supports")


def _is_denied(error: BotoCoreError | ClientError) -> bool:
    return isinstance(error, ClientError) and (status_of(error) in (401, 403) or code_of(error) in _DENIED_CODES)
