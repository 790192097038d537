"""Reading rows of a dataset, or of a selection from several, in any order and with no more bytes than that needs.

A row group is fetched whole, or as ranges around the wanted images (``read_plan`` decides); the index of its shard says
where images lie. Bytes are compared with their hash before anything is made of them: a whole row group with that of
the manifest, a single image with its id. Parquet itself is not involved.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import pyarrow as pa

from heliostat.data.cache import ShardCache
from heliostat.data.labels import merge_labels
from heliostat.data.manifest import DatasetManifest, Selection, Shard, ShardRowGroup
from heliostat.data.memory import ByteLru
from heliostat.data.ranges import read_span, read_until, read_verified
from heliostat.data.read_plan import S3_COSTS, Span, plan_group
from heliostat.data.selection import GroupTable, Rows, load_parts, read_selected
from heliostat.data.shard_index import NO_LABEL, ROW, Index, read_group_index
from heliostat.storage import Store
from heliostat.storage.layout import dataset_store

GROUPS_MAX_BYTES = 256 * 2**20
INDEXES_MAX_BYTES = 64 * 2**20
_GROUPS: ByteLru[bytes] = ByteLru(GROUPS_MAX_BYTES, len)
_INDEXES: ByteLru[bytes] = ByteLru(INDEXES_MAX_BYTES, len)
"""Of the process, for all readers in it: Ray keeps its worker processes, and neighbouring reads need the same ones. A
read holds besides these its result twice, and in each of ``S3_COSTS.in_flight`` threads one row group."""


@dataclass(frozen=True, slots=True)
class ReadStats:
    """What a reader has done since it was made, in this process."""

    bytes_read: int = 0
    """From the store, indexes and repeated reads included."""
    bytes_used: int = 0
    """Of images that were returned; one that a read asks for twice counts once."""
    requests: int = 0
    cached_bytes: int = 0
    """From the cache on the local disk."""
    repeated_reads: int = 0
    """Because what had come did not have its hash."""


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Where a row is: in which part of a selection (0 for other datasets), shard, row group, and row of that."""

    part: int
    shard: int
    group: int
    row: int


_Found = tuple[int, str, int, bytes]
"""Place in the result, id, label as its part numbers them, and image."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Wanted rows of one row group: ``rows`` within it, and ``places`` in the result. (N,) both."""

    part: int
    store: Store
    shard_index: int
    shard: Shard
    index: int
    rows: Rows
    places: Rows
    more_wanted: bool

    @property
    def described(self) -> ShardRowGroup:
        return self.shard.row_groups[self.index]

    def ranges(self, index: Index) -> list[tuple[int, int]]:
        wanted = index[self.rows]
        ends = wanted["offset"] + wanted["size"]
        return list(zip(wanted["offset"].tolist(), ends.tolist(), strict=True))

    def cut(self, index: Index, data: bytes) -> list[_Found]:
        """The wanted images out of all bytes of the row group."""
        first = self.described.offset
        return [
            (place, index["id"][row].tobytes().hex(), index["label"][row], data[start - first : end - first])
            for place, row, (start, end) in zip(self.places.tolist(), self.rows, self.ranges(index), strict=True)
        ]


