"""Shards: Parquet objects of encoded images, read one verified row group at a time.

A shard is uncompressed (JPEG, PNG and WebP do not shrink further) and named by the hash of its bytes. The manifest
knows the byte range and the hash of every row group and of the footer. A reader fetches exactly those ranges and hashes
them before Parquet sees a byte; anything outside them does not exist for it. Beside each shard lies its index.
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from heliostat.data.manifest import ByteRange, DatasetManifest, ParquetObject, RowGroup, Shard, ShardRowGroup
from heliostat.data.ranges import corrupt, read_verified
from heliostat.data.shard_index import NO_LABEL, ROW, Index, find_images
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

    The index goes to a file beside it. The same rows give the same bytes with the same version of pyarrow. ``groups``
    is consumed one by one.
    """
    with pq.ParquetWriter(path, SCHEMA, compression="none", use_dictionary=False, write_statistics=False) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=group.num_rows)
    row_groups = []
    described = describe_parquet(path)
    with pq.ParquetFile(path) as parquet, path.open("rb") as file, path.with_suffix(".index").open("wb") as index_file:
        for number, group in enumerate(described.row_groups):
            file.seek(group.offset)
            index = _index(parquet.read_row_group(number), file.read(group.size_bytes), group.offset).tobytes()
            index_file.write(index)
            row_groups.append(ShardRowGroup(**group.model_dump(), index_sha256=hashlib.sha256(index).hexdigest()))
        file.seek(0)
        name = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return Shard(
        key=f"shards/part-{name}.parquet",
        size_bytes=described.size_bytes,
        rows=described.rows,
        footer=described.footer,
        row_groups=tuple(row_groups),
    )


def upload_shard(store: Store, shard: Shard, path: Path) -> None:
    """Put what ``write_shard`` wrote into the dataset's part of a root. Doing it twice changes nothing."""
    store.upload(shard.index_key, path.with_suffix(".index"))
    store.upload(shard.key, path)


def read_row_group(store: Store, manifest: DatasetManifest, shard_index: int, group_index: int) -> pa.Table:
    """One row group, verified, as a table of ``SCHEMA``. Reads its bytes and, once per shard, the footer.

    ``store`` is the dataset's part of the root.

    Raises:
        CorruptShardError: the bytes are not those that were ingested, or they are gone.
    """
    shard = manifest.shards[shard_index]
    return read_parquet_group(store, shard.key, shard, group_index, SCHEMA)


def read_parquet_group(
    store: Store, key: str, described: ParquetObject, group_index: int, schema: pa.Schema
) -> pa.Table:
    """One row group of a Parquet object that a manifest describes, verified.

    Raises:
        CorruptShardError: the bytes are not those that the manifest names, they are gone, or they hold something else.
    """
    group = described.row_groups[group_index]
    what = f"row group {group_index}"
    metadata = _footer(_Footer(key, described.footer.sha256, store, described))
    data = read_verified(store, key, group, what)
    with pq.ParquetFile(_Window(data, group.offset, described.size_bytes), metadata=metadata, pre_buffer=False) as file:
        table = file.read_row_group(group_index, use_threads=False)
    if not table.schema.equals(schema) or table.num_rows != group.rows:
        raise corrupt(store, key, what, "holds other columns or rows than it should")
    return table


def describe_parquet(path: Path) -> ParquetObject:
    """The byte ranges of a Parquet file and their hashes."""
    metadata = pq.read_metadata(path)
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        row_groups = tuple(_describe(file, metadata.row_group(g)) for g in range(metadata.num_row_groups))
        footer = _hashed(file, row_groups[-1].end, size_bytes)
    return ParquetObject(size_bytes=size_bytes, rows=metadata.num_rows, footer=footer, row_groups=row_groups)


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


def _index(rows: pa.Table, chunk: bytes, chunk_offset: int) -> Index:
    """The index of a row group, from its rows and its bytes."""
    images = rows["image"].to_pylist()
    index = np.zeros(rows.num_rows, ROW)
    index["id"] = [bytes.fromhex(name) for name in rows["id"].to_pylist()]
    index["offset"] = chunk_offset + np.array(find_images(chunk, images))
    index["size"] = [len(image) for image in images]
    for column in ("width", "height"):
        index[column] = rows[column].to_numpy()
    index["label"] = rows["label"].fill_null(NO_LABEL).to_numpy()
    return index


def _describe(file: io.BufferedReader, group: pq.RowGroupMetaData) -> RowGroup:
    columns = [group.column(c) for c in range(group.num_columns)]
    starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
    end = max(start + column.total_compressed_size for start, column in zip(starts, columns, strict=True))
    return RowGroup(rows=group.num_rows, **_hashed(file, min(starts), end).model_dump())


def _hashed(file: io.BufferedReader, start: int, end: int) -> ByteRange:
    file.seek(start)
    return ByteRange(offset=start, size_bytes=end - start, sha256=hashlib.sha256(file.read(end - start)).hexdigest())


@dataclass(frozen=True, slots=True)
class _Footer:
    """Name of a footer in the cache; its hash says all, so that one store may stand for another."""

    key: str
    sha256: str
    store: Store = field(compare=False)
    described: ParquetObject = field(compare=False)


@lru_cache(maxsize=256)
def _footer(name: _Footer) -> pq.FileMetaData:
    data = read_verified(name.store, name.key, name.described.footer, "footer")
    # Parquet finds the footer from the end of a file and only wants to see the magic at its start.
    return pq.read_metadata(pa.BufferReader(b"PAR1" + data))


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
