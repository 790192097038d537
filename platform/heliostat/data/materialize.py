"""A curated selection written out as shards of its own: the same images under the same ids, one after the other.

Rows are stored by id, as ingest stores them. Whole row groups are read, since that is also where a row's source is
verified. The parts are in the order of ids too (each ingest into them adds one such run), so the row groups that follow
one another here are neighbours there, and each is read about once. Nothing is published before all shards are in place;
shards are named by their content, so starting again after a crash writes the same ones.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from heliostat import __version__
from heliostat.data.catalogue import list_rows
from heliostat.data.labels import merge_labels
from heliostat.data.manifest import (
    DatasetManifest,
    Provenance,
    Shard,
    check_dataset_name,
    load_provenance,
    read_head,
    write_manifest,
)
from heliostat.data.memory import ByteLru
from heliostat.data.selection import Rows, load_parts
from heliostat.data.shard_index import NO_LABEL
from heliostat.data.shards import SCHEMA, plan_shards, read_row_group, upload_shard, write_shard
from heliostat.errors import SelectionError, StoreFailedError
from heliostat.storage import Store
from heliostat.storage.in_flight import map_in_flight
from heliostat.storage.layout import dataset_store

_KEPT_BYTES = 512 * 2**20
"""Row groups that are kept in memory, because the rows that follow may need them again."""


@dataclass(frozen=True, slots=True)
class MaterializeResult:
    """What was written. ``duplicates`` are images that two parts hold: the first one's row was taken."""

    manifest_sha256: str
    images: int
    duplicates: int
    size_bytes: int
    bytes_read: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class _Listing:
    """The rows to write, sorted by id; (N,) each: where they are, and their sizes and labels."""

    parts: Rows
    shards: Rows
    groups: Rows
    rows: Rows
    sizes: Rows
    labels: Rows
    names: tuple[str, ...]
    duplicates: int


def materialize(
    root: Store,
    manifest: DatasetManifest,
    name: str,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> MaterializeResult:
    """Write the images of a selection as the dataset ``name`` of the same root. Done already, it reads nothing.

    Memory: 80 bytes per row, 512 MiB of row groups, and sixteen more that are being read; local disk: one shard.
    ``report`` is told how many images of how many are written.

    Raises:
        InvalidValueError: ``name`` cannot be that of a dataset.
        SelectionError: the manifest is no selection, or ``name`` exists and is something else.
        CorruptShardError: a row group of a part is damaged or gone.
        VersionConflictError, ObjectExistsError: another dataset of this name was published meanwhile.
        StorageError: the store, or the local disk on which a shard is assembled, does not cooperate.
    """
    check_dataset_name(name)
    started = time.monotonic()
    if manifest.selection is None:
        raise SelectionError(f"{manifest.name!r} has shards of its own", "Materialize a curated selection")
    source = f"materialized {manifest.name}@{manifest.sha256}"
    done = _already(root, name, source)
    if done is not None:
        return MaterializeResult(done.sha256, done.rows, 0, done.size_bytes, 0, time.monotonic() - started)
    parts = load_parts(root, manifest)
    listing = _list(root, manifest, parts)
    reader = _GroupReader(root, parts)
    shards = tuple(_write(dataset_store(root, name), listing, reader, report))
    written = DatasetManifest(name=name, labels=listing.names, shards=shards)
    provenance = Provenance(
        source=source,
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        heliostat_version=__version__,
        parent_sha256=None,
        images_added=written.rows,
        duplicates=listing.duplicates,
    )
    sha256 = write_manifest(root, written, provenance)
    return MaterializeResult(
        sha256, written.rows, listing.duplicates, written.size_bytes, reader.bytes_read, time.monotonic() - started
    )


def _already(root: Store, name: str, source: str) -> DatasetManifest | None:
    """The dataset of this name if it is what would be written."""
    head = read_head(root, name)
    if head is None:
        return None
    found = load_provenance(root, name, head.manifest.sha256).source
    if found != source:
        raise SelectionError(f"the dataset {name!r} exists and comes from {found!r}", "Choose another name")
    return head.manifest


def _list(root: Store, manifest: DatasetManifest, parts: tuple[DatasetManifest, ...]) -> _Listing:
    names, places = merge_labels([part.labels for part in parts])
    found = list(list_rows(root, manifest, parts))
    ids = np.concatenate([listed.index["id"] for listed in found])
    # The first of each id: parts come in their order.
    _, order = np.unique(ids, return_index=True)
    return _Listing(
        parts=np.repeat([listed.part for listed in found], [len(listed.rows) for listed in found])[order],
        shards=np.repeat([listed.shard for listed in found], [len(listed.rows) for listed in found])[order],
        groups=np.concatenate([listed.groups for listed in found])[order],
        rows=np.concatenate([listed.rows for listed in found])[order],
        sizes=np.concatenate([listed.index["size"] for listed in found])[order].astype(np.int64),
        labels=np.concatenate([places[listed.part][listed.index["label"]] for listed in found])[order],
        names=names,
        duplicates=len(ids) - len(order),
    )


def _write(
    store: Store, listing: _Listing, reader: "_GroupReader", report: Callable[[int, int], None]
) -> Iterator[Shard]:
    done = 0
    report(0, len(listing.rows))
    for groups in plan_shards(listing.sizes.tolist()):
        try:
            with tempfile.TemporaryDirectory(prefix="heliostat-materialize-") as folder:
                path = Path(folder) / "shard.parquet"
                shard = write_shard(path, (reader.table(listing, group) for group in groups))
                upload_shard(store, shard, path)
        except OSError as error:
            fact = f"a shard cannot be assembled in {tempfile.gettempdir()}: {error.strerror or type(error).__name__}"
            raise StoreFailedError(fact, "Free space there, or point TMPDIR to another disk") from error
        yield shard
        done += shard.rows
        report(done, len(listing.rows))


class _GroupReader:
    """Verified row groups of the parts; those used last stay in memory."""

    def __init__(self, root: Store, parts: tuple[DatasetManifest, ...]) -> None:
        self._stores = [dataset_store(root, part.name) for part in parts]
        self._parts = parts
        self._kept: ByteLru[pa.Table] = ByteLru(_KEPT_BYTES, lambda table: int(table.nbytes))
        self.bytes_read = 0

    def table(self, listing: _Listing, wanted: range) -> pa.Table:
        """Rows of the listing as a table of ``SCHEMA``, with the labels of the listing."""
        part = slice(wanted.start, wanted.stop)
        keys = list(
            zip(listing.parts[part].tolist(), listing.shards[part].tolist(), listing.groups[part].tolist(), strict=True)
        )
        tables: list[pa.Table] = []
        places: list[Rows] = []
        needed = list(Counter(keys))
        for key, group in zip(needed, map_in_flight(self._group, needed), strict=True):
            here = np.flatnonzero([other == key for other in keys])
            tables.append(group.take(listing.rows[part][here]))
            places.append(here)
        table = pa.concat_tables(tables).take(np.argsort(np.concatenate(places)))
        labels = listing.labels[part]
        column = pa.array(labels, pa.int32(), mask=labels == NO_LABEL)
        return table.set_column(SCHEMA.get_field_index("label"), SCHEMA.field("label"), column).combine_chunks()

    def _group(self, key: tuple[int, int, int]) -> pa.Table:
        part, shard, group = key
        described = self._parts[part].shards[shard].row_groups[group]
        table = self._kept.get(described.sha256)
        if table is None:
            table = read_row_group(self._stores[part], self._parts[part], shard, group)
            self._kept.put(described.sha256, table)
            self.bytes_read += described.size_bytes
        return table
