"""The S3 store behind a proxy that harms requests: the same results as without, or an error that names the cause."""

import logging
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from support.fault_proxy import Chances, FaultProxy, Kind, Rule, weather

from heliostat.errors import (
    ObjectExistsError,
    StorageError,
    StoreUnreachableError,
    VersionConflictError,
)
from heliostat.storage import ObjectInfo, Store, open_store
from heliostat.storage.s3 import S3Store

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("quick_retries")]
MIB = 1024 * 1024


def _outcome(action: Callable[[], object]) -> object:
    try:
        return action()
    except StorageError as error:
        return type(error)


def _everything(store: Store) -> list[object]:
    """Every operation, with success and without; what each came to."""
    content = random.Random(1).randbytes(200_000)
    version = store.create("log/1", content)
    actions: list[Callable[[], object]] = [
        lambda: store.create("log/1", b"another"),
        lambda: store.put("a/b", b"old"),
        lambda: store.put("a/b", b"new"),
        lambda: store.put("a/empty", b""),
        lambda: store.put_chunks("a/chunks", lambda: [content[:7], content[7:]]),
        lambda: [store.get(key) for key in ("log/1", "a/b", "a/empty", "a/chunks")],
        lambda: [store.get("log/1", start, end) for start, end in ((0, 9), (9, 9), (7, 150_000), (199_990, None))],
        lambda: store.get("none"),
        lambda: store.get("none", 3, 4),
        lambda: (store.size("log/1"), store.exists("a/b"), store.exists("none")),
        lambda: store.get_versioned("log/1") == (content, version),
        lambda: bool(store.replace("log/1", b"replaced", version)),
        lambda: store.replace("log/1", b"too late", version),
        lambda: store.replace("never/was", b"x", version),
        lambda: list(store.list("a")),
        lambda: store.delete("a/b"),
        lambda: store.delete("a/b"),
        lambda: list(store.sub("a").list()),
        lambda: store.get("log/1"),
    ]
    return [_outcome(action) for action in actions]


@pytest.mark.parametrize("seed", range(4))
def test_store__gives_the_same_results_through_random_faults(
    seed: int, fault_proxy: FaultProxy, s3_store: S3Store, tmp_path: Path, retried: Callable[[], Counter[str]]
) -> None:
    """The folder is the reference. Half of all requests are harmed."""
    fault_proxy.plan(chances=weather(seed, share=0.5))
    local = open_store(str(tmp_path))
    for time in ("first", "second"):
        assert _everything(s3_store.sub(time).patient(120)) == _everything(local.sub(time))
    harmed = sum(fault_proxy.faults.values()) - fault_proxy.faults["latency"]
    assert harmed >= 5
    # An error that was harmed on its way is an error still: its status is enough, and nothing is repeated.
    assert 3 <= sum(retried().values()) <= harmed


READS = {"get": lambda store: store.get("k") == b"<v>" * 1000, "range": lambda store: store.get("k", 3, 6) == b"<v>"}
WRITES = {"put": lambda store: store.put("k", b"new") is None}
LISTS = {"list": lambda store: list(store.list()) == [ObjectInfo("k", 3000)]}
SIZES = {"size": lambda store: store.size("k") == 3000}
ALL = {**READS, **WRITES, **LISTS, **SIZES}


@pytest.mark.parametrize(
    ("kind", "amount", "actions", "causes"),
    [
        ("500", 0, ALL, {"InternalError", "500"}),
        ("503", 0, ALL, {"ServiceUnavailable", "503"}),
        ("slow_down", 0, ALL, {"SlowDown", "503"}),
        ("expired", 0, {**READS, **WRITES, **LISTS}, {"ExpiredToken"}),
        ("lost_answer", 0, ALL, {"ConnectionClosedError"}),
        ("cut_body", 0, READS | LISTS, {"ResponseStreamingError", "ResponseParserError"}),
        ("cut_body", 2, READS | LISTS, {"ResponseStreamingError", "500"}),
        ("long_length", 5, READS, {"ResponseStreamingError"}),
        ("short_length", 1, READS | LISTS, {"IncompleteReadError", "FlexibleChecksumError", "500"}),
        (
            "short_length",
            10_000,
            READS | LISTS,
            {"IncompleteReadError", "FlexibleChecksumError", "ResponseParserError"},
        ),
        ("bad_xml", 0, LISTS, {"500"}),
        ("flip", 1000, {"get": READS["get"]}, {"FlexibleChecksumError"}),
        ("flip_upload", 2, WRITES, {"BadDigest"}),
    ],
)
def test_store__repeats_what_was_harmed_and_counts_why(
    kind: Kind,
    amount: int,
    actions: dict[str, Callable[[Store], bool]],
    causes: set[str],
    fault_proxy: FaultProxy,
    s3_store: S3Store,
    retried: Callable[[], Counter[str]],
) -> None:
    for action in actions.values():
        s3_store.put("k", b"<v>" * 1000)
        fault_proxy.plan(Rule(kind, times=2, amount=amount))
        assert action(s3_store)
    assert fault_proxy.faults == {kind: 2 * len(actions)}
    # What a short length leaves over may reach the next request of its connection, which is repeated then as well.
    beside = {"ConnectionClosedError"} if kind == "short_length" else set()
    repeated = Counter({cause: count for cause, count in retried().items() if cause not in beside})
    assert repeated.total() == 2 * len(actions)
    assert sum(retried().values()) - repeated.total() <= fault_proxy.faults[kind]
    assert repeated.keys() <= causes


