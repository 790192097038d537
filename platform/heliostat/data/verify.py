"""Verification of a dataset at rest: every byte that a manifest names is read and hashed, every image by its id."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from heliostat.data.manifest import ByteRange, DatasetManifest, ParquetObject
from heliostat.data.ranges import corrupt, read_verified
from heliostat.data.selection import GroupTable, load_parts, read_selected
from heliostat.data.shard_index import read_group_index
from heliostat.errors import CorruptManifestError, CorruptShardError, DatasetNotFoundError
from heliostat.storage import Store
from heliostat.storage.in_flight import map_in_flight
from heliostat.storage.layout import dataset_store


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What was looked at, in images and bytes, and what is broken, one sentence each."""

    images: int
    size_bytes: int
    repeated_reads: int
    duration_s: float
    broken: tuple[str, ...]


@dataclass(slots=True)
class _Tally:
    """Counted by all threads."""

    size_bytes: int = 0
    repeated_reads: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fetched(self, size_bytes: int, again: bool) -> None:
        with self.lock:
            self.size_bytes += size_bytes
            self.repeated_reads += again


@dataclass(frozen=True, slots=True)
class _Found:
    images: int = 0
    broken: tuple[str, ...] = ()


_Check = Callable[[_Tally], _Found]


def verify_dataset(
    root: Store, manifest: DatasetManifest, report: Callable[[int, int], None] = lambda done, total: None
) -> VerifyResult:
    """Read all that a manifest names and compare it: row groups, footers, indexes, quarantine, and every image's id.

    Of a selection that is its rows, and the row groups of its parts that hold any of them. Eight threads, a row group
    each in memory. ``report`` is told how many images of how many are done.

    Raises:
        StorageError: the store does not cooperate. What is broken or missing is in the result instead.
    """
    started = time.monotonic()
    tally = _Tally()
    images = 0
    broken: list[str] = []
    try:
        parts = load_parts(root, manifest)
    except (CorruptManifestError, DatasetNotFoundError) as error:
        parts = ()
        broken.append(error.fact)
    wanted = [_wanted_groups(root, manifest, number, part, broken) for number, part in enumerate(parts)]
    total = sum(part.group_rows[group] for part, groups in zip(parts, wanted, strict=True) for group in groups)
    for found in map_in_flight(lambda check: check(tally), _checks(root, manifest, parts, wanted)):
        images += found.images
        broken += found.broken
        report(images, total)
    return VerifyResult(images, tally.size_bytes, tally.repeated_reads, time.monotonic() - started, tuple(broken))


def _wanted_groups(
    root: Store, manifest: DatasetManifest, number: int, part: DatasetManifest, broken: list[str]
) -> list[int]:
    """The row groups of a part that hold any row, counted through all its shards."""
    selection = manifest.selection
    if selection is None:
        return list(range(len(part.group_rows)))
    table = GroupTable(part)
    touched: set[int] = set()
    for chunk in range(len(selection.row_groups)):
        try:
            parts, rows = read_selected(dataset_store(root, manifest.name), selection, chunk)
        except CorruptShardError as error:
            if number == 0:  # each part comes here
                broken.append(error.fact)
            continue
        touched.update(np.unique(table.group_of(rows[parts == number])).tolist())
    return sorted(touched)


def _checks(
    root: Store, manifest: DatasetManifest, parts: tuple[DatasetManifest, ...], wanted: list[list[int]]
) -> Iterator[_Check]:
    own = dataset_store(root, manifest.name)
    for listed in manifest.quarantine:
        whole = ByteRange(offset=0, size_bytes=listed.size_bytes, sha256=listed.sha256)
        yield partial(_check_range, own, listed.key, whole, "the list")
    if manifest.selection is not None:
        yield partial(_check_footer, own, manifest.selection.key, manifest.selection)
    for part, groups in zip(parts, wanted, strict=True):
        store = dataset_store(root, part.name)
        table = GroupTable(part)
        for number in groups:
            shard = int(table.shards[number])
            group = number - int(table.firsts[shard])
            if group == 0 or number == groups[0]:
                yield partial(_check_footer, store, part.shards[shard].key, part.shards[shard])
            yield partial(_check_group, store, part, shard, group)


def _check_footer(store: Store, key: str, described: ParquetObject, tally: _Tally) -> _Found:
    return _check_range(store, key, described.footer, "footer", tally)


def _check_range(store: Store, key: str, part: ByteRange, what: str, tally: _Tally) -> _Found:
    try:
        read_verified(store, key, part, what, tally.fetched)
    except CorruptShardError as error:
        return _Found(broken=(error.fact,))
    return _Found()


def _check_group(store: Store, part: DatasetManifest, shard_index: int, group_index: int, tally: _Tally) -> _Found:
    """A row group by its hash, its slice of the index by its own, and each image by its id."""
    shard = part.shards[shard_index]
    group = shard.row_groups[group_index]
    broken: list[str] = []
    data = index = None
    try:
        data = read_verified(store, shard.key, group, f"row group {group_index}", tally.fetched)
    except CorruptShardError as error:
        broken.append(error.fact)
    try:
        index = read_group_index(store, shard, group_index, tally.fetched)
    except CorruptShardError as error:
        broken.append(error.fact)
    if data is not None and index is not None:
        view = memoryview(data)
        for row in index:
            start = int(row["offset"]) - group.offset
            if hashlib.sha256(view[start : start + int(row["size"])]).digest() != row["id"].tobytes():
                what = f"image {row['id'].tobytes().hex()} in row group {group_index}"
                broken.append(corrupt(store, shard.key, what, "does not have the hash that is its id").fact)
    return _Found(group.rows, tuple(broken))
