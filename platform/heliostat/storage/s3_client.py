"""The boto3 client of a process: settings in one place, made when first used."""

import os
import threading
from typing import TYPE_CHECKING, TypeGuard
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from heliostat.errors import InvalidUrlError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 30.0
"""Longest silence of a connected server."""
_CONNECTIONS = 32
_CONFIG = Config(
    connect_timeout=CONNECT_TIMEOUT_S,
    read_timeout=READ_TIMEOUT_S,
    max_pool_connections=_CONNECTIONS,
    # Retries are the store's: two mechanisms would multiply.
    retries={"total_max_attempts": 1, "mode": "standard"},
)


# Held across forks, so that no child inherits it locked by a thread that only its parent has.
_making = threading.Lock()
os.register_at_fork(before=_making.acquire, after_in_parent=_making.release, after_in_child=_making.release)


class ProcessClient:
    """One client per process, shared by its threads; a pickled or forked copy makes its own."""

    def __init__(self) -> None:
        self._made: tuple[int, S3Client] | None = None

    def __reduce__(self) -> tuple[type["ProcessClient"], tuple[()]]:
        return (ProcessClient, ())

    def get(self, other_than: "S3Client | None" = None) -> "S3Client":
        """The client.

        Args:
            other_than: One whose credentials were refused. If no other thread has replaced it yet, a new one is made,
                for which credentials files, profiles and roles are read anew.

        Raises:
            InvalidUrlError: AWS_ENDPOINT_URL is not a plain address.
        """
        made = self._made
        if not _serves(made, other_than):
            with _making:
                made = self._made
                if not _serves(made, other_than):
                    made = self._made = (os.getpid(), _make_client())
        return made[1]

    def endpoint(self) -> str:
        """Host and port for messages, or what stands in for them before there is a client."""
        if self._made is None:
            return "the endpoint of the AWS environment"
        return urlsplit(self._made[1].meta.endpoint_url).netloc.rpartition("@")[2]


def _serves(made: "tuple[int, S3Client] | None", other_than: "S3Client | None") -> "TypeGuard[tuple[int, S3Client]]":
    return made is not None and made[0] == os.getpid() and made[1] is not other_than


def _make_client() -> "S3Client":
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        _refuse_credentials(os.environ.get(name, ""))
    try:
        client = boto3.session.Session().client("s3", config=_CONFIG)
    except (ValueError, BotoCoreError) as error:
        if isinstance(error, BotoCoreError):
            raise
        # botocore's own message repeats the address, which may hold a password.
        raise InvalidUrlError(
            "AWS_ENDPOINT_URL is not an address like http://host:port",
            "Correct it in the environment or the AWS profile",
        ) from None
    _refuse_credentials(client.meta.endpoint_url)  # profiles have endpoints too
    return client


def _refuse_credentials(endpoint: str) -> None:
    # Anywhere: a password may hold a slash, and then ends what looks like the host.
    if "@" in endpoint:
        raise InvalidUrlError(
            "AWS_ENDPOINT_URL holds credentials before an '@'", "Give them as AWS_ACCESS_KEY_ID and its secret"
        )
