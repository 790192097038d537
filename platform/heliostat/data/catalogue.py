"""The rows of a dataset or selection without their images: ids, sizes and labels, from the verified indexes alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from heliostat.data.manifest import DatasetManifest
from heliostat.data.selection import GroupTable, Rows, read_selected
from heliostat.data.shard_index import Index, read_index
from heliostat.storage import Store
from heliostat.storage.in_flight import map_in_flight
from heliostat.storage.layout import dataset_store


@dataclass(frozen=True, slots=True)
class ListedRows:
    """Rows of one shard, in the order of the manifest that lists them.

    Attributes:
        part: The dataset that holds them, among the parts of the selection.
        shard: Their shard in that part's manifest.
        groups: (N,) row group in the shard.
        rows: (N,) row in the row group.
        index: (N,) records of ``shard_index.ROW``.
    """

    part: int
    shard: int
    groups: Rows
    rows: Rows
    index: Index


def list_rows(root: Store, manifest: DatasetManifest, parts: tuple[DatasetManifest, ...]) -> Iterator[ListedRows]:
    """All rows of a manifest, in its order, shard by shard; ``parts`` are what ``load_parts`` gives for it.

    Reads the indexes of all shards that hold any of them (56 bytes per image), eight at a time.

    Raises:
        CorruptShardError: an index, or the rows of a selection, are damaged or gone.
    """
    tables = [GroupTable(part) for part in parts]
    yield from map_in_flight(partial(_listed, root, parts, tables), _by_shard(root, manifest, tables))


def _listed(
    root: Store, parts: tuple[DatasetManifest, ...], tables: list[GroupTable], chosen: tuple[int, int, Rows]
) -> ListedRows:
    part, shard, rows = chosen
    table = tables[part]
    numbers = table.group_of(rows)
    first = int(table.firsts[shard])
    index = read_index(dataset_store(root, parts[part].name), parts[part].shards[shard])
    return ListedRows(part, shard, numbers - first, rows - table.starts[numbers], index[rows - table.starts[first]])


def _by_shard(root: Store, manifest: DatasetManifest, tables: list[GroupTable]) -> Iterator[tuple[int, int, Rows]]:
    """Part, shard, and rows in the part's manifest; the rows of a shard come together."""
    if manifest.selection is None:
        (table,) = tables
        ends = [*table.starts[table.firsts[1:]], table.starts[-1]]
        for shard, end in enumerate(ends):
            yield 0, shard, np.arange(table.starts[table.firsts[shard]], end)
        return
    store = dataset_store(root, manifest.name)
    held: tuple[int, int, Rows] | None = None  # a shard's rows may go on in the next chunk
    for chunk in range(len(manifest.selection.row_groups)):
        for part, shard, rows in _chunk_by_shard(*read_selected(store, manifest.selection, chunk), tables):
            if held is not None and held[:2] == (part, shard):
                held = (part, shard, np.concatenate([held[2], rows]))
                continue
            if held is not None:
                yield held
            held = (part, shard, rows)
    if held is not None:
        yield held


def _chunk_by_shard(parts: Rows, rows: Rows, tables: list[GroupTable]) -> Iterator[tuple[int, int, Rows]]:
    for part in np.unique(parts).tolist():
        here = rows[parts == part]
        shards = tables[part].shards[tables[part].group_of(here)]
        for shard in np.unique(shards).tolist():
            yield part, shard, here[shards == shard]
