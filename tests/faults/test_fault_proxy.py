"""The proxy itself: what it does not harm passes unchanged, and what it harms is drawn, counted and gone at its end."""

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import boto3
import pytest
import urllib3
from support.fault_proxy import Chances, FaultProxy, Kind, Rule, drawn, harmed

from heliostat.errors import StoreUnreachableError
from heliostat.storage import open_store
from heliostat.storage.s3 import S3Store


def test_drawn__is_a_function_of_seed_and_number_with_the_given_frequencies() -> None:
    of: dict[Kind, float] = {"500": 0.1, "cut_body": 0.3}
    first = [drawn(7, number, of) for number in range(5000)]
    assert first == [drawn(7, number, of) for number in range(5000)]
    assert first != [drawn(8, number, of) for number in range(5000)]
    counts = Counter(first)
    assert abs(counts["500"] / 5000 - 0.1) < 0.02
    assert abs(counts["cut_body"] / 5000 - 0.3) < 0.02
    assert counts[None] == 5000 - counts["500"] - counts["cut_body"]


@pytest.mark.parametrize(
    ("kind", "amount", "body", "sent", "announced"),
    [
        (None, 1, b"abcd", b"abcd", 4),
        ("cut_body", 1, b"abcd", b"a", 4),
        ("cut_body", 99, b"abcd", b"abc", 4),  # a cut after the end would be none
        ("cut_body", 1, b"", b"", 0),
        ("long_length", 3, b"abcd", b"abcd", 7),
        ("short_length", 3, b"abcd", b"abcd", 1),
        ("short_length", 9, b"abcd", b"abcd", 0),
        ("flip", 6, b"abcd", b"abbd", 4),
        ("bad_xml", 1, b"<?xml?><a></a>", b"<?xml?>", 7),
        ("bad_xml", 1, b"abcd", b"abcd", 4),
        ("stale_list", 1, b"new", b"old", 3),
    ],
)
def test_harmed__does_what_its_kind_says(kind: Kind, amount: int, body: bytes, sent: bytes, announced: int) -> None:
    assert harmed(kind, amount, body, b"old") == (sent, announced)


@pytest.mark.s3
def test_proxy__passes_large_bodies_unchanged_and_keeps_connections(fault_proxy: FaultProxy, s3_root: str) -> None:
    content = random.Random(1).randbytes(5_000_000)
    store = open_store(s3_root)
    store.put("k", content)
    assert store.get("k") == content
    assert store.get("k", 4_000_001) == content[4_000_001:]
    assert not fault_proxy.faults
    assert [seen.method for seen in fault_proxy.requests] == ["PUT", "GET", "GET"]


@pytest.mark.s3
def test_proxy__passes_chunked_uploads(fault_proxy: FaultProxy, s3_root: str) -> None:
    pieces = [b"x" * 70_000, b"y" * 10]
    with closing(boto3.session.Session().client("s3")) as client, urllib3.PoolManager() as pool:
        url = client.generate_presigned_url("put_object", {"Bucket": "heliostat", "Key": "chunked"})
        answer = pool.request("PUT", url, body=iter(pieces), headers={"Transfer-Encoding": "chunked"}, retries=False)
        assert answer.status == 200, answer.data
        assert client.get_object(Bucket="heliostat", Key="chunked")["Body"].read() == b"".join(pieces)


@pytest.mark.s3
def test_rules__count_the_requests_that_match_them(fault_proxy: FaultProxy, s3_root: str) -> None:
    store = open_store(s3_root)
    fault_proxy.plan(Rule("slow_down", "GET", contains="/shards/", skip=2, times=1))
    for key in ("shards/a", "other/b"):
        store.put(key, b"x")
    for _ in range(2):
        store.get("shards/a")
        store.get("other/b")
    assert fault_proxy.faults == {}
    store.get("shards/a")
    assert fault_proxy.faults == {"slow_down": 1}
    assert [seen.number for seen in fault_proxy.requests if seen.fault] == [6]


@pytest.mark.s3
@pytest.mark.usefixtures("quick_retries")
def test_chances__harm_the_same_requests_again(s3_root: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def harmed_numbers() -> list[int]:
        with FaultProxy(s3_server).running() as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            proxy.plan(chances=Chances(seed=3, of={"slow_down": 0.3}, method="GET"))
            store = open_store(s3_root)
            for _ in range(20):
                store.get("k")
            return [seen.number for seen in proxy.requests if seen.fault]

    open_store(s3_root).put("k", b"v")
    first = harmed_numbers()
    assert first
    assert first == harmed_numbers()


@pytest.mark.s3
def test_refuse__ends_connections_until_accept(fault_proxy: FaultProxy, s3_root: str) -> None:
    bucket, prefix = s3_root.removeprefix("s3://").split("/")
    hurried = S3Store(bucket, prefix, retry_budget_s=0.0)
    hurried.put("k", b"v")
    fault_proxy.refuse()
    with pytest.raises(StoreUnreachableError, match="EndpointConnectionError"):
        hurried.get("k")
    fault_proxy.accept()
    assert hurried.get("k") == b"v"


@pytest.mark.s3
def test_running__leaves_nothing_behind(s3_root: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    with FaultProxy(s3_server).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.plan(Rule("latency", amount=60))
        store = S3Store("heliostat", retry_budget_s=0.0)
        with ThreadPoolExecutor(1) as pool:
            hanging = pool.submit(store.exists, "k")
            while not proxy.faults:  # until the request is inside the proxy
                time.sleep(0.01)
            proxy.refuse()
            with pytest.raises(StoreUnreachableError):
                hanging.result()
    assert set(threading.enumerate()) == before
