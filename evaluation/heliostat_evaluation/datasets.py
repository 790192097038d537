"""Labelled datasets as batches of equally sized images.

Legend: B images of a batch, P side in pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from heliostat.data.decode import decode_rgb
from heliostat.data.manifest import DatasetManifest
from heliostat.data.shard_index import NO_LABEL, read_index
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
    check_labels(store, manifest)
    for shard_index, shard in enumerate(manifest.shards):
        for group_index in range(len(shard.row_groups)):
            table = read_row_group(store, manifest, shard_index, group_index)
            images = np.stack([central_crop(decode_rgb(data), px) for data in table["image"].to_pylist()])
            yield LabelledBatch(images, table["label"].to_pylist(), table["id"].to_pylist())


def check_labels(store: Store, manifest: DatasetManifest) -> None:
    """See that every image has a label, before hours are spent on it; reads the indexes alone.

    Raises:
        UnlabelledDatasetError: an image has none, or the dataset is a selection, which has no labels of its own.
    """
    if manifest.selection is not None:
        raise UnlabelledDatasetError(
            f"dataset {manifest.name!r} selects rows of other datasets and has no labels of its own",
            f"Write it out first: heliostat dataset materialize ROOT/{manifest.name} {manifest.name}-images",
        )
    for shard in manifest.shards:
        index = read_index(store, shard)
        without = index["id"][index["label"] == NO_LABEL]
        if len(without):
            raise UnlabelledDatasetError(
                f"image {without[0].tobytes().hex()[:16]} of dataset {manifest.name!r} has no label (or lies in two "
                "folders), and k-NN compares labels",
                "Give a folder with one sub-folder per class, each image in one of them",
            )


def central_crop(image_HWC: Pixels, px: int) -> Pixels:
    """The image resized by its shorter side, then the central square, shape (P, P, 3)."""
    height, width = image_HWC.shape[:2]
    scale = px * _RESIZE_OVER_CROP / min(height, width)
    size = (max(px, round(width * scale)), max(px, round(height * scale)))
    resized = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (resized.shape[0] - px) // 2, (resized.shape[1] - px) // 2
    return np.ascontiguousarray(resized[top : top + px, left : left + px], dtype=np.uint8)
