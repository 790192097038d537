"""Bytes that a worker reads from the store over bytes that it uses: ``python read_costs.py ROOT NAME WORKERS RANK``.

One epoch of a dataset in the order of a run, chunk by chunk as the stream reads it, without Ray, in a process of its
own: what a process has read it keeps for a while. The images are random bytes, as large as photographs, which are never
decoded. They lie on a local disk; requests are planned for S3 all the same.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from heliostat.data.manifest import DatasetManifest, Part, Provenance, read_head, write_manifest
from heliostat.data.samples import PinnedDataset, SampleSource, WorkerShare
from heliostat.data.selection import SELECTED_ROW, predict_selection, write_selection
from heliostat.data.shards import DEFAULT_LAYOUT, SCHEMA, upload_shard, write_shard
from heliostat.data.slots import SlotPlan
from heliostat.data.stream import plan_chunks
from heliostat.storage import Store, open_store
from heliostat.storage.layout import dataset_store

DENSE, SPARSE = "dense", "sparse"
DENSITY = 0.1
MOST_WORKERS = 8
_MEAN_BYTES = 28_000
_SLOT_BATCH, _SLOTS = 16, MOST_WORKERS
_WINDOW_GROUPS = 16


@dataclass(frozen=True, slots=True)
class ReadCost:
    """Of one worker or of several."""

    bytes_read: int
    bytes_used: int

    @property
    def ratio(self) -> float:
        """Bytes read over bytes used."""
        return self.bytes_read / self.bytes_used


def write_datasets(root: Store, scratch: Path, groups: int) -> None:
    """A dataset of so many row groups, and a selection of a tenth of its rows, chosen at random."""
    rng = np.random.default_rng(0)
    store = dataset_store(root, DENSE)
    shards = []
    for first in range(0, groups, DEFAULT_LAYOUT.shard_groups):
        path = scratch / "shard.parquet"
        shards.append(write_shard(path, _tables(rng, min(groups - first, DEFAULT_LAYOUT.shard_groups))))
        upload_shard(store, shards[-1], path)
    manifest = DatasetManifest(name=DENSE, shards=tuple(shards))
    provenance = Provenance(
        source="random bytes",
        created_utc="2020-01-01T00:00:00+00:00",
        heliostat_version="bench",
        parent_sha256=None,
        images_added=manifest.rows,
        duplicates=0,
    )
    sha256 = write_manifest(root, manifest, provenance)
    rows = rng.choice(manifest.rows, int(manifest.rows * DENSITY), replace=False)
    columns = [np.zeros(len(rows), np.int16), rows, ["bench"] * len(rows)]
    selected = pa.table(dict(zip(SELECTED_ROW.names, columns, strict=True)), SELECTED_ROW)
    write_selection(root, SPARSE, [Part(name=DENSE, manifest_sha256=sha256)], selected)


def _tables(rng: np.random.Generator, groups: int) -> Iterator[pa.Table]:
    for _ in range(groups):
        sizes = np.clip(rng.normal(_MEAN_BYTES, _MEAN_BYTES / 3, DEFAULT_LAYOUT.group_rows), 2000, None).astype(int)
        images = [rng.bytes(size) for size in sizes]
        rows = [{"id": hashlib.sha256(image).hexdigest(), "image": image, "source": "random"} for image in images]
        yield pa.Table.from_pylist([row | {"width": 400, "height": 300, "label": None} for row in rows], SCHEMA)


def measure_epoch(root: str, name: str, workers: int) -> ReadCost:
    """All workers of one epoch, each in a process of its own, one after the other."""
    read = used = 0
    for rank in range(workers):
        command = [sys.executable, __file__, root, name, str(workers), str(rank)]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        cost = ReadCost(**json.loads(answer))
        read, used = read + cost.bytes_read, used + cost.bytes_used
    return ReadCost(read, used)


def predicted_ratio(root: Store, name: str) -> float:
    """What the platform tells users beforehand, of a selection."""
    head = read_head(root, name)
    assert head is not None
    return predict_selection(root, head.manifest)


def source_of(root: Store, name: str, workers: int = 1) -> SampleSource:
    """The dataset, in the order of a run of so many workers."""
    head = read_head(root, name)
    assert head is not None
    return SampleSource(root, (PinnedDataset(name, head.manifest.sha256),), 0, _WINDOW_GROUPS, workers=workers)


def share_of(workers: int, rank: int) -> WorkerShare:
    """A worker's part of each step."""
    return WorkerShare(SlotPlan(_SLOTS, workers), rank, _SLOT_BATCH)


def epoch_steps(source: SampleSource, share: WorkerShare) -> int:
    """Whole steps of an epoch."""
    return source.order.orders[0].rows // share.global_batch


def read_epoch(root: Store, name: str, workers: int, rank: int) -> ReadCost:
    """One worker's images of an epoch."""
    source, share = source_of(root, name, workers), share_of(workers, rank)
    plan = plan_chunks(share, source.image_bytes, source.order.window_rows, 0, epoch_steps(source, share))
    read = used = 0
    for chunk in range(plan.chunks):
        table = source.read([position for step in plan.steps(chunk) for position in share.positions(step)])
        read += sum(table["bytes_read"].to_pylist())
        used += sum(map(len, table["image"].to_pylist()))
    return ReadCost(read, used)


if __name__ == "__main__":
    print(json.dumps(asdict(read_epoch(open_store(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))))
