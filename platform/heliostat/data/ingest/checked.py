"""What the first pass found, as tables: one row per item of a source, an image or a refusal.

A round of an ingest holds a few hundred thousand rows at once, so there is no object per row: columns of Arrow, and
NumPy where rows are compared. An image's bytes lie where the source has them (``place``), or, if they cannot be read
there again, at ``offset`` of the object ``spool``.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Ids = NDArray[np.bytes_]
"""SHA-256 hashes, dtype ``S32``. All are 32 bytes, so it does no harm that NumPy ignores NUL bytes at the end."""

CHECKED = pa.schema(
    [
        pa.field("id", pa.binary(32)),  # of the bytes as they are stored; none where nothing was read
        pa.field("source", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("size_bytes", pa.int64()),
        pa.field("place", pa.string()),  # JSON of a heliostat.data.sources Place
        pa.field("spool", pa.string()),
        pa.field("offset", pa.int64()),  # bytes from the start of the spool object
        pa.field("reason", pa.string()),  # of a refusal; none of an image
        pa.field("detail", pa.string()),
    ]
)


def images_of(checked: pa.Table) -> pa.Table:
    """The rows that can be part of the dataset."""
    return checked.filter(pc.is_null(checked["reason"])) if _has_refusals(checked) else checked


def refusals_of(checked: pa.Table) -> pa.Table:
    """The rows for the quarantine."""
    return checked.filter(pc.is_valid(checked["reason"])) if _has_refusals(checked) else checked.slice(0, 0)


def unique_images(images: pa.Table) -> pa.Table:
    """One of each content, sorted by id: the copy with the first name, and the label if the copies have one only.

    The images are those of a round: copies in another round are not seen.
    """
    if not images.num_rows:
        return images
    order = pc.sort_indices(images, [("id", "ascending"), ("source", "ascending")]).to_numpy()
    ids = id_array(images)[order]
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    labels = _agreed_labels(images["label"].take(order).combine_chunks(), starts)
    unique = images.take(order[starts]).combine_chunks()  # the only copy: a round is large
    return unique.set_column(images.schema.get_field_index("label"), CHECKED.field("label"), labels)


def without_known(images: pa.Table, known: Iterable[Ids]) -> pa.Table:
    """Rows of ``unique_images`` whose ids are in none of the given arrays, which are looked at one by one."""
    ids = id_array(images)
    is_known = np.zeros(len(ids), bool)
    for some in known:
        if len(ids):
            at = np.minimum(np.searchsorted(ids, some), len(ids) - 1)
            is_known[at[ids[at] == some]] = True
    return images.filter(pa.array(~is_known)).combine_chunks() if is_known.any() else images


def extend_labels(before: Sequence[str], labels: Iterable[str | None]) -> tuple[str, ...]:
    """Class names with those of new images after them: rows that are stored hold indices, so none may move."""
    new = {label for label in labels if label is not None} - set(before)
    return (*before, *sorted(new))


def id_array(table: pa.Table) -> Ids:
    """The ids of a table without missing ones, as NumPy compares them."""
    column = table["id"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # what combining no chunks at all gives
        return np.empty(0, "S32")
    return np.frombuffer(column.buffers()[1], "S32")[column.offset : column.offset + len(column)]


def row_slices(table: pa.Table, shards: Iterable[Sequence[range]]) -> Iterator[pa.Table]:
    """The rows of each planned shard, with the index of the row group in a column ``group``."""
    for groups in shards:
        start, stop = groups[0].start, groups[-1].stop
        indices = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])
        yield table.slice(start, stop - start).append_column("group", pa.array(indices))


def _agreed_labels(labels: pa.Array, starts: NDArray[np.int64]) -> pa.Array:
    """For each run of copies the one label that they have, or none."""
    names = labels.dictionary_encode()
    codes = pc.fill_null(names.indices, -1).to_numpy(zero_copy_only=False)
    lowest = np.minimum.reduceat(np.where(codes < 0, len(labels), codes), starts)
    highest = np.maximum.reduceat(codes, starts)
    return names.dictionary.take(pa.array(highest, pa.int32(), mask=lowest != highest))


def _has_refusals(checked: pa.Table) -> bool:
    return bool(checked["reason"].null_count < len(checked))
