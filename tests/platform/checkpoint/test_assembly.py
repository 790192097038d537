import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from heliostat.checkpoint.assembly import Draft, assemble, write_part
from heliostat.checkpoint.format import StateSlice, record_key
from heliostat.checkpoint.log import CheckpointEntry, CommitLog, Lease
from heliostat.checkpoint.reader import CheckpointReader
from heliostat.checkpoint.retention import Keep, retire
from heliostat.checkpoint.verify import newest_good
from heliostat.errors import CorruptCheckpointError, FencedError, SaveAbandonedError
from heliostat.storage import Store

Save = Callable[..., CheckpointEntry]
VALUES = torch.arange(10.0)


def _draft(lease: Lease, step: int) -> Draft:
    return Draft(step, lease.attempt, 2, {"m|a": 10}, {"n": 1}, "digest")


def _part(rank: int) -> list[StateSlice]:
    return [StateSlice("m", "a", 5 * rank, VALUES[5 * rank : 5 * rank + 5])]


def test_assemble__waits_for_the_part_of_the_slowest(store: Store) -> None:
    log = CommitLog(store)
    lease = log.acquire_lease("a")
    draft = _draft(lease, 10)
    write_part(store, draft, 0, _part(0))
    with ThreadPoolExecutor(1) as pool:
        committed = pool.submit(assemble, store, log, lease, draft, {"loss": 2.0, "odd": float("nan")})
        assert not threading.Event().wait(0.3)
        assert not committed.done()
        assert newest_good(store, CommitLog(store).read()) is None
        write_part(store, draft, 1, _part(1))
        manifest = committed.result(timeout=20)
    choice = newest_good(store, CommitLog(store).read(), verify_bytes=True)
    assert choice is not None
    assert choice.manifest == manifest
    assert choice.entry.metrics == {"loss": 2.0}
    assert torch.equal(CheckpointReader(store, manifest).read_full("m", "a"), VALUES)


def test_assemble__can_be_given_up(store: Store) -> None:
    log = CommitLog(store)
    lease = log.acquire_lease("a")
    draft = _draft(lease, 10)
    write_part(store, draft, 1, _part(1))
    with pytest.raises(SaveAbandonedError, match="parts of 1 workers"):
        assemble(store, log, lease, draft, is_given_up=lambda: True)
    assert newest_good(store, log.read()) is None


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff"])
def test_assemble__names_a_record_that_is_none(store: Store, text: bytes) -> None:
    log = CommitLog(store)
    lease = log.acquire_lease("a")
    draft = _draft(lease, 10)
    write_part(store, draft, 0, _part(0))
    store.put(record_key(draft.folder, 1), text)
    with pytest.raises(CorruptCheckpointError, match=r"rank-00001.json is no record"):
        assemble(store, log, lease, draft)


def test_assemble__does_not_take_one_rank_for_another(store: Store) -> None:
    log = CommitLog(store)
    lease = log.acquire_lease("a")
    draft = _draft(lease, 10)
    write_part(store, draft, 0, _part(0))
    store.put(record_key(draft.folder, 1), store.get(record_key(draft.folder, 0)))
    with pytest.raises(CorruptCheckpointError, match=r"is the record of .*rank-00000.safetensors"):
        assemble(store, log, lease, draft)


@pytest.mark.parametrize("asleep_before", ["shards", "records of rank 1", "commit", "retire"])
def test_zombie__that_wakes_up_and_writes_on_changes_nothing_that_counts(
    store: Store, save: Save, asleep_before: str
) -> None:
    """It sleeps at some point of a save; a new attempt begins, sweeps and commits; then it does all the rest."""
    zombie_log = CommitLog(store)
    zombie = zombie_log.acquire_lease("a")
    save(store, zombie_log, zombie, 10)
    draft = _draft(zombie, 20)
    points = ["shards", "records of rank 1", "commit", "retire"]
    work: dict[str, Callable[[], object]] = {
        "shards": lambda: write_part(store, draft, 0, _part(0)),
        "records of rank 1": lambda: write_part(store, draft, 1, _part(1)),
        "commit": lambda: assemble(store, zombie_log, zombie, draft),
        "retire": lambda: retire(store, zombie_log, zombie, Keep(1)),
    }
    cut = points.index(asleep_before)
    for point in points[:cut]:
        work[point]()
    log = CommitLog(store)
    lease = log.acquire_lease("b")
    save(store, log, lease, 30)
    counted = {info.key: store.get(info.key) for info in store.list("checkpoints/") if "-00000020/" not in info.key}
    entries = log.read()
    for point in points[cut:]:
        if point in ("commit", "retire"):
            with pytest.raises(FencedError):
                work[point]()
        else:
            work[point]()
    assert CommitLog(store).read() == entries
    assert all(store.get(key) == data for key, data in counted.items())
    choice = newest_good(store, entries, verify_bytes=True)
    assert choice is not None
    assert choice.entry.step == 30
