"""Curated selections: datasets that consist of references to rows of others, with the reason for each.

``selections/<hash>.parquet`` below the dataset holds the columns ``part`` (which of the manifest's parts), ``row`` (in
that part's manifest) and ``reason``, sorted by part and row, so that rows of one row group stand together. No image is
copied; ``heliostat dataset materialize`` does that on request.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from heliostat import __version__
from heliostat.data.manifest import (
    DatasetManifest,
    Part,
    Provenance,
    Selection,
    check_dataset_name,
    load_manifest,
    read_head,
    write_manifest,
)
from heliostat.data.read_plan import GroupShare, predict_amplification
from heliostat.data.shards import describe_parquet, read_parquet_group
from heliostat.errors import SelectionError
from heliostat.storage import Store
from heliostat.storage.layout import dataset_store

SELECTED_ROW = pa.schema(
    [
        pa.field("part", pa.int16(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
_GROUP_ROWS = 2**16
Rows = npt.NDArray[np.int64]


class GroupTable:
    """The row groups of a dataset with shards, numbered through all of them.

    Attributes:
        starts: (groups + 1,) first row of each row group, and the number of rows.
        shards: (groups,) index of its shard.
        firsts: (shards,) number of a shard's first row group.
        sizes: (groups,) bytes.
    """

    def __init__(self, manifest: DatasetManifest) -> None:
        groups = [len(shard.row_groups) for shard in manifest.shards]
        self.starts = np.concatenate([[0], np.cumsum(manifest.group_rows)]).astype(np.int64)
        self.shards = np.repeat(np.arange(len(groups)), groups)
        self.firsts = np.cumsum([0, *groups[:-1]])
        self.sizes = np.array([group.size_bytes for shard in manifest.shards for group in shard.row_groups], np.int64)

    def group_of(self, rows: Rows) -> Rows:
        """(N,) number of the row group of each row."""
        return np.searchsorted(self.starts, rows, side="right") - 1


@dataclass(frozen=True, slots=True)
class SelectedGroups:
    """The row groups that a selection takes rows from, in the order of its ``group_rows``; one entry for each."""

    part: Rows
    group: Rows
    wanted: Rows


def load_parts(root: Store, manifest: DatasetManifest) -> tuple[DatasetManifest, ...]:
    """The datasets that hold the images: the parts of a selection, or the dataset itself.

    Raises:
        DatasetNotFoundError, CorruptManifestError: a part is gone or damaged.
    """
    if manifest.selection is None:
        return (manifest,)
    return tuple(load_manifest(root, part.name, part.manifest_sha256) for part in manifest.selection.parts)


def write_selection(root: Store, name: str, parts: Sequence[Part], rows: pa.Table) -> str:
    """Publish the rows (columns of ``SELECTED_ROW``, in any order) as the dataset ``name``; the manifest's hash.

    A dataset of this name must be a selection too, and stays in the history. Holds ``rows`` in memory, no images.

    Raises:
        InvalidValueError: ``name`` cannot be that of a dataset.
        SelectionError: no rows, one twice, one that a part does not have, a part that is a selection itself, or a
            dataset of this name that has shards.
        DatasetNotFoundError: a part is not there.
        VersionConflictError, ObjectExistsError: another manifest was published meanwhile.
    """
    check_dataset_name(name)
    base = read_head(root, name)
    if base is not None and base.manifest.selection is None:
        raise SelectionError(f"the dataset {name!r} holds images of its own", "Choose another name for the selection")
    tables = [_part_table(root, part) for part in parts]
    rows = rows.select(SELECTED_ROW.names).cast(SELECTED_ROW).sort_by([("part", "ascending"), ("row", "ascending")])
    groups = _selected_groups(rows, tables)
    sizes = np.array([tables[p].sizes[g] for p, g in zip(groups.part, groups.group, strict=True)])
    group_rows = [np.diff(table.starts) for table in tables]
    held = np.array([group_rows[p][g] for p, g in zip(groups.part, groups.group, strict=True)])
    with tempfile.TemporaryDirectory(prefix="heliostat-selection-") as folder:
        path = Path(folder) / "rows.parquet"
        pq.write_table(rows, path, compression="zstd", row_group_size=_GROUP_ROWS)
        described = describe_parquet(path)
        with path.open("rb") as file:
            key = f"selections/{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}.parquet"
        dataset_store(root, name).upload(key, path)
    selection = Selection(
        **described.model_dump(),
        key=key,
        parts=tuple(parts),
        group_rows=tuple(groups.wanted.tolist()),
        selected_bytes=max(1, round(float(np.sum(sizes * groups.wanted / held)))),
    )
    provenance = Provenance(
        source="selection of " + ", ".join(f"{part.name}@{part.manifest_sha256[:16]}" for part in parts),
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        heliostat_version=__version__,
        parent_sha256=base.manifest.sha256 if base else None,
        images_added=selection.rows,
        duplicates=0,
    )
    return write_manifest(root, DatasetManifest(name=name, selection=selection), provenance, base)


def read_selected(store: Store, selection: Selection, group_index: int) -> tuple[Rows, Rows]:
    """Part and row of the selected rows in one row group of the selection's own object, verified.

    Raises:
        CorruptShardError: the bytes are not those that were written, or they are gone.
    """
    table = read_parquet_group(store, selection.key, selection, group_index, SELECTED_ROW)
    return table["part"].to_numpy().astype(np.int64), table["row"].to_numpy()


def read_reasons(store: Store, selection: Selection) -> dict[str, int]:
    """How many rows were selected for each reason, the most frequent first; verified.

    Raises:
        CorruptShardError: the bytes are not those that were written, or they are gone.
    """
    counts: Counter[str] = Counter()
    for chunk in range(len(selection.row_groups)):
        table = read_parquet_group(store, selection.key, selection, chunk, SELECTED_ROW)
        pairs = table["reason"].value_counts().to_pylist()
        counts.update({pair["values"]: pair["counts"] for pair in pairs})
    return dict(counts.most_common())


def predict_selection(root: Store, manifest: DatasetManifest) -> float:
    """Bytes that reading a dataset once will fetch over bytes used: 1.0 unless it is a selection.

    Raises:
        CorruptShardError: the selection's rows are damaged or gone.
        DatasetNotFoundError, CorruptManifestError: a part is gone or damaged.
    """
    selection = manifest.selection
    if selection is None:
        return 1.0
    store = dataset_store(root, manifest.name)
    tables = [GroupTable(part) for part in load_parts(root, manifest)]
    counts = [np.zeros(len(table.sizes), np.int64) for table in tables]
    for chunk in range(len(selection.row_groups)):
        parts, rows = read_selected(store, selection, chunk)
        for part, table in enumerate(tables):
            counts[part] += np.bincount(table.group_of(rows[parts == part]), minlength=len(table.sizes))
    return predict_amplification(
        GroupShare(int(table.sizes[group]), int(table.starts[group + 1] - table.starts[group]), int(count[group]))
        for table, count in zip(tables, counts, strict=True)
        for group in np.flatnonzero(count)
    )


def _part_table(root: Store, part: Part) -> GroupTable:
    manifest = load_manifest(root, part.name, part.manifest_sha256)
    if manifest.selection is not None:
        raise SelectionError(
            f"{part.name!r} is itself a selection, which holds no images",
            "Select from the datasets that it was made from",
        )
    return GroupTable(manifest)


def _selected_groups(rows: pa.Table, tables: Sequence[GroupTable]) -> SelectedGroups:
    """The row groups that sorted rows lie in.

    Raises:
        SelectionError: see ``write_selection``.
    """
    parts, numbers = rows["part"].to_numpy().astype(np.int64), rows["row"].to_numpy()
    if not len(parts):
        raise SelectionError("no row is selected", "Select at least one")
    twice = np.flatnonzero((np.diff(parts) == 0) & (np.diff(numbers) == 0))
    if len(twice):
        at = twice[0]
        raise SelectionError(f"row {numbers[at]} of part {parts[at]} is selected twice", "Select each row once")
    have = np.array([table.starts[-1] for table in tables])
    known = (parts >= 0) & (parts < len(tables))
    wrong = np.flatnonzero(~known | (numbers < 0) | (numbers >= have[np.where(known, parts, 0)]))
    if len(wrong):
        at = wrong[0]
        raise SelectionError(
            f"there is no row {numbers[at]} in part {parts[at]}",
            f"The {len(tables)} parts have {', '.join(str(count) for count in have)} rows, counted from 0",
        )
    groups = np.concatenate([table.group_of(numbers[parts == part]) for part, table in enumerate(tables)])
    begins = np.flatnonzero(np.concatenate([[True], (np.diff(parts) != 0) | (np.diff(groups) != 0)]))
    return SelectedGroups(parts[begins], groups[begins], np.diff([*begins, len(parts)]))
