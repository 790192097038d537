from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.checkpoint.format import checkpoint_folder, manifest_key
from heliostat.checkpoint.log import CheckpointEntry, CommitLog, live_checkpoints
from heliostat.checkpoint.retention import abandoned, retire, sweep, to_retire
from heliostat.errors import FencedError
from heliostat.storage import Store

Save = Callable[..., CheckpointEntry]


def _entry(step: int, attempt: int = 1) -> CheckpointEntry:
    key = manifest_key(checkpoint_folder(step, attempt))
    return CheckpointEntry(attempt=attempt, step=step, manifest_key=key, manifest_sha256="0" * 64)


@given(count=st.integers(0, 12), keep_last=st.integers(1, 14))
def test_to_retire__keeps_exactly_the_newest(count: int, keep_last: int) -> None:
    live = [_entry(step) for step in range(count)]
    leaving = to_retire(live, keep_last)
    assert [*leaving, *live[-keep_last:]] == live
    assert len(live) - len(leaving) == min(count, keep_last)


def test_to_retire__never_gives_up_the_last() -> None:
    with pytest.raises(ValueError, match="keep_last is 0"):
        to_retire([_entry(1)], 0)


@pytest.mark.parametrize(
    ("folder", "attempt", "expected"),
    [
        (checkpoint_folder(10, 1), 2, False),  # live
        (checkpoint_folder(20, 1), 2, True),  # never committed
        (checkpoint_folder(20, 2), 2, False),  # being written by this very attempt
        (checkpoint_folder(20, 3), 2, False),  # of a newer attempt: this one is a zombie
        ("checkpoints/by-hand", 2, False),  # nobody's
    ],
)
def test_abandoned__table(folder: str, attempt: int, expected: bool) -> None:
    assert abandoned([folder], [_entry(10)], attempt) == ((folder,) if expected else ())


def test_retire__logs_and_then_deletes(store: Store, save: Save) -> None:
    log = CommitLog(store)
    lease = log.acquire_lease("a")
    for step in (10, 20, 30):
        save(store, log, lease, step)
    assert [entry.step for entry in retire(store, log, lease, keep_last=1)] == [10, 20]
    assert [entry.type for entry in log.read()] == ["lease", *["checkpoint"] * 3, *["retire"] * 2]
    assert [entry.step for entry in live_checkpoints(log.read())] == [30]
    assert {info.key.rpartition("/")[0] for info in store.list("checkpoints/")} == {checkpoint_folder(30, 1)}
    assert retire(store, log, lease, keep_last=1) == ()


def test_retire__of_a_fenced_attempt_removes_nothing(store: Store, save: Save) -> None:
    log = CommitLog(store)
    lease = log.acquire_lease("a")
    for step in (10, 20):
        save(store, log, lease, step)
    CommitLog(store).acquire_lease("b")
    before = list(store.list())
    with pytest.raises(FencedError):
        retire(store, log, lease, keep_last=1)
    assert list(store.list()) == before


def test_sweep__removes_what_earlier_attempts_never_committed(store: Store, save: Save) -> None:
    log = CommitLog(store)
    lease = log.acquire_lease("a")
    save(store, log, lease, 10)
    half_written = f"{checkpoint_folder(20, 1)}/rank-00000.safetensors"
    store.put(half_written, b"shard of a worker that died")
    store.put("checkpoints/README.txt", b"not ours")
    assert sweep(store, log, lease) == ()  # this attempt may still be writing it
    assert sweep(store, log, log.acquire_lease("b")) == (checkpoint_folder(20, 1),)
    assert not store.exists(half_written)
    assert store.exists("checkpoints/README.txt")
    assert [entry.step for entry in live_checkpoints(log.read())] == [10]
