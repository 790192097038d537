"""The index of a shard: what can be known of each row without reading its image, and where the image lies.

``shards/part-….index`` lies beside the Parquet object and holds one fixed record per row, in order. The manifest has a
hash for the slice of every row group, so that a reader of a few rows fetches that slice alone (7 KiB for 128 rows).
"""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from heliostat.data.manifest import ByteRange, Shard
from heliostat.data.ranges import Fetched, corrupt, read_verified
from heliostat.errors import ObjectNotFoundError
from heliostat.storage import Store

ROW = np.dtype(
    [
        ("id", "V32"),  # sha256 of the image's encoded bytes
        ("offset", "<u8"),  # of these bytes, in the Parquet object
        ("size", "<u4"),  # bytes
        ("width", "<i4"),  # pixels, upright
        ("height", "<i4"),
        ("label", "<i4"),  # index into the manifest's labels, -1 for none
    ]
)
NO_LABEL = -1
Index = npt.NDArray[Any]
"""Records of ``ROW``."""


def read_group_index(
    store: Store,
    shard: Shard,
    group_index: int,
    fetched: Fetched = lambda size, again: None,
) -> Index:
    """The records of one row group, verified. ``store`` is the dataset's part of the root.

    Raises:
        CorruptShardError: the index is not the one that was ingested, or it is gone.
    """
    first = sum(group.rows for group in shard.row_groups[:group_index])
    group = shard.row_groups[group_index]
    part = ByteRange(offset=first * ROW.itemsize, size_bytes=group.rows * ROW.itemsize, sha256=group.index_sha256)
    what = f"row group {group_index}"
    return np.frombuffer(read_verified(store, shard.index_key, part, what, fetched), ROW)


def read_index(store: Store, shard: Shard) -> Index:
    """The records of all rows, verified, by one request if they are whole.

    Raises:
        CorruptShardError: the index is not the one that was ingested, or it is gone.
    """
    try:
        data = store.get(shard.index_key)
    except ObjectNotFoundError as error:
        raise corrupt(store, shard.index_key, "the whole", "is missing") from error
    ends = np.cumsum([group.rows for group in shard.row_groups]) * ROW.itemsize
    slices = [data[end - group.rows * ROW.itemsize : end] for group, end in zip(shard.row_groups, ends, strict=True)]
    # A slice that is not as it should be is read again by itself, and named if it stays like that.
    return np.concatenate(
        [
            np.frombuffer(piece, ROW)
            if hashlib.sha256(piece).hexdigest() == group.index_sha256
            else read_group_index(store, shard, number)
            for number, (group, piece) in enumerate(zip(shard.row_groups, slices, strict=True))
        ]
    )


def find_images(chunk: bytes, images: list[bytes]) -> list[int]:
    """Where each image lies in the bytes of a row group, which holds them in this order, uncompressed.

    Parquet puts the length of a value before it and headers of pages between some; both are found by looking, so what
    is returned is right whatever the layout: the bytes there are those of the image.

    Raises:
        ValueError: an image is not there as one piece.
    """
    offsets = []
    end = 0
    for image in images:
        end = chunk.index(len(image).to_bytes(4, "little") + image, end) + 4
        offsets.append(end)
        end += len(image)
    return offsets
