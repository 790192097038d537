"""Writing a checkpoint: every rank its shard, then one of them the commit.

Order is what makes it safe: shards, then the manifest, then the log entry that names the manifest and its hash. A crash
in between leaves files that no log entry names, which the next attempt sweeps away.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import torch

from heliostat.checkpoint.dtypes import NAMES
from heliostat.checkpoint.format import (
    CHUNK_BYTES,
    CheckpointManifest,
    ShardRecord,
    SliceRecord,
    StateSlice,
    manifest_fault,
    manifest_key,
    shard_key,
)
from heliostat.checkpoint.log import CheckpointEntry, CommitLog, Lease
from heliostat.checkpoint.places import ShardTarget
from heliostat.checkpoint.verify import check_shards
from heliostat.errors import CorruptCheckpointError, ObjectExistsError
from heliostat.storage import Store
from heliostat.storage.in_flight import map_in_flight

_PIECE_BYTES = 1024 * 1024
_HASHERS = 2
_HEADER_ALIGNMENT = 8


def write_shard(store: ShardTarget, folder: str, rank: int, slices: Sequence[StateSlice]) -> ShardRecord:
    """Write a rank's slices as ``folder/rank-NNNNN.safetensors``, without a second copy of them in memory.

    Args:
        store: The run's store, or the memory of other nodes.
        folder: ``checkpoint_folder(step, attempt)`` of this attempt.
        rank: Of this worker.
        slices: In host memory; nobody may change them until this returns.

    Raises:
        ObjectExistsError: This attempt has completed this step already; to write it again takes a new lease.
        ValueError: Two slices of the same name, or an element type that safetensors cannot hold.
    """
    if store.exists(manifest_key(folder)):
        raise ObjectExistsError(
            f"the checkpoint {store.url}/{folder} is complete already", "Take a new lease to write this step again"
        )
    # The widest elements first, so that all are aligned in the file.
    ordered = sorted(slices, key=lambda each: -each.values.element_size())
    header, records = _header(ordered)
    content = _HashedContent([memoryview(header), *(_bytes_of(each.values) for each in ordered)])
    key = shard_key(folder, rank)
    store.put_chunks(key, content.pieces)
    return ShardRecord(
        key=key,
        size_bytes=content.size_bytes,
        chunk_bytes=CHUNK_BYTES,
        chunk_sha256=tuple(content.chunk_sha256),
        slices=records,
    )


def commit(
    store: Store,
    log: CommitLog,
    lease: Lease,
    manifest: CheckpointManifest,
    metrics: Mapping[str, float] = MappingProxyType({}),
) -> CheckpointEntry:
    """Make a checkpoint exist, once all its shards are written. May be called again after a failure.

    Args:
        store: The run's store.
        log: The run's commit log.
        lease: Of this attempt.
        manifest: What was written.
        metrics: What the last step reported; numbers that are not finite are left out.

    Raises:
        FencedError: A newer attempt holds the lease; nothing was committed.
        CorruptCheckpointError: A shard is missing or of the wrong size, or the shards do not hold all of the state.
        ValueError: The manifest is of another attempt than the lease.
    """
    if manifest.attempt != lease.attempt:
        raise ValueError(f"a manifest of attempt {manifest.attempt} under the lease of attempt {lease.attempt}")
    if fault := manifest_fault(manifest):
        raise CorruptCheckpointError(
            f"the checkpoint {store.url}/{manifest.folder} is not whole: {fault}", "Nothing was committed; report this"
        )
    check_shards(store, manifest)
    data = manifest.model_dump_json().encode()
    _write_once(store, manifest.key, data)
    entry = CheckpointEntry(
        attempt=manifest.attempt,
        step=manifest.step,
        manifest_key=manifest.key,
        manifest_sha256=hashlib.sha256(data).hexdigest(),
        metrics={name: float(value) for name, value in metrics.items() if math.isfinite(value)},
    )
    log.append(lease, entry)
    return entry


def _write_once(store: Store, key: str, data: bytes) -> None:
    try:
        store.create(key, data)
    except ObjectExistsError:
        if store.get(key) != data:  # equal bytes: an earlier call of commit came as far as this
            raise


def _header(slices: Sequence[StateSlice]) -> tuple[bytes, tuple[SliceRecord, ...]]:
    """The head of a safetensors file (length, JSON, padding; https://huggingface.co/docs/safetensors) and its index."""
    entries: dict[str, dict[str, object]] = {}
    position = 0
    for each in slices:
        if each.name in entries or each.values.dtype not in NAMES:
            raise ValueError(f"{each.name}: twice in one shard, or of a type that is not stored ({each.values.dtype})")
        end = position + each.values.numel() * each.values.element_size()
        dtype = NAMES[each.values.dtype]
        entries[each.name] = {"dtype": dtype, "shape": [each.values.numel()], "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return header, _records(slices, len(header))


def _records(slices: Sequence[StateSlice], position: int) -> tuple[SliceRecord, ...]:
    records: list[SliceRecord] = []
    for each in slices:
        numel = each.values.numel()
        dtype = NAMES[each.values.dtype]
        records.append(
            SliceRecord(tensor=each.tensor, offset=each.offset, numel=numel, dtype=dtype, start_byte=position)
        )
        position += numel * each.values.element_size()
    return tuple(records)


def _bytes_of(values: torch.Tensor) -> memoryview:
    return values.detach().cpu().contiguous().view(torch.uint8).numpy().data


class _HashedContent:
    """The bytes of a file, hashed by chunk while they are handed out; handing out begins anew on every call.

    Chunks are hashed by threads of their own, ahead of what is written: one core hashes no faster than a disk writes.
    """

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._chunks = list(_chunks(views))
        self.size_bytes = sum(len(view) for view in views)
        self.chunk_sha256: list[str] = []

    def pieces(self) -> Iterator[memoryview]:
        self.chunk_sha256 = []
        hashes = map_in_flight(_sha256, self._chunks, _HASHERS)
        for chunk, sha256 in zip(self._chunks, hashes, strict=True):
            self.chunk_sha256.append(sha256)
            yield from chunk


def _chunks(views: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """The pieces of each chunk of the file that the views are together."""
    chunk: list[memoryview] = []
    room = CHUNK_BYTES
    for view in views:
        position = 0
        while position < len(view):
            piece = view[position : position + min(room, _PIECE_BYTES)]
            chunk.append(piece)
            position += len(piece)
            room -= len(piece)
            if not room:
                yield chunk
                chunk, room = [], CHUNK_BYTES
    if chunk:
        yield chunk


def _sha256(pieces: Sequence[memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
