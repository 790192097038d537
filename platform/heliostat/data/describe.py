"""What a dataset is: counts, labels, sizes, what was refused, and where it came from. Reads no image."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from heliostat.data.catalogue import list_rows
from heliostat.data.manifest import DatasetManifest, Provenance, load_provenance
from heliostat.data.quarantine import load_quarantine
from heliostat.data.read_plan import read_advice
from heliostat.data.selection import load_parts, predict_selection, read_reasons
from heliostat.data.shard_index import NO_LABEL
from heliostat.storage import Store
from heliostat.storage.layout import dataset_store

SIDES_PX = (32, 64, 128, 256, 384, 512, 768, 1024, 2048)
"""Where the histogram of sizes is cut."""


@dataclass(frozen=True, slots=True)
class SizeBin:
    """Images whose shorter side is in [from_px, below_px); ``None`` is no bound."""

    from_px: int
    below_px: int | None
    images: int


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """A dataset as ``heliostat dataset show`` prints it."""

    name: str
    manifest_sha256: str
    images: int
    size_bytes: int
    image_bytes: int
    """Of the encoded images alone."""
    shards: int
    row_groups: int
    labels: dict[str, int]
    unlabelled: int
    short_sides: tuple[SizeBin, ...]
    median_short_side_px: int
    quarantine: dict[str, int]
    history: tuple[tuple[str, Provenance], ...]
    """Hash and origin of the manifests, the newest first."""
    parts: tuple[tuple[str, str], ...]
    """Of a selection: names and manifests of the datasets that hold its images."""
    reasons: dict[str, int]
    """Of a selection: why its images were selected."""
    read_amplification: float
    advice: str | None


def describe_dataset(root: Store, manifest: DatasetManifest) -> DatasetSummary:
    """Count what a dataset holds, from its indexes (56 bytes per image) and its lists of refused files.

    Raises:
        CorruptShardError, CorruptManifestError: an index, a list or a record is damaged or gone.
        DatasetNotFoundError: a part of a selection is gone.
    """
    store = dataset_store(root, manifest.name)
    labels: Counter[str | None] = Counter(dict.fromkeys(manifest.labels, 0))
    parts = load_parts(root, manifest)
    sides: list[np.ndarray[tuple[int], np.dtype[np.int32]]] = []
    image_bytes = 0
    for listed in list_rows(root, manifest, parts):
        names = parts[listed.part].labels
        numbers, counts = np.unique(listed.index["label"], return_counts=True)
        pairs = zip(numbers.tolist(), counts.tolist(), strict=True)
        labels.update({None if number == NO_LABEL else names[number]: count for number, count in pairs})
        sides.append(np.minimum(listed.index["width"], listed.index["height"]))
        image_bytes += int(listed.index["size"].sum())
    unlabelled = labels.pop(None, 0)
    short = np.concatenate(sides)
    selection = manifest.selection
    amplification = predict_selection(root, manifest)
    return DatasetSummary(
        name=manifest.name,
        manifest_sha256=manifest.sha256,
        images=manifest.rows,
        size_bytes=manifest.size_bytes,
        image_bytes=image_bytes,
        shards=len(manifest.shards),
        row_groups=len(manifest.group_rows),
        labels={name: count for name, count in labels.items() if name is not None},
        unlabelled=unlabelled,
        short_sides=size_bins(short),
        median_short_side_px=int(np.median(short)),
        quarantine=dict(sorted(Counter(file.reason.value for file in load_quarantine(store, manifest)).items())),
        history=tuple(history(root, manifest)),
        parts=tuple((part.name, part.manifest_sha256) for part in selection.parts) if selection else (),
        reasons=read_reasons(store, selection) if selection else {},
        read_amplification=amplification,
        advice=read_advice(manifest.name, amplification),
    )


def size_bins(short_sides_px: np.ndarray[tuple[int], np.dtype[np.int32]]) -> tuple[SizeBin, ...]:
    """How many images there are of each size, empty bins at both ends left out."""
    edges = [0, *SIDES_PX, np.inf]
    counts = np.histogram(short_sides_px, edges)[0].tolist()
    bounds = [0, *SIDES_PX, None]
    bins = [SizeBin(start or 0, end, count) for start, end, count in zip(bounds, bounds[1:], counts, strict=False)]
    filled = [number for number, one in enumerate(bins) if one.images]
    return tuple(bins[filled[0] : filled[-1] + 1])


def history(root: Store, manifest: DatasetManifest) -> Iterator[tuple[str, Provenance]]:
    """A manifest and those before it: hash and where the content came from.

    Raises:
        CorruptManifestError: a record is missing or not in a known format.
    """
    sha256: str | None = manifest.sha256
    seen: set[str] = set()
    while sha256 is not None and sha256 not in seen:  # the same content can be published again after other content
        seen.add(sha256)
        provenance = load_provenance(root, manifest.name, sha256)
        yield sha256, provenance
        sha256 = provenance.parent_sha256
