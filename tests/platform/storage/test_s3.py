import pickle
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import boto3
import pytest

from heliostat.errors import (
    InvalidUrlError,
    StorageError,
    StoreDeniedError,
    StoreFailedError,
    StoreUnreachableError,
)
from heliostat.storage import Store, open_store
from heliostat.storage.s3 import S3Store, _range_size

pytestmark = pytest.mark.s3
SECRET = "heliostat-canary-secret"


@pytest.fixture
def store(s3_root: str) -> Store:
    return open_store(s3_root)


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("s3://", "no name of an S3 bucket"),
        ("s3://ab", "no name of an S3 bucket"),
        ("s3://Upper_Case/x", "no name of an S3 bucket"),
        ("s3://key:canary@bucket/prefix", "holds credentials"),
        ("s3://bucket/prefix?X-Amz-Signature=canary", "query or fragment"),
    ],
)
def test_from_url__refuses_and_never_repeats_credentials(url: str, fault: str) -> None:
    with pytest.raises(InvalidUrlError, match=f"HS-STOR-006.*{fault}") as caught:
        open_store(url)
    assert "canary" not in str(caught.value)


def test_from_url__normalises_the_prefix() -> None:
    assert open_store("s3://bucket").url == "s3://bucket"
    assert open_store("s3://bucket/").url == "s3://bucket"
    assert open_store("s3://bucket/a//b/").url == "s3://bucket/a/b"


def _one_line(error: StorageError) -> str:
    assert "\n" not in str(error)
    assert SECRET not in str(error)
    return str(error)


def test_store__names_an_endpoint_that_refuses_connections(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreUnreachableError) as caught:
        S3Store("bucket", retry_budget_s=0.5).get("k")
    assert "HS-STOR-004: s3://bucket/k at 127.0.0.1:9 gave no answer within 0.5 s" in _one_line(caught.value)


def test_store__names_a_silent_endpoint_within_fifteen_seconds(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst case: a full backlog drops every attempt to connect, so that each takes the whole timeout."""
    with ExitStack() as open_sockets:
        silent = open_sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = open_sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(StoreUnreachableError, match="ConnectTimeoutError"):
            open_store("s3://bucket").exists("k")
        assert time.monotonic() - started < 15


@pytest.mark.parametrize("endpoint", ["not an address", "http://user:canary@127.0.0.1:9", "127.0.0.1:9"])
def test_store__names_an_impossible_endpoint(s3_root: str, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(InvalidUrlError, match="AWS_ENDPOINT_URL") as caught:
        open_store("s3://bucket").get("k")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "nobody"), ("AWS_SECRET_ACCESS_KEY", None)],
)
def test_store__names_credentials_that_are_wrong_or_missing(
    store: Store, monkeypatch: pytest.MonkeyPatch, variable: str, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    started = time.monotonic()
    for act in (lambda: store.get("k"), lambda: store.put("k", b""), lambda: list(store.list())):
        with pytest.raises(StoreDeniedError) as caught:
            act()
        assert "HS-STOR-005: s3://heliostat/" in _one_line(caught.value)
    assert time.monotonic() - started < 5  # a wrong password does not become right by waiting


def test_store__names_a_missing_bucket(s3_root: str) -> None:
    store = open_store("s3://no-such-bucket/x")
    for act in (lambda: store.get("k"), lambda: store.put("k", b""), lambda: list(store.list())):
        with pytest.raises(StoreFailedError, match="there is no such bucket") as caught:
            act()
        assert "s3://no-such-bucket" in _one_line(caught.value)


def test_put_chunks__that_fail_leave_no_parts_behind(s3_root: str, s3_server: str, store: Store) -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(17 * 1024 * 1024)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.put_chunks("k", broken)
    with closing(boto3.session.Session().client("s3")) as client:
        prefix = s3_root.removeprefix("s3://heliostat/")
        assert not client.list_multipart_uploads(Bucket="heliostat", Prefix=prefix).get("Uploads")


def test_store__pickles_without_connections_or_credentials(store: Store) -> None:
    store.put("k", b"v")
    pickled = pickle.dumps(store)
    assert SECRET.encode() not in pickled
    assert pickle.loads(pickled).get("k") == b"v"


def test_list__skips_keys_that_only_foreign_tools_could_write(store: Store, s3_root: str) -> None:
    store.put("good", b"")
    with closing(boto3.session.Session().client("s3")) as client:
        client.put_object(Bucket="heliostat", Key=f"{s3_root.removeprefix('s3://heliostat/')}/folder/", Body=b"")
    assert [info.key for info in store.list()] == ["good"]


@pytest.mark.parametrize(
    ("content_range", "start", "end", "size"),
    [
        ("bytes 0-9/100", 0, 10, 10),
        ("bytes 90-99/100", 90, 200, 10),  # cut off at the object's end
        ("bytes 90-99/100", 90, None, 10),
        ("bytes 0-99/100", 0, 10, -1),  # more than was asked for
        ("bytes 0-8/100", 0, 10, -1),
        ("bytes 1-9/100", 0, 10, -1),
        ("bytes 90-95/100", 90, None, -1),
        ("bytes 0-9/*", 0, 10, -1),
        ("", 0, 10, -1),  # the range was ignored
    ],
)
def test_range_size__believes_only_the_range_that_was_asked_for(
    content_range: str, start: int, end: int | None, size: int
) -> None:
    assert _range_size(content_range, start, end) == size
