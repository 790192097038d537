"""One checkpoint out of what many ranks write at their own pace, without a word between them but through the store.

Each rank writes its shard and then, beside it, a record of what it wrote. One rank waits for the records of all, makes
the manifest of them and commits it. A record is there only when its shard is whole; and as no two attempts write below
the same folder, it is of this attempt.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pydantic import ValidationError

from heliostat.checkpoint.format import (
    CheckpointManifest,
    ShardRecord,
    StateSlice,
    checkpoint_folder,
    record_key,
    shard_key,
)
from heliostat.checkpoint.log import CommitLog, Lease
from heliostat.checkpoint.writer import commit, write_shard
from heliostat.errors import CorruptCheckpointError, SaveAbandonedError
from heliostat.storage import Store

_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 2.0


@dataclass(frozen=True, slots=True)
class Draft:
    """All of a checkpoint's manifest but its shards: what every rank knows before a byte is written."""

    step: int
    attempt: int
    world_size: int
    tensors: Mapping[str, int]
    """``kind|parameter`` -> number of elements."""
    counters: Mapping[str, int | float | str]
    digest_of_ids: str

    @property
    def folder(self) -> str:
        """The prefix below which every file of this checkpoint lies."""
        return checkpoint_folder(self.step, self.attempt)

    def manifest(self, shards: Sequence[ShardRecord]) -> CheckpointManifest:
        """The manifest, of the shards by rank."""
        return CheckpointManifest(
            step=self.step,
            attempt=self.attempt,
            world_size=self.world_size,
            shards=tuple(shards),
            tensors=dict(self.tensors),
            counters=dict(self.counters),
            digest_of_ids=self.digest_of_ids,
        )


def write_part(store: Store, draft: Draft, rank: int, slices: Sequence[StateSlice]) -> None:
    """Write a rank's shard, then its record. Raises as ``write_shard`` does."""
    record = write_shard(store, draft.folder, rank, slices)
    store.put(record_key(draft.folder, rank), record.model_dump_json().encode())


def assemble(
    store: Store,
    log: CommitLog,
    lease: Lease,
    draft: Draft,
    metrics: Mapping[str, float] = MappingProxyType({}),
    is_given_up: Callable[[], bool] = lambda: False,
) -> CheckpointManifest:
    """Wait for the parts of all ranks and commit them as one checkpoint.

    Args:
        store: The run's store.
        log: The run's commit log.
        lease: Of this attempt.
        draft: As the ranks had it.
        metrics: What the last step reported, for the log.
        is_given_up: Asked while it waits; a part that never comes would be waited for without end.

    Raises:
        FencedError: A newer attempt holds the lease; nothing was committed.
        CorruptCheckpointError: A shard or a record is not what was written.
        SaveAbandonedError: It was given up; nothing was committed.
    """
    manifest = draft.manifest(_all_records(store, draft, is_given_up))
    commit(store, log, lease, manifest, metrics)
    return manifest


def _all_records(store: Store, draft: Draft, is_given_up: Callable[[], bool]) -> list[ShardRecord]:
    missing = {record_key(draft.folder, rank): rank for rank in range(draft.world_size)}
    found: dict[int, ShardRecord] = {}
    wait_s = _FIRST_WAIT_S
    while True:
        for info in store.list(f"{draft.folder}/rank-"):
            if info.key in missing:
                rank = missing.pop(info.key)
                found[rank] = _record(store, draft.folder, rank)
        if not missing:
            return [found[rank] for rank in range(draft.world_size)]
        if is_given_up():
            raise SaveAbandonedError(
                f"the checkpoint of step {draft.step} was given up before the parts of {len(missing)} workers had come",
                "Resume the run: it goes on from the checkpoint before",
            )
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _record(store: Store, folder: str, rank: int) -> ShardRecord:
    key = record_key(folder, rank)
    try:
        record = ShardRecord.model_validate_json(store.get(key))
    except ValidationError as error:
        raise CorruptCheckpointError(f"{store.url}/{key} is no record of a shard", "Nothing was committed") from error
    if record.key != shard_key(folder, rank):
        raise CorruptCheckpointError(f"{store.url}/{key} is the record of {record.key}", "Nothing was committed")
    return record