def test_store__that_is_slow_for_longer_than_the_budget_counts_as_unreachable(
    fault_proxy: FaultProxy, s3_store: S3Store
) -> None:
    fault_proxy.plan(Rule("slow_down", times=None))
    with pytest.raises(StoreUnreachableError, match=r"within 0\.3 s of retrying \(SlowDown\)"):
        s3_store.patient(0.3).get("k")


def test_list__that_is_stale_does_not_let_a_create_win_twice(fault_proxy: FaultProxy, s3_store: S3Store) -> None:
    """A stale list cannot be told from a fresh one; what must not go wrong does not depend on lists."""
    assert list(s3_store.list()) == []
    s3_store.create("log/1", b"first")
    fault_proxy.plan(Rule("stale_list", contains="list-type=2"))
    assert list(s3_store.list()) == []
    assert fault_proxy.faults == {"stale_list": 1}
    with pytest.raises(ObjectExistsError):
        s3_store.create("log/1", b"second")
    assert list(s3_store.list()) == [ObjectInfo("log/1", 5)]


def test_create__whose_answer_was_lost_knows_whether_it_won(fault_proxy: FaultProxy, s3_store: S3Store) -> None:
    fault_proxy.plan(Rule("lost_answer", "PUT"))
    version = s3_store.create("log/1", b"mine")
    assert s3_store.get_versioned("log/1") == (b"mine", version)
    fault_proxy.plan(Rule("lost_answer", "PUT"))
    with pytest.raises(ObjectExistsError):
        s3_store.create("log/1", b"of a later writer")
    assert s3_store.get("log/1") == b"mine"
    assert fault_proxy.faults == {"lost_answer": 2}


def test_replace__whose_answer_was_lost_knows_who_won(fault_proxy: FaultProxy, s3_store: S3Store) -> None:
    first = s3_store.create("pointer", b"1")
    fault_proxy.plan(Rule("lost_answer", "PUT"))
    second = s3_store.replace("pointer", b"2 by me", first)
    assert s3_store.get_versioned("pointer") == (b"2 by me", second)
    fault_proxy.plan(Rule("lost_answer", "PUT"))
    with pytest.raises(VersionConflictError):
        s3_store.replace("pointer", b"3 by me", first)
    assert s3_store.get("pointer") == b"2 by me"
    assert fault_proxy.faults == {"lost_answer": 2}


CONDITIONAL: dict[Kind, float] = {"lost_answer": 0.3, "slow_down": 0.2, "cut_body": 0.05}


@pytest.mark.parametrize("seed", range(3))
def test_create__of_racers_with_lost_answers_one_wins(seed: int, fault_proxy: FaultProxy, s3_store: S3Store) -> None:
    def race(racer: int) -> bool:
        return _outcome(lambda: s3_store.create("log/1", f"racer {racer}".encode())) is not ObjectExistsError

    fault_proxy.plan(chances=Chances(seed, CONDITIONAL))
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(16)))
    assert sum(won) == 1
    assert s3_store.get("log/1") == f"racer {won.index(True)}".encode()


def test_replace__of_racers_with_lost_answers_each_version_has_one_successor(
    fault_proxy: FaultProxy, s3_store: S3Store
) -> None:
    s3_store.put("counter", b"0 by nobody")
    fault_proxy.plan(chances=Chances(4, CONDITIONAL))

    def increment(racer: int) -> int:
        while True:
            data, version = s3_store.get_versioned("counter")
            value = int(data.split()[0]) + 1
            if _outcome(lambda: s3_store.replace("counter", f"{value} by {racer}".encode(), version)) is not (  # noqa: B023
                VersionConflictError
            ):
                return value

    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(increment, range(8)))
    assert len(set(values)) == 8  # a writer that was told of a conflict may have won a moment before: gaps are allowed
    assert int(s3_store.get("counter").split()[0]) == max(values)


def test_patient__outlives_an_outage_and_says_so_once(
    fault_proxy: FaultProxy, s3_store: S3Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("heliostat.storage.s3_backoff.STALL_S", 0.3)
    s3_store.put("k", b"v")
    fault_proxy.refuse(seconds=1.5)
    with pytest.raises(StoreUnreachableError, match="EndpointConnectionError"):
        s3_store.patient(0.1).get("k")
    assert not caplog.records
    patient = s3_store.sub("k").patient(60)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda key: patient.exists(key), "abcdef")) == [False] * 6
    began, ended = (record.getMessage() for record in caplog.records)
    assert began.startswith(f"{s3_store.url}/k/")
    assert " has not answered for 0 s (EndpointConnectionError); trying on until " in began
    assert ended.startswith("s3://heliostat answers again after ")


def test_patient__that_gives_up_does_not_say_that_the_store_answers(
    fault_proxy: FaultProxy, s3_store: S3Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("heliostat.storage.s3_backoff.STALL_S", 0.0)
    s3_store.put("k", b"v")  # making the client takes long
    fault_proxy.plan(Rule("slow_down", times=None))
    with pytest.raises(StoreUnreachableError):
        s3_store.patient(0.5).get("k")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    fault_proxy.plan(Rule("slow_down", times=None))
    with pytest.raises(StoreUnreachableError):  # the next outage is said again
        s3_store.patient(0.5).get("k")
    assert len(caplog.records) == 2


def test_patient__keeps_the_place_and_passes_its_budget_on(s3_store: S3Store, tmp_path: Path) -> None:
    patient = s3_store.patient(1800)
    assert patient == replace(s3_store, retry_budget_s=1800)
    assert patient.sub("x").retry_budget_s == 1800
    local = open_store(str(tmp_path))
    assert local.patient(1800) is local
