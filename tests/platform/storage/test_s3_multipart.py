"""Objects in parts, behind a proxy that harms requests."""

import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing

import boto3
import pytest
from support.fault_proxy import FaultProxy, Rule

from heliostat.errors import StoreUnreachableError
from heliostat.storage.s3 import S3Store
from heliostat.storage.s3_multipart import PART_BYTES

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("quick_retries")]
MIB = 1024 * 1024


def _pending(s3_store: S3Store) -> list[str]:
    with closing(boto3.session.Session().client("s3")) as client:
        uploads = client.list_multipart_uploads(Bucket="heliostat", Prefix=s3_store.prefix).get("Uploads", [])
        return [upload["Key"] for upload in uploads]


def test_put__of_many_parts_repeats_only_those_that_failed(
    fault_proxy: FaultProxy, s3_store: S3Store, retried: Callable[[], Counter[str]]
) -> None:
    content = random.Random(2).randbytes(2 * PART_BYTES + 1234)
    fault_proxy.plan(
        Rule("slow_down", "PUT", "partNumber=2", times=2),
        Rule("flip_upload", "PUT", "partNumber=1", amount=MIB),
        Rule("lost_answer", "PUT", "partNumber=3"),
        Rule("cut_body", "POST", "uploads", amount=0),
        Rule("lost_answer", "POST", "uploadId"),
        Rule("no_upload", "POST", "uploadId", skip=1),  # as S3 may answer to the repetition
    )
    s3_store.put("k", content)
    assert s3_store.get("k") == content
    assert fault_proxy.faults == {"slow_down": 2, "flip_upload": 1, "lost_answer": 2, "cut_body": 1, "no_upload": 1}
    assert sum(retried().values()) == 6
    assert sum(seen.method == "PUT" for seen in fault_proxy.requests) == 3 + 4


def test_put__of_many_parts_that_fails_for_good_leaves_nothing_behind(
    fault_proxy: FaultProxy, s3_store: S3Store
) -> None:
    fault_proxy.plan(Rule("slow_down", "PUT", "partNumber=2", times=None), Rule("slow_down", "DELETE", times=3))
    with pytest.raises(StoreUnreachableError):
        s3_store.patient(0.5).put("k", bytes(2 * PART_BYTES))
    assert fault_proxy.faults["slow_down"] > 4
    assert not s3_store.exists("k")
    assert _pending(s3_store) == []


def test_put_chunks__holds_a_few_parts_in_memory(fault_proxy: FaultProxy, s3_store: S3Store) -> None:
    def chunks() -> Iterator[bytes]:
        for number in range(10 * 16):
            yield bytes([number]) * MIB

    s3_store.put("k", b"the client is in memory from now on")
    fault_proxy.plan(Rule("slow_down", "PUT", "partNumber", times=8))
    tracemalloc.start()
    try:
        s3_store.put_chunks("k", chunks)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert s3_store.size("k") == 10 * PART_BYTES
    assert s3_store.get("k", 37 * MIB, 37 * MIB + 3) == bytes([37]) * 3
    assert peak < 8 * PART_BYTES
