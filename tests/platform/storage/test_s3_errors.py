import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    FlexibleChecksumError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    ProfileNotFound,
    ReadTimeoutError,
    ResponseStreamingError,
)

from heliostat.errors import StorageError, StoreDeniedError, StoreFailedError, StoreUnreachableError
from heliostat.storage.s3_errors import Remedy, is_missing, reason_of, remedy_of, storage_error


def _answer(status: int, code: str) -> ClientError:
    response = {"Error": {"Code": code, "Message": "canary"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "GetObject")  # type: ignore[arg-type]


WAIT, RENEW, RENEW_ONCE, NONE = Remedy.WAIT, Remedy.RENEW, Remedy.RENEW_ONCE, Remedy.NONE
ANSWERS = [
    (500, "InternalError", WAIT, StoreUnreachableError),
    (502, "502", WAIT, StoreUnreachableError),
    (503, "SlowDown", WAIT, StoreUnreachableError),
    (503, "503", WAIT, StoreUnreachableError),
    (504, "504", WAIT, StoreUnreachableError),
    (429, "TooManyRequests", WAIT, StoreUnreachableError),
    (400, "RequestTimeout", WAIT, StoreUnreachableError),
    (400, "BadDigest", WAIT, StoreUnreachableError),
    (400, "IncompleteBody", WAIT, StoreUnreachableError),
    (400, "XAmzContentSHA256Mismatch", WAIT, StoreUnreachableError),
    (409, "ConditionalRequestConflict", WAIT, StoreUnreachableError),
    (403, "RequestTimeTooSkewed", WAIT, StoreDeniedError),
    (400, "RequestExpired", WAIT, StoreDeniedError),
    (400, "ExpiredToken", RENEW, StoreDeniedError),
    (403, "ExpiredToken", RENEW, StoreDeniedError),
    (403, "ExpiredTokenException", RENEW, StoreDeniedError),
    (400, "InvalidToken", RENEW, StoreDeniedError),
    (400, "TokenRefreshRequired", RENEW, StoreDeniedError),
    (403, "AccessDenied", RENEW_ONCE, StoreDeniedError),
    (403, "InvalidAccessKeyId", RENEW_ONCE, StoreDeniedError),
    (403, "SignatureDoesNotMatch", RENEW_ONCE, StoreDeniedError),
    (401, "401", RENEW_ONCE, StoreDeniedError),
    (400, "AuthorizationHeaderMalformed", RENEW_ONCE, StoreDeniedError),
    (501, "NotImplemented", NONE, StoreFailedError),
    (400, "InvalidArgument", NONE, StoreFailedError),
    (412, "PreconditionFailed", NONE, StoreFailedError),
    (404, "NoSuchBucket", NONE, StoreFailedError),
    (404, "NoSuchUpload", NONE, StoreFailedError),
]


@pytest.mark.parametrize(("status", "code", "remedy", "named"), ANSWERS)
def test_answers__have_a_remedy_and_a_name(status: int, code: str, remedy: Remedy, named: type[StorageError]) -> None:
    error = _answer(status, code)
    assert remedy_of(error) is remedy
    ours = storage_error(error, "s3://b/k", "host:1", 10)
    assert type(ours) is named
    assert "s3://b/k at host:1" in str(ours)
    assert "canary" not in str(ours)  # the server's text may repeat parts of the request


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (EndpointConnectionError(endpoint_url="http://h"), WAIT),  # refused, and names that do not resolve
        (ConnectTimeoutError(endpoint_url="http://h"), WAIT),
        (ReadTimeoutError(endpoint_url="http://h"), WAIT),
        (ResponseStreamingError(error="cut"), WAIT),
        (IncompleteReadError(actual_bytes=1, expected_bytes=2), WAIT),
        (FlexibleChecksumError(error_msg="crc"), WAIT),
        (CredentialRetrievalError(provider="role", error_msg="down"), RENEW),
        (NoCredentialsError(), RENEW_ONCE),
        (ProfileNotFound(profile="p"), RENEW_ONCE),
        (ParamValidationError(report=""), NONE),
        (ZeroDivisionError(), NONE),
    ],
)
def test_exceptions__have_a_remedy(error: BotoCoreError, remedy: Remedy) -> None:
    assert remedy_of(error) is remedy


def test_reason_of__is_a_code_or_a_class() -> None:
    assert reason_of(_answer(503, "SlowDown")) == "SlowDown"
    assert reason_of(NoCredentialsError()) == "NoCredentialsError"


def test_is_missing__means_the_object() -> None:
    assert is_missing(_answer(404, "NoSuchKey"))
    assert is_missing(_answer(404, "404"))
    assert not is_missing(_answer(404, "NoSuchBucket"))
    assert not is_missing(_answer(404, "NoSuchUpload"))
