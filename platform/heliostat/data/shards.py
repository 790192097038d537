"""Shards: Parquet objects of encoded images, read one verified row group at a time.

A shard is uncompressed (JPEG, PNG and WebP do not shrink further) and named by the hash of its bytes. The manifest
knows the byte range and the hash of every row group and of the footer. A reader fetches exactly those ranges and hashes
them before Parquet sees a byte; anything outside them does not exist for it. Beside each shard lie its ids alone.
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from heliostat.data.manifest import ByteRange, DatasetManifest, RowGroup, Shard
from heliostat.errors import CorruptShardError, ObjectNotFoundError
from heliostat.storage import Store

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # sha256 of the encoded bytes, hexadecimal
        pa.field("image", pa.binary(), nullable=False),  # encoded bytes, as they were found
        pa.field("width", pa.int32(), nullable=False),  # pixels, upright
        pa.field("height", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # path below the source folder
        pa.field("label", pa.int32()),  # index into the manifest's labels
    ]
)


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """How rows are cut into row groups and shards. Each bound holds unless a single image is above it."""

    group_rows: int = 128
    group_bytes: int = 32 * 2**20
    shard_groups: int = 32
    shard_bytes: int = 256 * 2**20


DEFAULT_LAYOUT = ShardLayout()


def plan_shards(sizes_bytes: Sequence[int], layout: ShardLayout = DEFAULT_LAYOUT) -> list[list[range]]:
    """Cut rows into shards of row groups: ranges of positions in ``sizes_bytes``, the sizes of the rows' images."""
    groups = _cut(sizes_bytes, layout.group_rows, layout.group_bytes)
    group_bytes = [sum(sizes_bytes[row] for row in group) for group in groups]
    return [[groups[g] for g in shard] for shard in _cut(group_bytes, layout.shard_groups, layout.shard_bytes)]


def write_shard(path: Path, groups: Iterable[pa.Table]) -> Shard:
    """Write row groups (tables of ``SCHEMA``, none empty, at least one) to a local file and describe it.

    The ids go to a file beside it. The same rows give the same bytes with the same version of pyarrow. ``groups`` is
    consumed one by one.
    """
    ids: list[str] = []
    with pq.ParquetWriter(path, SCHEMA, compression="none", use_dictionary=False, write_statistics=False) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=group.num_rows)
            ids.extend(group["id"].to_pylist())
    packed_ids = b"".join(bytes.fromhex(name) for name in ids)
    path.with_suffix(".ids").write_bytes(packed_ids)
    metadata = pq.read_metadata(path)
    with path.open("rb") as file:
        row_groups = tuple(_describe(file, metadata.row_group(g)) for g in range(metadata.num_row_groups))
        size_bytes = path.stat().st_size
        footer = _hashed(file, row_groups[-1].end, size_bytes)
        file.seek(0)
        name = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return Shard(
        key=f"shards/part-{name}.parquet",
        size_bytes=size_bytes,
        rows=metadata.num_rows,
        footer=footer,
        row_groups=row_groups,
        ids_sha256=hashlib.sha256(packed_ids).hexdigest(),
    )


def upload_shard(store: Store, shard: Shard, path: Path) -> None:
    """Put what ``write_shard`` wrote into the dataset's part of a root. Doing it twice changes nothing."""
    store.upload(shard.ids_key, path.with_suffix(".ids"))
    store.upload(shard.key, path)


def read_row_group(store: Store, manifest: DatasetManifest, shard_index: int, group_index: int) -> pa.Table:
    """One row group, verified, as a table of ``SCHEMA``. Reads its bytes and, once per shard, the footer.

    ``store`` is the dataset's part of the root.

    Raises:
        CorruptShardError: the bytes are not those that were ingested, or they are gone.
    """
    shard = manifest.shards[shard_index]
    group = shard.row_groups[group_index]
    metadata = _footer(_Footer(shard.key, shard.footer.sha256, store, shard))
    data = _verified(store, shard, group, f"row group {group_index}")
    with pq.ParquetFile(_Window(data, group.offset, shard.size_bytes), metadata=metadata, pre_buffer=False) as file:
        table = file.read_row_group(group_index, use_threads=False)
    if not table.schema.equals(SCHEMA) or table.num_rows != group.rows:
        raise _corrupt(
            store, shard, f"row group {group_index}", "holds other columns or rows than a shard of a dataset"
        )
    return table


