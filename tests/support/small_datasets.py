"""Datasets of a few images, written without an ingest, and a store that can be told to misbehave."""

import hashlib
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pyarrow as pa

from heliostat.data.manifest import DatasetManifest, Part, Provenance, write_manifest
from heliostat.data.selection import write_selection
from heliostat.data.shards import SCHEMA, upload_shard, write_shard
from heliostat.storage import Store
from heliostat.storage.layout import dataset_store
from heliostat.storage.local import LocalStore

PROVENANCE = Provenance(
    source="./photos",
    created_utc="2026-01-02T03:04:05+00:00",
    heliostat_version="0.1.0",
    parent_sha256=None,
    images_added=5,
    duplicates=0,
)


def row(image: bytes, number: int, label: int | None = None) -> dict[str, object]:
    """A row of ``SCHEMA``; its sizes and source follow from its number."""
    name = hashlib.sha256(image).hexdigest()
    size = {"width": 20 + number, "height": 10 + number}
    return {"id": name, "image": image, **size, "source": f"{number}.jpg", "label": label}


def store_dataset(
    root: Store,
    images: Sequence[bytes],
    name: str = "photos",
    *,
    labels: Sequence[str] = (),
    group_rows: int = 4,
    shard_groups: int = 3,
    wrong_id: bool = False,
) -> DatasetManifest:
    """Store images sorted by id, as ingest does; image number n has label n modulo the number of labels, if any.

    With ``wrong_id``, one image stands under an id that is not its hash.
    """
    rows = [row(image, n, n % len(labels) if labels else None) for n, image in enumerate(images)]
    if wrong_id:
        rows[0]["id"] = "ab" * 32
    rows.sort(key=lambda one: str(one["id"]))
    store = dataset_store(root, name)
    shards = []
    with tempfile.TemporaryDirectory() as folder:
        for first in range(0, len(rows), group_rows * shard_groups):
            path = Path(folder) / "shard.parquet"
            starts = range(first, min(first + group_rows * shard_groups, len(rows)), group_rows)
            shard = write_shard(
                path, [pa.Table.from_pylist(rows[start : start + group_rows], SCHEMA) for start in starts]
            )
            upload_shard(store, shard, path)
            shards.append(shard)
    manifest = DatasetManifest(name=name, labels=tuple(labels), shards=tuple(shards))
    write_manifest(root, manifest, PROVENANCE)
    return manifest


def store_selection(
    root: Store, parts: Sequence[DatasetManifest], rows: Sequence[tuple[int, int]], name: str = "best"
) -> str:
    """Select (part, row) pairs from datasets; the hash of the selection's manifest."""
    table = pa.table(
        {
            "part": [part for part, _ in rows],
            "row": [number for _, number in rows],
            "reason": [f"reason {number % 3}" for _, number in rows],
        }
    )
    named = [Part(name=part.name, manifest_sha256=part.sha256) for part in parts]
    return write_selection(root, name, named, table)


@dataclass
class Faults:
    """What a `FaultyStore` does and has seen; shared by the parts of a store, and by threads."""

    flips: list[tuple[str, int]] = field(default_factory=list)
    """(key suffix, times): so many reads of such an object come back with their first byte flipped."""
    reads: list[tuple[str, int, int]] = field(default_factory=list)
    """Key, start and bytes of every read."""
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class FaultyStore(LocalStore):
    """A local store whose reads can come back wrong."""

    faults: Faults = field(default_factory=Faults, compare=False)

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        data = LocalStore.get(self, key, start, end)
        with self.faults.lock:
            self.faults.reads.append((key, start, len(data)))
            for number, (suffix, times) in enumerate(self.faults.flips):
                if key.endswith(suffix) and times:
                    self.faults.flips[number] = (suffix, times - 1)
                    return bytes([data[0] ^ 1]) + data[1:]
        return data

    def sub(self, prefix: str) -> Self:
        return type(self)(self.root / prefix, self.faults)
