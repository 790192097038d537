"""The samples of a run by position: which rows they are is arithmetic, their bytes come from verified shards."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pyarrow as pa

from heliostat.data.cache import ShardCache
from heliostat.data.labels import merge_labels
from heliostat.data.manifest import load_manifest
from heliostat.data.mix import RunOrder
from heliostat.data.order import SampleOrder
from heliostat.data.reading import RowReader
from heliostat.data.slots import SlotPlan
from heliostat.data.teacher_views import VIEW, ViewFolder, ViewReader
from heliostat.storage import Store
from heliostat.storage.retries import retry_counts


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples in the order of the run; the lists have one entry per sample."""

    positions: list[int]
    ids: list[str]
    images: list[bytes]
    bytes_read: int = 0
    """What storage gave since the last samples of this stream, to bring these."""
    retries: int = 0
    """Requests that had to be repeated for it."""
    views: list[bytes] = field(default_factory=list)
    """What a teacher has said of each; none where nobody has kept it."""
    labels: list[int] = field(default_factory=list)
    """Their classes, ``NO_LABEL`` for none; none at all where nobody asked."""

    def part(self, start: int, stop: int) -> "Samples":
        """Samples ``start`` to ``stop``; what was read counts for the first ones."""
        cut = slice(start, stop)
        read, retries = (0, 0) if start else (self.bytes_read, self.retries)
        views, labels = self.views[cut], self.labels[cut]
        return Samples(self.positions[cut], self.ids[cut], self.images[cut], read, retries, views, labels)


@dataclass(frozen=True, slots=True)
class PinnedDataset:
    """A dataset of a run, as it was when the run was created."""

    name: str
    manifest_sha256: str
    share: int = 1
    """Of the run's samples, a whole number in the ratio of the weights."""


@dataclass(frozen=True)
class SampleSource:
    """The pinned datasets of a run and the order in which it reads them.

    Small enough to be sent with every task: each process opens the datasets once.
    """

    root: Store
    datasets: tuple[PinnedDataset, ...]
    seed: int
    window_groups: int
    cache: ShardCache | None = None
    workers: int = 1
    """How many read the run's samples side by side; of what each reads, the others have another part."""
    views: ViewFolder | None = None
    """Where what a teacher has said of each image is kept, if that is wanted too."""
    labelled: bool = False
    """Whether labels are wanted too, as numbers of ``class_names`` of all datasets."""

    @property
    def order(self) -> RunOrder:
        """Which row of which dataset is where in the run."""
        return _opened(self).order

    @property
    def image_bytes(self) -> float:
        """Mean size of a sample in storage, in bytes, with what a teacher has said of it."""
        return _opened(self).image_bytes

    def read(self, positions: Sequence[int]) -> pa.Table:
        """Rows ``id``, ``image``, ``position``, ``bytes_read``, ``retries`` at positions of the run, in that order.

        And ``view``, where what a teacher has said is wanted, and ``label``, where labels are.

        What the call has cost stands in the first row's ``bytes_read`` and ``retries``.

        Raises:
            CorruptShardError: an image is not the one that was ingested.
            CorruptResultError: what a teacher has said is gone, or is not what was written.
            StorageError: the store did not answer in time.
        """
        opened = _opened(self)
        datasets, rows = opened.order.at(positions)
        before = opened.costs()
        parts: list[pa.Table] = []
        places = []
        for dataset in range(len(opened.readers)):
            here = np.flatnonzero(datasets == dataset)
            if len(here):
                wanted = rows[here].tolist()
                part = opened.read(dataset, wanted)
                parts.append(part)
                places.append(here)
        table = pa.concat_tables(parts).take(np.argsort(np.concatenate(places)))
        table = table.append_column("position", pa.array(positions, pa.int64()))
        for name, count in opened.costs().items():
            cost = [count - before[name]] + [0] * (len(positions) - 1)
            table = table.append_column(name, pa.array(cost, pa.int64()))
        return table


class _Opened:
    """What a process needs to read a source."""

    def __init__(self, source: SampleSource) -> None:
        manifests = [load_manifest(source.root, each.name, each.manifest_sha256) for each in source.datasets]
        shares = tuple(each.share for each in source.datasets)
        orders = tuple(
            SampleOrder(each.manifest_sha256, source.seed, manifest.group_rows, source.window_groups)
            for each, manifest in zip(source.datasets, manifests, strict=True)
        )
        self.order = RunOrder(orders, shares)
        # Each of two workers still does better with whole row groups that it keeps: 2.0 bytes read per byte used, not
        # 3.1; each of eight with ranges: 3.2, not 5.8 (measured with images of 28 kB).
        alone = source.workers <= 2
        self.readers = [RowReader(source.root, manifest, source.cache, alone=alone) for manifest in manifests]
        folder = source.views
        self.views = [] if folder is None else [ViewReader(folder, manifest) for manifest in manifests]
        self._labels = merge_labels([reader.class_names for reader in self.readers])[1] if source.labelled else []
        kept_bytes = 0 if folder is None else folder.row_bytes
        means = [manifest.size_bytes / manifest.rows + kept_bytes for manifest in manifests]
        self.image_bytes = float(np.average(means, weights=shares))

    def read(self, dataset: int, rows: list[int]) -> pa.Table:
        """What is wanted of rows of a dataset, but for their positions."""
        table = self.readers[dataset].read(rows)
        found = table.select(["id", "image"])
        if self._labels:
            labels = self._labels[dataset][table["label"].to_numpy()]
            found = found.append_column("label", pa.array(labels, pa.int64()))
        return found.append_column(VIEW, self.views[dataset].read(rows)) if self.views else found

    def costs(self) -> dict[str, int]:
        """What all reading in this process has cost so far."""
        stats = [reader.stats for reader in self.readers]
        of_views = sum(each.bytes_read for each in self.views)
        return {
            "bytes_read": sum(each.bytes_read for each in stats) + of_views,
            "retries": sum(each.repeated_reads for each in stats) + sum(retry_counts().values()),
        }


@lru_cache(maxsize=4)
def _opened(source: SampleSource) -> _Opened:
    return _Opened(source)


@dataclass(frozen=True)
class WorkerShare:
    """Which positions one worker consumes in which step."""

    slots: SlotPlan
    rank: int
    slot_batch: int

    @property
    def samples_per_step(self) -> int:
        """Samples that the worker consumes in a step."""
        return len(self.slots.slots_of(self.rank)) * self.slot_batch

    @property
    def global_batch(self) -> int:
        """Samples that all workers consume in a step."""
        return self.slots.slots * self.slot_batch

    def positions(self, step: int) -> list[int]:
        """Positions of the worker's samples of a step: its slots in order."""
        start = step * self.global_batch
        return [
            start + slot * self.slot_batch + index
            for slot in self.slots.slots_of(self.rank)
            for index in range(self.slot_batch)
        ]
