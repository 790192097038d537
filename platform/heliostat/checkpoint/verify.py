"""Whether what was committed is still what is there, and which checkpoint to continue from."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import ValidationError

from heliostat.checkpoint.format import CheckpointManifest, ShardRecord
from heliostat.checkpoint.log import CheckpointEntry, LogEntry, live_checkpoints
from heliostat.checkpoint.places import ShardSource
from heliostat.errors import (
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    NoCheckpointError,
    ObjectNotFoundError,
)
from heliostat.storage import Store

_READERS = 8
_FALL_BACK = "Continue from an older checkpoint, or restore the file"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A committed checkpoint that cannot be used any more, and why, for the event that reports the fallback."""

    step: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The checkpoint to continue from, and the newer ones that were passed over, newest first."""

    entry: CheckpointEntry
    manifest: CheckpointManifest
    rejected: tuple[Rejected, ...]


def newest_good(store: Store, entries: Sequence[LogEntry], verify_bytes: bool = False) -> Choice | None:
    """The newest committed checkpoint whose files are all there; None when none was ever committed.

    Args:
        store: The run's store.
        entries: Of the run's log.
        verify_bytes: Hash every byte too. Readers hash what they read anyway; ask for this after one of them found a
            corrupt chunk, or the same checkpoint would be chosen again.

    Raises:
        NoCheckpointError: There are committed checkpoints, but not one is usable: starting afresh would be silent loss.
        IncompatibleCheckpointError: The newest is intact but of a format that this version does not know.
    """
    rejected: list[Rejected] = []
    for entry in reversed(live_checkpoints(entries)):
        try:
            manifest = load_manifest(store, entry)
            check_shards(store, manifest, verify_bytes)
        except CorruptCheckpointError as error:
            rejected.append(Rejected(entry.step, entry.attempt, error.fact))
        else:
            return Choice(entry, manifest, tuple(rejected))
    if not rejected:
        return None
    raise NoCheckpointError(
        f"none of the {len(rejected)} checkpoints of {store.url} is usable; the newest: {rejected[0].reason}",
        "Restore its files from a backup, or start a run of another name",
    )


def load_manifest(store: Store, entry: CheckpointEntry) -> CheckpointManifest:
    """The manifest that a log entry names; its hash is checked before it is parsed.

    Raises:
        CorruptCheckpointError: It is missing or not what was committed.
        IncompatibleCheckpointError: It is what was committed, but this version cannot read it.
    """
    name = f"{store.url}/{entry.manifest_key}"
    try:
        data = store.get(entry.manifest_key)
    except ObjectNotFoundError as error:
        raise CorruptCheckpointError(f"the manifest {name} is missing", _FALL_BACK) from error
    if hashlib.sha256(data).hexdigest() != entry.manifest_sha256:
        raise CorruptCheckpointError(f"the manifest {name} is not the one that was committed", _FALL_BACK)
    try:
        return CheckpointManifest.model_validate_json(data)
    except ValidationError as error:
        raise IncompatibleCheckpointError(
            f"the manifest {name} is of a format that this version does not know", "Use the version that wrote it"
        ) from error


def check_shards(
    store: Store,
    manifest: CheckpointManifest,
    verify_bytes: bool = False,
    hashed: Callable[[int], None] = lambda size_bytes: None,
) -> None:
    """Hold every shard against the manifest: by size, or by every byte.

    Args:
        store: The run's store.
        manifest: Of the checkpoint.
        verify_bytes: Hash every byte.
        hashed: Told how many bytes were hashed, again and again, by several threads.

    Raises:
        CorruptCheckpointError: Names the first shard that is missing, of another size, or of other content.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        for fault in pool.map(lambda shard: _shard_fault(store, shard, verify_bytes, hashed), manifest.shards):
            if fault:
                raise fault


def read_chunk(store: ShardSource, shard: ShardRecord, index: int) -> bytes:
    """One chunk of a shard, verified.

    Raises:
        CorruptCheckpointError: The shard is missing, too short, or these bytes are not those that were committed.
    """
    start, end = shard.chunk_range(index)
    name = f"{store.url}/{shard.key}"
    try:
        data = store.get(shard.key, start, end)
    except ObjectNotFoundError as error:
        raise CorruptCheckpointError(f"the shard {name} is missing", _FALL_BACK) from error
    if len(data) != end - start:
        raise CorruptCheckpointError(f"the shard {name} ends within bytes {start} to {end}", _FALL_BACK)
    if hashlib.sha256(data).hexdigest() != shard.chunk_sha256[index]:
        raise CorruptCheckpointError(f"bytes {start} to {end} of the shard {name} are not those committed", _FALL_BACK)
    return data


def _shard_fault(
    store: Store, shard: ShardRecord, verify_bytes: bool, hashed: Callable[[int], None]
) -> CorruptCheckpointError | None:
    name = f"{store.url}/{shard.key}"
    try:
        size_bytes = store.size(shard.key)
        if size_bytes != shard.size_bytes:
            return CorruptCheckpointError(
                f"the shard {name} has {size_bytes} bytes, not {shard.size_bytes} as committed", _FALL_BACK
            )
        for index in range(len(shard.chunk_sha256) if verify_bytes else 0):
            hashed(len(read_chunk(store, shard, index)))
    except ObjectNotFoundError:
        return CorruptCheckpointError(f"the shard {name} is missing", _FALL_BACK)
    except CorruptCheckpointError as error:
        return error
    return None
