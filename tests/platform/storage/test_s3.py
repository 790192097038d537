import pickle
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import boto3
import pytest

from heliostat.errors import (
    InvalidUrlError,
    ObjectExistsError,
    StorageError,
    StoreDeniedError,
    StoreFailedError,
    StoreUnreachableError,
    VersionConflictError,
)
from heliostat.storage import ObjectInfo, Store, open_store
from heliostat.storage.s3 import S3Store

pytestmark = pytest.mark.s3
SECRET = "heliostat-canary-secret"


@dataclass(slots=True)
class Fault:
    """What to do to the next ``times`` requests whose first line holds ``request``."""

    request: bytes
    kind: Literal["lose_answer", "cut_body", "slow_down"]
    times: int = 1


class FaultProxy:
    """Passes TCP connections on to an S3 server and harms the answers that a test asks it to harm."""

    def __init__(self, endpoint: str) -> None:
        address = urlsplit(endpoint)
        self._upstream = (address.hostname, address.port)
        self._faults: list[Fault] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.harmed = 0
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def plan(self, *faults: Fault) -> None:
        self._faults = list(faults)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One connection. Requests and answers alternate on it, so one thread reads whole answers in between."""
        with closing(client), closing(socket.create_connection(self._upstream)) as server:
            try:
                while request := _read_message(client, server):
                    if not self._answer(request, client, server):
                        return
            except OSError:
                return  # the other side gave up, as is its right

    def _answer(self, request: bytes, client: socket.socket, server: socket.socket) -> bool:
        fault = self._take(request)
        if fault and fault.kind == "slow_down":
            body = b"<Error><Code>SlowDown</Code></Error>"
            client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            return False  # the request was not passed on
        server.sendall(request)
        answer = _read_message(server, None, body=not request.startswith(b"HEAD"))
        if fault:
            head, _, body = answer.partition(b"\r\n\r\n")
            client.sendall(head + b"\r\n\r\n" + body[: len(body) // 2] if fault.kind == "cut_body" else b"")
            return False
        client.sendall(answer)
        return True

    def _take(self, request: bytes) -> Fault | None:
        line = request.partition(b"\r\n")[0]
        for fault in self._faults:
            if fault.times and fault.request in line:
                fault.times -= 1
                self.harmed += 1
                return fault
        return None


def _read_message(source: socket.socket, waiting: socket.socket | None, body: bool = True) -> bytes:
    """One HTTP message. A client that waits for leave to send its body gets it here, not from the server."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = source.recv(65536)
        if not received:
            return b""
        data += received
    head, separator, rest = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    if fields.get(b"expect") == b"100-continue" and waiting is not None:
        source.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:"))
    while body and (
        len(rest) < int(fields.get(b"content-length", b"0"))
        or (fields.get(b"transfer-encoding") == b"chunked" and not rest.endswith(b"0\r\n\r\n"))
    ):
        rest += source.recv(65536)
    return head + separator + rest


@pytest.fixture
def proxy(s3_root: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy to the real server; stores used from now on go through it."""
    proxy = FaultProxy(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    yield proxy
    proxy.close()


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


def test_store__retries_a_server_that_asks_to_slow_down(proxy: FaultProxy, store: Store) -> None:
    proxy.plan(Fault(b"PUT", "slow_down", 2), Fault(b"GET", "slow_down", 2))
    store.put("k", b"v")
    assert store.get("k") == b"v"
    assert list(store.list()) == [ObjectInfo("k", 1)]
    assert proxy.harmed == 4


def test_store__that_is_slow_for_longer_than_the_budget_counts_as_unreachable(proxy: FaultProxy, s3_root: str) -> None:
    proxy.plan(Fault(b"GET", "slow_down", 1000))
    with pytest.raises(StoreUnreachableError, match=r"within 0\.3 s of retrying \(SlowDown\)"):
        S3Store("heliostat", "x", retry_budget_s=0.3).get("k")


def test_get__reads_a_cut_body_again(proxy: FaultProxy, store: Store) -> None:
    content = random.Random(1).randbytes(300_000)
    store.put("k", content)
    proxy.plan(Fault(b"GET", "cut_body", 2))
    assert store.get("k") == content
    proxy.plan(Fault(b"GET", "cut_body", 1))
    assert store.get("k", 1000, 250_000) == content[1000:250_000]
    assert proxy.harmed == 3


def test_create__whose_answer_was_lost_knows_that_it_won(proxy: FaultProxy, store: Store) -> None:
    proxy.plan(Fault(b"PUT", "lose_answer"))
    version = store.create("log/1", b"mine")
    assert proxy.harmed == 1
    assert store.get_versioned("log/1") == (b"mine", version)


def test_create__whose_answer_was_lost_knows_that_it_came_second(proxy: FaultProxy, store: Store) -> None:
    store.create("log/1", b"of an earlier writer")
    proxy.plan(Fault(b"PUT", "lose_answer"))
    with pytest.raises(ObjectExistsError):
        store.create("log/1", b"mine")
    assert proxy.harmed == 1
    assert store.get("log/1") == b"of an earlier writer"


def test_replace__whose_answer_was_lost_knows_who_won(proxy: FaultProxy, store: Store) -> None:
    first = store.create("pointer", b"1")
    proxy.plan(Fault(b"PUT", "lose_answer"))
    second = store.replace("pointer", b"2 by me", first)
    assert store.get_versioned("pointer") == (b"2 by me", second)
    proxy.plan(Fault(b"PUT", "lose_answer"))
    with pytest.raises(VersionConflictError):
        store.replace("pointer", b"3 by me", first)
    assert store.get("pointer") == b"2 by me"
    assert proxy.harmed == 2


def test_put_chunks__begins_again_when_a_part_fails(proxy: FaultProxy, store: Store) -> None:
    content = random.Random(2).randbytes(17 * 1024 * 1024)
    proxy.plan(Fault(b"partNumber=2", "slow_down"))
    store.put("k", content)
    assert proxy.harmed == 1
    assert store.get("k") == content


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
