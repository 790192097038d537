import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest

from heliostat.checkpoint.log import (
    CheckpointEntry,
    CommitLog,
    EndEntry,
    Lease,
    LeaseEntry,
    LogEntry,
    RetireEntry,
    live_checkpoints,
    newest_lease,
)
from heliostat.errors import CorruptLogError, FencedError
from heliostat.storage import Store, open_store


def _checkpoint(step: int, attempt: int = 1) -> CheckpointEntry:
    return CheckpointEntry(attempt=attempt, step=step, manifest_key=f"m{step}-{attempt}", manifest_sha256="0" * 64)


def test_acquire_lease__numbers_attempts(store: Store) -> None:
    leases = [CommitLog(store).acquire_lease(holder) for holder in "ab"]
    assert [(lease.attempt, lease.number) for lease in leases] == [(1, 1), (2, 2)]
    entries = CommitLog(store).read()
    assert [entry.type for entry in entries] == ["lease", "lease"]
    assert [lease.nonce for lease in leases] == [entry.nonce for entry in entries]


def test_append__numbers_entries_and_every_reader_sees_them(store: Store) -> None:
    log = CommitLog(store)
    lease = log.acquire_lease("a")
    other = CommitLog(store)
    other.read()
    assert log.append(lease, _checkpoint(10)) == 2
    assert log.append(lease, EndEntry(attempt=1, step=10, outcome="completed")) == 3
    assert other.read() == log.read() == CommitLog(store).read()
    assert [info.key for info in store.list()] == [f"commits/0000000{number}.json" for number in (1, 2, 3)]


@pytest.mark.parametrize(
    "entry",
    [
        _checkpoint(20),
        RetireEntry(attempt=1, manifest_key="m10-1"),
        EndEntry(attempt=1, step=20, outcome="completed"),
    ],
)
def test_append__of_a_fenced_attempt_writes_nothing(
    store: Store, entry: CheckpointEntry | RetireEntry | EndEntry
) -> None:
    zombie_log = CommitLog(store)
    zombie = zombie_log.acquire_lease("a")
    zombie_log.append(zombie, _checkpoint(10))
    CommitLog(store).acquire_lease("b")
    before = list(store.list())
    for log in (zombie_log, CommitLog(store), zombie_log):
        with pytest.raises(FencedError, match=r"HS-RUN-001: attempt 2 .* since log entry 3; this is attempt 1"):
            log.append(zombie, entry)
    assert list(store.list()) == before


def test_append__goes_past_entries_of_its_own_attempt(store: Store) -> None:
    log = CommitLog(store)
    lease = log.acquire_lease("a")
    elsewhere = CommitLog(store)
    assert elsewhere.append(lease, _checkpoint(10)) == 2
    assert log.append(lease, _checkpoint(20)) == 3


def test_append__refuses_an_entry_of_another_attempt(store: Store) -> None:
    log = CommitLog(store)
    with pytest.raises(ValueError, match="attempt 2"):
        log.append(log.acquire_lease("a"), _checkpoint(10, attempt=2))


def _acquire(store: Store, racer: int) -> int:
    return CommitLog(store).acquire_lease(f"process {racer}").attempt


def test_acquire_lease__racing_processes_get_distinct_attempts(store: Store) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        attempts = pool.starmap(_acquire, [(store, racer) for racer in range(12)], chunksize=1)
    assert sorted(attempts) == list(range(1, 13))


@pytest.mark.s3
def test_acquire_lease__racing_on_s3_gets_distinct_attempts(s3_root: str) -> None:
    store = open_store(s3_root)
    with ThreadPoolExecutor(8) as pool:
        attempts = list(pool.map(lambda racer: _acquire(store, racer), range(8)))
    assert sorted(attempts) == list(range(1, 9))


def test_append__of_racing_attempts_is_in_the_order_of_leases(store: Store) -> None:
    """Whoever wins, nothing of an attempt comes after a newer lease."""

    def attempt(racer: int) -> None:
        log = CommitLog(store)
        lease = log.acquire_lease(f"{racer}")
        for step in range(5):
            try:
                log.append(lease, _checkpoint(step, lease.attempt))
            except FencedError:
                return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(attempt, range(8)))
    attempts = [entry.attempt for entry in CommitLog(store).read()]
    assert attempts == sorted(attempts)


def test_read__names_a_missing_entry(store: Store) -> None:
    log = CommitLog(store)
    lease = log.acquire_lease("a")
    log.append(lease, _checkpoint(10))
    store.delete("commits/00000001.json")
    with pytest.raises(CorruptLogError, match=r"HS-CKPT-004.*commits/00000001.json is missing"):
        CommitLog(store).read()


@pytest.mark.parametrize("text", [b"", b"{}", b'{"type": "merge", "attempt": 1}', b"\xff", b"[1]"])
def test_read__names_an_entry_that_it_does_not_know(store: Store, text: bytes) -> None:
    store.put("commits/00000001.json", text)
    with pytest.raises(CorruptLogError, match=r"commits/00000001.json is not a log entry"):
        CommitLog(store).read()


def test_read__ignores_what_is_no_entry(store: Store) -> None:
    store.put("commits/notes.txt", b"")
    store.put("commits/00000001.json.bak", b"")
    assert CommitLog(store).read() == ()


LEASE_1, LEASE_2 = LeaseEntry(attempt=1, holder=""), LeaseEntry(attempt=2, holder="")
TEN, TWENTY, FIFTEEN = _checkpoint(10), _checkpoint(20), _checkpoint(15, attempt=2)


@pytest.mark.parametrize(
    ("entries", "live"),
    [
        ([], []),
        ([LEASE_1], []),
        ([LEASE_1, TEN, TWENTY], [TEN, TWENTY]),
        ([LEASE_1, TEN, TWENTY, LEASE_2, FIFTEEN], [TEN, TWENTY, FIFTEEN]),  # fell back: the log's order counts
        ([LEASE_1, TEN, TWENTY, RetireEntry(attempt=1, manifest_key="m10-1")], [TWENTY]),
        ([LEASE_1, TEN, TWENTY, TEN], [TWENTY, TEN]),  # appended again after a lost answer
        ([LEASE_1, RetireEntry(attempt=1, manifest_key="never was")], []),
    ],
)
def test_live_checkpoints__table(entries: list[LogEntry], live: list[CheckpointEntry]) -> None:
    assert list(live_checkpoints(entries)) == live


def test_newest_lease__is_the_last_one() -> None:
    assert newest_lease([]) is None
    assert newest_lease([LEASE_1, TEN, LEASE_2, FIFTEEN]) == Lease(2, 3, LEASE_2.nonce)


@pytest.mark.timeout(30)
def test_read__a_stray_entry_far_ahead_is_named_at_once(store: Store) -> None:
    CommitLog(store).acquire_lease("a")
    store.put("commits/99999999.json", b"stray")
    with pytest.raises(CorruptLogError, match=r"00000002\.json is missing"):
        CommitLog(store).read()