class RowReader:
    """Reads rows by number. Cheap to make, picklable (what it has learnt stays behind), safe to use from many threads.

    Args:
        root: The root that holds the dataset, and the parts of a selection.
        manifest: What to read.
        cache: Row groups on the local disk. If it is large enough for the dataset, row groups are always read whole:
            each byte then comes from the store once per machine.
        alone: Whether the other rows of a row group will be asked of this reader too, and not of other processes.
    """

    def __init__(
        self, root: Store, manifest: DatasetManifest, cache: ShardCache | None = None, *, alone: bool = True
    ) -> None:
        self._root = root
        self._manifest = manifest
        self._cache = cache
        self._alone = alone
        self._stats = ReadStats()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., "RowReader"], tuple[Store, DatasetManifest, ShardCache | None]]:
        return (partial(RowReader, alone=self._alone), (self._root, self._manifest, self._cache))

    @property
    def stats(self) -> ReadStats:
        """What this reader has done so far."""
        return self._stats

    def read(self, rows: Sequence[int]) -> pa.Table:
        """Columns ``id``, ``image`` and ``label`` of these rows of the manifest, in this order.

        A label is a number of ``class_names``, or ``NO_LABEL``.

        Raises:
            IndexError: the manifest has no such row.
            CorruptShardError: an image is not the one that was ingested.
            StorageError: the store does not cooperate.
        """
        wanted, order = self._sorted(rows)
        ids = [""] * len(wanted)
        images = [b""] * len(wanted)
        labels = np.full(len(wanted), NO_LABEL, np.int64)
        groups = self._groups(wanted)
        for place, name, label, image in self._fetch(groups):
            ids[place], labels[place], images[place] = name, label, image
        for group in groups:
            labels[group.places] = self._labels[1][group.part][labels[group.places]]
        self._count(bytes_used=sum(map(len, images)))
        return pa.table(
            {
                "id": pa.array([ids[place] for place in order], pa.string()),
                "image": pa.array([images[place] for place in order], pa.binary()),
                "label": pa.array(labels[order], pa.int64()),
            }
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """What labels are numbers of: the classes of all parts."""
        return self._labels[0]

    def locate(self, rows: Sequence[int]) -> list[RowPlace]:
        """Where these rows of the manifest are, in this order, without reading them.

        Raises:
            IndexError: the manifest has no such row.
            CorruptShardError: the rows of a selection are damaged or gone.
        """
        wanted, back = self._sorted(rows)
        found: list[tuple[int, RowPlace]] = []
        for group in self._groups(wanted):
            pairs = zip(group.places.tolist(), group.rows.tolist(), strict=True)
            found += [(place, RowPlace(group.part, group.shard_index, group.index, row)) for place, row in pairs]
        places = [place for _, place in sorted(found, key=lambda one: one[0])]
        return [places[number] for number in back]

    def _sorted(self, rows: Sequence[int]) -> tuple[Rows, list[int]]:
        """Each row once, in order, and for each of ``rows`` its number among them."""
        wanted, back = np.unique(np.asarray(rows, np.int64), return_inverse=True)
        if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < self._manifest.rows:
            raise IndexError(f"rows {wanted[0]} to {wanted[-1]} of a dataset with {self._manifest.rows}")
        return wanted, back.tolist()

    def _fetch(self, groups: list[_Group]) -> list[_Found]:
        """All wanted rows, in any order."""
        pool = ThreadPoolExecutor(S3_COSTS.in_flight, thread_name_prefix="read-rows")
        try:
            requests: list[Future[list[_Found]]] = []
            for prepared in as_completed([pool.submit(self._prepare, group) for group in groups]):
                requests += [pool.submit(request) for request in prepared.result()]
            return [found for request in requests for found in request.result()]
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepare(self, group: _Group) -> list[Callable[[], list[_Found]]]:
        """What to do for the rows of a group: each by itself, so that they can be done at once."""
        index = self._index(group)
        ranges = group.ranges(index)
        held = self._held(group.described.sha256)
        if held is not None:
            return [partial(group.cut, index, held)]
        spans = None
        if not self._keeps_all:
            spans = plan_group(ranges, group.described, more_wanted=group.more_wanted and self._alone)
        if spans is None:
            return [partial(self._read_whole, group, index)]
        return [partial(self._read_span, group, index, ranges, span) for span in spans]

    def _index(self, group: _Group) -> Index:
        sha256 = group.described.index_sha256
        data = _INDEXES.get(sha256)
        if data is None:
            data = read_group_index(group.store, group.shard, group.index, self._fetched).tobytes()
            _INDEXES.put(sha256, data)
        return np.frombuffer(data, ROW)

    def _held(self, sha256: str) -> bytes | None:
        """A whole row group from memory or the local disk."""
        data = _GROUPS.get(sha256)
        if data is None and self._cache is not None:
            data = self._cache.get(sha256)
            if data is not None:
                self._count(cached_bytes=len(data))
                _GROUPS.put(sha256, data)
        return data

    def _read_whole(self, group: _Group, index: Index) -> list[_Found]:
        part = group.described
        data = read_verified(group.store, group.shard.key, part, f"row group {group.index}", self._fetched)
        _GROUPS.put(part.sha256, data)
        if self._cache is not None:
            self._cache.put(part.sha256, data)
        return group.cut(index, data)

    def _read_span(self, group: _Group, index: Index, ranges: list[tuple[int, int]], span: Span) -> list[_Found]:
        key = group.shard.key
        data = read_span(group.store, key, (span.start, span.end), f"row group {group.index}")
        self._fetched(len(data), False)
        found = []
        for position in span.images:
            start, end = ranges[position]
            name = index["id"][group.rows[position]].tobytes()
            image = data[start - span.start : end - span.start]
            if hashlib.sha256(image).digest() != name:
                image = self._read_again(group, name, (start, end))
            label = index["label"][group.rows[position]]
            found.append((int(group.places[position]), name.hex(), label, image))
        return found

    def _read_again(self, group: _Group, name: bytes, bounds: tuple[int, int]) -> bytes:
        """An image that came with another hash than its id, by itself."""

        def right(data: bytes) -> bool:
            return hashlib.sha256(data).digest() == name

        what = f"image {name.hex()} in row group {group.index}"
        return read_until(right, group.store, group.shard.key, bounds, what, lambda size, _: self._fetched(size, True))

    def _fetched(self, size_bytes: int, again: bool) -> None:
        self._count(bytes_read=size_bytes, requests=1, repeated_reads=int(again))

    def _count(self, **more: int) -> None:
        with self._lock:
            self._stats = replace(
                self._stats, **{name: getattr(self._stats, name) + count for name, count in more.items()}
            )

    @cached_property
    def _parts(self) -> list[tuple[Store, DatasetManifest, GroupTable]]:
        return [
            (dataset_store(self._root, part.name), part, GroupTable(part))
            for part in load_parts(self._root, self._manifest)
        ]

    @cached_property
    def _labels(self) -> tuple[tuple[str, ...], list[Rows]]:
        return merge_labels([manifest.labels for _, manifest, _ in self._parts])

    @cached_property
    def _starts(self) -> Rows:
        """First row of each of the manifest's row groups."""
        return np.concatenate([[0], np.cumsum(self._manifest.group_rows)]).astype(np.int64)

    @cached_property
    def _keeps_all(self) -> bool:
        sizes = sum(part.size_bytes for _, part, _ in self._parts)
        return self._cache is not None and sizes <= self._cache.max_bytes

    def _groups(self, rows: Rows) -> list[_Group]:
        """Sorted rows of the manifest by the row group that holds them."""
        parts, there = self._in_parts(rows)
        sizes = np.diff(self._starts)
        groups = []
        for number, places in _runs(np.searchsorted(self._starts, rows, side="right") - 1):
            part = int(parts[places[0]])
            store, manifest, table = self._parts[part]
            inside = there[places]
            group = int(table.group_of(inside[:1])[0])
            shard = int(table.shards[group])
            groups.append(
                _Group(
                    part=part,
                    store=store,
                    shard_index=shard,
                    shard=manifest.shards[shard],
                    index=group - int(table.firsts[shard]),
                    rows=inside - table.starts[group],
                    places=places,
                    more_wanted=bool(len(places) < sizes[number]),
                )
            )
        return groups

    def _in_parts(self, rows: Rows) -> tuple[Rows, Rows]:
        """For sorted rows of the manifest: which part holds each, and its row in that part. (N,) both."""
        selection = self._manifest.selection
        if selection is None:
            return np.zeros_like(rows), rows
        starts = np.concatenate([[0], np.cumsum([chunk.rows for chunk in selection.row_groups])])
        parts, there = np.empty_like(rows), np.empty_like(rows)
        for chunk, here in _runs(np.searchsorted(starts, rows, side="right") - 1):
            selected = self._selected(selection, chunk)[rows[here] - starts[chunk]]
            parts[here], there[here] = selected[:, 0], selected[:, 1]
        return parts, there

    def _selected(self, selection: Selection, chunk: int) -> Rows:
        """Part and row, (N, 2), of one row group of the selection's own object."""
        sha256 = selection.row_groups[chunk].sha256
        data = _INDEXES.get(sha256)
        if data is None:
            store = dataset_store(self._root, self._manifest.name)
            data = np.stack(read_selected(store, selection, chunk), axis=1).tobytes()
            _INDEXES.put(sha256, data)
        return np.frombuffer(data, np.int64).reshape(-1, 2)


def _runs(numbers: Rows) -> Iterator[tuple[int, Rows]]:
    """Each of the sorted numbers once, and where it stands."""
    found, firsts = np.unique(numbers, return_index=True)
    for number, first, end in zip(found.tolist(), firsts, np.append(firsts, len(numbers))[1:], strict=True):
        yield number, np.arange(first, end)
