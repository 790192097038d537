from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.checkpoint.format import checkpoint_folder, manifest_key
from heliostat.checkpoint.log import CheckpointEntry, CommitLog, live_checkpoints
from heliostat.checkpoint.retention import Keep, abandoned, retire, sweep, to_retire
from heliostat.errors import FencedError
from heliostat.storage import Store

Save = Callable[..., CheckpointEntry]


def _entry(step: int, attempt: int = 1, **metrics: float) -> CheckpointEntry:
    key = manifest_key(checkpoint_folder(step, attempt))
    return CheckpointEntry(attempt=attempt, step=step, manifest_key=key, manifest_sha256="0" * 64, metrics=metrics)


@given(count=st.integers(0, 12), last=st.integers(1, 14))
def test_to_retire__keeps_exactly_the_newest(count: int, last: int) -> None:
    live = [_entry(step) for step in range(count)]
    leaving = to_retire(live, Keep(last))
    assert [*leaving, *live[-last:]] == live
    assert len(live) - len(leaving) == min(count, last)


def test_keep__never_gives_up_the_last() -> None:
    with pytest.raises(ValueError, match="newest 0 are kept"):
        Keep(0)


BY_LOSS = [_entry(10, loss=3.0), _entry(20, loss=1.0, acc=0.5), _entry(30, acc=0.9), _entry(40, loss=1.0), _entry(50)]


@pytest.mark.parametrize(
    ("live", "keep", "left"),
    [
        (BY_LOSS, Keep(1), [50]),
        (BY_LOSS, Keep(2, best="loss"), [20, 40, 50]),  # of equals the oldest
        (BY_LOSS[:3], Keep(1, best="loss"), [20, 30]),
        (BY_LOSS, Keep(1, best="loss", best_mode="max"), [10, 50]),
        (BY_LOSS, Keep(1, best="acc", best_mode="max"), [30, 50]),
        (BY_LOSS, Keep(1, best="psnr"), [50]),  # nobody reports it
        (BY_LOSS, Keep(1, every_steps=20), [20, 40, 50]),
        (BY_LOSS, Keep(1, every_steps=20, best="loss", best_mode="max"), [10, 20, 40, 50]),
        ([_entry(step) for step in (7, 9, 11, 19, 23, 29, 41)], Keep(1, every_steps=10), [11, 23, 41]),  # late saves
        ([_entry(step) for step in (3, 7)], Keep(1, every_steps=10), [7]),  # none at a multiple yet
        ([_entry(10), _entry(20), _entry(11, attempt=2)], Keep(1, every_steps=10), [10, 11]),  # fell back
        (
            [_entry(9), _entry(10, loss=0.0), _entry(10, attempt=2, loss=1.0), _entry(11, attempt=2, loss=2.0)],
            Keep(1, every_steps=10, best="loss"),
            [10, 11],  # the second 10: the first one was found corrupt
        ),
        ([], Keep(1, 10, "loss"), []),
    ],
)
def test_to_retire__table(live: list[CheckpointEntry], keep: Keep, left: list[int]) -> None:
    leaving = to_retire(live, keep)
    assert [entry.step for entry in live if entry not in leaving] == left


@given(
    losses=st.lists(st.none() | st.integers(0, 5), max_size=20),
    last=st.integers(1, 4),
    every_steps=st.none() | st.integers(1, 40),
    best=st.sampled_from([None, "loss"]),
    mode=st.sampled_from(["min", "max"]),
)
def test_to_retire__whenever_it_is_asked_keeps_the_newest_every_nth_and_the_best(
    losses: list[int | None], last: int, every_steps: int | None, best: str | None, mode: Literal["min", "max"]
) -> None:
    """As a run does it: one more checkpoint, then retire; every nth and the best of all are never lost on the way."""
    keep = Keep(last, every_steps, best, mode)
    all_entries: list[CheckpointEntry] = []
    live: list[CheckpointEntry] = []
    for index, loss in enumerate(losses, 1):
        entry = _entry(7 * index) if loss is None else _entry(7 * index, loss=float(loss))
        all_entries.append(entry)
        live.append(entry)
        leaving = to_retire(live, keep)
        live = [each for each in live if each not in leaving]
        assert live[-last:] == all_entries[-last:]
        if every_steps:
            multiples = {each.step // every_steps for each in all_entries} - {0}
            assert {each.step // every_steps for each in live} >= multiples
        reported = [each.metrics["loss"] for each in all_entries if each.metrics]
        if best and reported:
            wanted = min(reported) if mode == "min" else max(reported)
            assert wanted in [each.metrics.get("loss") for each in live]
        assert to_retire(live, keep) == ()  # asked again, it gives up no more


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
    assert [entry.step for entry in retire(store, log, lease, Keep(1))] == [10, 20]
    assert [entry.type for entry in log.read()] == ["lease", *["checkpoint"] * 3, *["retire"] * 2]
    assert [entry.step for entry in live_checkpoints(log.read())] == [30]
    assert {info.key.rpartition("/")[0] for info in store.list("checkpoints/")} == {checkpoint_folder(30, 1)}
    assert retire(store, log, lease, Keep(1)) == ()


def test_retire__of_a_fenced_attempt_removes_nothing(store: Store, save: Save) -> None:
    log = CommitLog(store)
    lease = log.acquire_lease("a")
    for step in (10, 20):
        save(store, log, lease, step)
    CommitLog(store).acquire_lease("b")
    before = list(store.list())
    with pytest.raises(FencedError):
        retire(store, log, lease, Keep(1))
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


def test_sweep__removes_what_a_killed_writer_left_in_a_local_folder(store: Store, save: Save) -> None:
    log = CommitLog(store)
    lease = log.acquire_lease("a")
    save(store, log, lease, 10)
    root = Path(store.url)
    left = [
        root / checkpoint_folder(step, attempt) / ".heliostat-tmp-0" for step, attempt in ((10, 1), (20, 1), (30, 2))
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half a shard")
    assert sweep(store, log, log.acquire_lease("b")) == (checkpoint_folder(20, 1),)
    assert [path.exists() for path in left] == [True, False, True]  # live, of a dead attempt, of this one
    assert not left[1].parent.parent.exists()
