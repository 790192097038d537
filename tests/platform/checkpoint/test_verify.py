import hashlib
import re
from collections.abc import Callable

import pytest
import torch

from heliostat.checkpoint.format import checkpoint_folder
from heliostat.checkpoint.log import CheckpointEntry, CommitLog, Lease
from heliostat.checkpoint.reader import CheckpointReader
from heliostat.checkpoint.verify import load_manifest, newest_good
from heliostat.errors import (
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    NoCheckpointError,
    StoreUnreachableError,
)
from heliostat.storage import Store
from heliostat.storage.s3 import S3Store

Save = Callable[..., CheckpointEntry]
State = dict[tuple[str, str], torch.Tensor]
NEWEST = checkpoint_folder(20, 1)
SHARD = f"{NEWEST}/rank-00001.safetensors"


@pytest.fixture
def log(store: Store, save: Save) -> CommitLog:
    """Checkpoints of steps 10 and 20."""
    log = CommitLog(store)
    lease = log.acquire_lease("a")
    save(store, log, lease, 10)
    save(store, log, lease, 20)
    return log


def _flip_last_byte(store: Store, key: str) -> None:
    data = store.get(key)
    store.put(key, data[:-1] + bytes([data[-1] ^ 1]))


HARMS: dict[str, tuple[Callable[[Store], None], str]] = {
    "a missing shard": (lambda store: store.delete(SHARD), "rank-00001.safetensors is missing"),
    "a truncated shard": (
        lambda store: store.put(SHARD, store.get(SHARD)[:-1]),
        r"has \d+ bytes, not \d+ as committed",
    ),
    "a missing manifest": (lambda store: store.delete(f"{NEWEST}/manifest.json"), "manifest .* is missing"),
    "a changed manifest": (lambda store: _flip_last_byte(store, f"{NEWEST}/manifest.json"), "not the one that was"),
}
HIDDEN_HARMS: dict[str, Callable[[Store], None]] = {
    "a flipped byte": lambda store: _flip_last_byte(store, SHARD),
    "a shard of another step": lambda store: store.put(SHARD, store.get(SHARD.replace("-00000020/", "-00000010/"))),
    "a shard of another rank": lambda store: store.put(SHARD, store.get(SHARD.replace("00001.s", "00000.s"))),
}


@pytest.mark.parametrize("harm", HARMS)
def test_newest_good__falls_back_and_says_why(
    store: Store, log: CommitLog, state: Callable[[int], State], harm: str
) -> None:
    inflict, reason = HARMS[harm]
    inflict(store)
    choice = newest_good(store, log.read())
    assert choice is not None
    assert choice.entry.step == 10
    assert [(each.step, each.attempt) for each in choice.rejected] == [(20, 1)]
    assert re.search(reason, choice.rejected[0].reason)
    restored = CheckpointReader(store, choice.manifest).read_full("fp32", "head.bias")
    assert torch.equal(restored, state(10)["fp32", "head.bias"])


@pytest.mark.parametrize("harm", HIDDEN_HARMS)
def test_newest_good__finds_what_sizes_hide_when_asked_for_bytes(store: Store, log: CommitLog, harm: str) -> None:
    """The reader's hash finds it first; then the caller asks again, with ``verify_bytes``."""
    HIDDEN_HARMS[harm](store)
    hasty = newest_good(store, log.read())
    if hasty is not None and hasty.entry.step == 20:
        with pytest.raises(
            CorruptCheckpointError, match=r"HS-CKPT-001.*rank-00001.safetensors are not those committed"
        ):
            CheckpointReader(store, hasty.manifest).read_full("exp_avg", "norm.weight")
    thorough = newest_good(store, log.read(), verify_bytes=True)
    assert thorough is not None
    assert thorough.entry.step == 10
    assert "rank-00001.safetensors" in thorough.rejected[0].reason


def test_newest_good__of_a_new_run_is_none(store: Store) -> None:
    assert newest_good(store, CommitLog(store).read()) is None


def test_newest_good__never_starts_afresh_in_silence(store: Store, log: CommitLog) -> None:
    for info in list(store.list("checkpoints/")):
        store.delete(info.key)
    with pytest.raises(NoCheckpointError, match=r"HS-CKPT-003: none of the 2 checkpoints .*step-00000020.* is missing"):
        newest_good(store, log.read())


def test_newest_good__never_takes_what_is_not_in_the_log(store: Store, log: CommitLog) -> None:
    for info in list(store.list(f"{NEWEST}/")):
        store.put(info.key.replace("-00000020/", "-00000030/"), store.get(info.key))
    choice = newest_good(store, log.read())
    assert choice is not None
    assert choice.entry.step == 20


def test_newest_good__does_not_take_an_outage_for_corruption(
    log: CommitLog, s3_environment_without_server: None
) -> None:
    with pytest.raises(StoreUnreachableError):
        newest_good(S3Store("bucket", retry_budget_s=0.1), log.read())


@pytest.fixture
def s3_environment_without_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")


def test_load_manifest__of_a_later_format_is_not_called_corrupt(store: Store) -> None:
    data = b'{"schema_version": 2, "step": 30}'
    store.put("checkpoints/x/manifest.json", data)
    entry = CheckpointEntry(
        attempt=1,
        step=30,
        manifest_key="checkpoints/x/manifest.json",
        manifest_sha256=hashlib.sha256(data).hexdigest(),
    )
    with pytest.raises(IncompatibleCheckpointError, match=r"HS-CKPT-002.*does not know"):
        load_manifest(store, entry)


def test_newest_good__prefers_the_log_over_the_step(store: Store, log: CommitLog, save: Save) -> None:
    store.delete(SHARD)
    lease: Lease = log.acquire_lease("b")
    save(store, log, lease, 15)
    choice = newest_good(store, log.read())
    assert choice is not None
    assert (choice.entry.step, choice.entry.attempt, choice.rejected) == (15, 2, ())