def read_ids(store: Store, shard: Shard) -> list[str]:
    """Ids of all rows of a shard, verified, without reading its images.

    Raises:
        CorruptShardError: the list is not the one that was ingested, or it is gone.
    """
    try:
        data = store.get(shard.ids_key)
    except ObjectNotFoundError as error:
        raise _corrupt(store, shard, "list of ids", "is missing") from error
    if hashlib.sha256(data).hexdigest() != shard.ids_sha256:
        raise _corrupt(store, shard, "list of ids", "does not have the hash that the manifest names")
    return [data[at : at + 32].hex() for at in range(0, len(data), 32)]


def _cut(sizes: Sequence[int], most: int, most_bytes: int) -> list[range]:
    """Consecutive runs of at most ``most`` entries and ``most_bytes`` in sum."""
    runs: list[range] = []
    start = taken = 0
    for at, size in enumerate(sizes):
        if at > start and (at - start == most or taken + size > most_bytes):
            runs.append(range(start, at))
            start, taken = at, 0
        taken += size
    return [*runs, range(start, len(sizes))] if sizes else []


def _describe(file: io.BufferedReader, group: pq.RowGroupMetaData) -> RowGroup:
    columns = [group.column(c) for c in range(group.num_columns)]
    start = min(column.data_page_offset for column in columns)  # there are no dictionary pages
    end = max(column.data_page_offset + column.total_compressed_size for column in columns)
    return RowGroup(rows=group.num_rows, **_hashed(file, start, end).model_dump())


def _hashed(file: io.BufferedReader, start: int, end: int) -> ByteRange:
    file.seek(start)
    return ByteRange(offset=start, size_bytes=end - start, sha256=hashlib.sha256(file.read(end - start)).hexdigest())


@dataclass(frozen=True, slots=True)
class _Footer:
    """Name of a footer in the cache; its hash says all, so that one store may stand for another."""

    key: str
    sha256: str
    store: Store = field(compare=False)
    shard: Shard = field(compare=False)


@lru_cache(maxsize=256)
def _footer(name: _Footer) -> pq.FileMetaData:
    data = _verified(name.store, name.shard, name.shard.footer, "footer")
    # Parquet finds the footer from the end of a file and only wants to see the magic at its start.
    return pq.read_metadata(pa.BufferReader(b"PAR1" + data))


def _verified(store: Store, shard: Shard, part: ByteRange, what: str) -> bytes:
    try:
        data = store.get(shard.key, part.offset, part.end)
    except ObjectNotFoundError as error:
        raise _corrupt(store, shard, what, "is missing") from error
    if len(data) != part.size_bytes or hashlib.sha256(data).hexdigest() != part.sha256:
        raise _corrupt(store, shard, what, "does not have the hash that the manifest names")
    return data


def _corrupt(store: Store, shard: Shard, what: str, fact: str) -> CorruptShardError:
    return CorruptShardError(
        f"{what} of {shard.key} under {store.url} {fact}",
        "Restore the object from a backup, or ingest the images again under another name",
    )


class _Window(io.RawIOBase):
    """A file of which only one verified range exists."""

    def __init__(self, data: bytes, offset: int, file_bytes: int) -> None:
        self._data = data
        self._offset = offset
        self._file_bytes = file_bytes
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file_bytes}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        start = self._at - self._offset
        end = start + size
        if size < 0 or start < 0 or end > len(self._data):
            raise OSError(f"bytes {self._at} to {self._at + size} are outside the verified range")
        self._at += size
        return self._data[start:end]
