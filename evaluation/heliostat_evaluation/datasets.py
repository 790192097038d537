"""Labelled datasets as batches of equally sized images.

Legend: B images of a batch, P side in pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from heliostat.data.images import decode_rgb
from heliostat.data.manifest import DatasetManifest
from heliostat.data.shards import read_row_group
from heliostat.errors import UnlabelledDatasetError
from heliostat.storage import Store

Pixels = NDArray[np.uint8]
_RESIZE_OVER_CROP = 256 / 224
"""The shorter side is resized to 256 for a central crop of 224 (DINOv2's evaluation transform)."""


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """Images with their classes."""

    images: Pixels
    """(B, P, P, 3)."""
    labels: list[int]
    ids: list[str]


def labelled_batches(store: Store, manifest: DatasetManifest, px: int) -> Iterator[LabelledBatch]:
    """All images of a dataset in the order of its manifest, a verified row group at a time.

    Args:
        store: The dataset's store.
        manifest: Of the dataset.
        px: Side of the central crop.

    Raises:
        UnlabelledDatasetError: an image has no label.
        CorruptShardError: bytes are not those that were ingested.
    """
    for shard_index, shard in enumerate(manifest.shards):
        for group_index in range(len(shard.row_groups)):
            table = read_row_group(store, manifest, shard_index, group_index)
            labels = _labels(table, manifest.name)
            images = np.stack([central_crop(decode_rgb(data), px) for data in table["image"].to_pylist()])
            yield LabelledBatch(images, labels, table["id"].to_pylist())


def check_labels(store: Store, manifest: DatasetManifest) -> None:
    """See that every image has a label, before hours are spent on it.

    Raises:
        UnlabelledDatasetError: an image has none; it is named.
    """
    for shard_index, shard in enumerate(manifest.shards):
        for group_index in range(len(shard.row_groups)):
            _labels(read_row_group(store, manifest, shard_index, group_index), manifest.name)


def _labels(table: pa.Table, dataset: str) -> list[int]:
    labels: list[int | None] = table["label"].to_pylist()
    if None in labels:
        source = table["source"][labels.index(None)].as_py()
        raise UnlabelledDatasetError(
            f"image {source!r} of dataset {dataset!r} has no label (or lies in two folders), and k-NN compares labels",
            "Give a folder with one sub-folder per class, each image in one of them",
        )
    return [label for label in labels if label is not None]


def central_crop(image_HWC: Pixels, px: int) -> Pixels:
    """The image resized by its shorter side, then the central square, shape (P, P, 3)."""
    height, width = image_HWC.shape[:2]
    scale = px * _RESIZE_OVER_CROP / min(height, width)
    size = (max(px, round(width * scale)), max(px, round(height * scale)))
    resized = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (resized.shape[0] - px) // 2, (resized.shape[1] - px) // 2
    return np.ascontiguousarray(resized[top : top + px, left : left + px], dtype=np.uint8)
