"""The second pass: planned shards are packed, each in a task of Ray Data.

The bytes of an image are read a second time and hashed again: what is no longer what the first pass saw goes to the
quarantine, not into a shard.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from heliostat.config.base import Section
from heliostat.data.images import ImageLimits
from heliostat.data.ingest.checked import id_array, row_slices
from heliostat.data.ingest.workspace import Workspace
from heliostat.data.manifest import Shard
from heliostat.data.shards import SCHEMA, ShardLayout, plan_shards, upload_shard, write_shard
from heliostat.data.sources import Place
from heliostat.errors import ObjectNotFoundError, RejectedImageError, StoreFailedError
from heliostat.storage import Store

_READERS = 8
"""Images of a row group that are read at once: in an object store each is a request of its own."""

_PLACE: TypeAdapter[Place] = TypeAdapter(Place)

Row = dict[str, Any]


class ChangedItem(Section):
    """An image that was found no more, or found changed."""

    id: str
    source: str


class Packed(Section):
    """What became of a planned shard; ``shard`` is ``None`` if no image of it was left."""

    shard: Shard | None = None
    changed: tuple[ChangedItem, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows of one shard to be: columns of ``CHECKED``, ``index`` of the label and ``group`` of the row group."""

    rows: pa.Table

    @property
    def name(self) -> str:
        """A hash of all that the shard will hold: what a resumed ingest recognises it by."""
        named = [self.rows[column].to_pylist() for column in ("source", "index", "group")]
        digest = hashlib.sha256(id_array(self.rows).tobytes())
        digest.update(json.dumps(named).encode())
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """For a task."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.rows.schema) as writer:
            writer.write_table(self.rows)
        return bytes(sink.getvalue())

    @classmethod
    def from_bytes(cls, data: bytes) -> "Plan":
        """What ``to_bytes`` gave."""
        with pa.ipc.open_stream(data) as reader:
            return cls(reader.read_all())


def plan_round(images: pa.Table, labels: Sequence[str], layout: ShardLayout) -> Iterator[Plan]:
    """Cut new images, sorted by id, into shards. ``labels`` are those of the dataset, old and new."""
    if not images.num_rows:
        return
    indices = pc.index_in(images["label"], value_set=pa.array(labels, pa.string()))
    images = images.append_column("index", indices)
    for rows in row_slices(images, plan_shards(images["size_bytes"].to_pylist(), layout)):
        yield Plan(rows)


@dataclass(frozen=True, slots=True)
class SecondPass:
    """A task for ``run_tasks``: a plan gives a ``Packed`` as JSON, which it keeps too."""

    store: Store
    workspace: Workspace
    limits: ImageLimits

    def __call__(self, payload: bytes) -> bytes:
        """Pack and upload one shard.

        Raises:
            StorageError: the store or the source does not cooperate.
            OSError: the local disk does not.
        """
        plan = Plan.from_bytes(payload)
        record = self._pack(plan).model_dump_json().encode()
        self.workspace.put_packed(plan.name, record)
        return record

    def _pack(self, plan: Plan) -> Packed:
        changed: list[ChangedItem] = []
        groups = (group for group in self._groups(plan, changed) if group.num_rows)
        first = next(groups, None)
        if first is None:
            return Packed(changed=tuple(changed))
        with tempfile.TemporaryDirectory(prefix="heliostat-ingest-") as folder:
            path = Path(folder) / "shard.parquet"
            shard = write_shard(path, chain([first], groups))
            upload_shard(self.store, shard, path)
        return Packed(shard=shard, changed=tuple(changed))

    def _groups(self, plan: Plan, changed: list[ChangedItem]) -> Iterator[pa.Table]:
        """Rows of the images that are still what the first pass saw; the others are added to ``changed``."""
        groups = plan.rows["group"].to_numpy()
        with ThreadPoolExecutor(_READERS) as pool:
            for group in range(int(groups[-1]) + 1):
                rows = plan.rows.filter(pa.array(groups == group)).to_pylist()
                images = list(pool.map(self._read, rows))
                kept = [{**row, "image": data} for row, data in zip(rows, images, strict=True) if data is not None]
                changed += [
                    ChangedItem(id=row["id"].hex(), source=row["source"])
                    for row, data in zip(rows, images, strict=True)
                    if data is None
                ]
                yield pa.Table.from_pylist([_shard_row(row) for row in kept], SCHEMA)

    def _read(self, row: Row) -> bytes | None:
        """The bytes of an image, if they are still those that were checked."""
        data = self._read_spooled(row) if row["place"] is None else self._read_again(row)
        return data if data is not None and hashlib.sha256(data).digest() == row["id"] else None

    def _read_again(self, row: Row) -> bytes | None:
        try:
            return _PLACE.validate_json(row["place"]).fetch(self.limits)
        except (OSError, RejectedImageError, ObjectNotFoundError):
            return None

    def _read_spooled(self, row: Row) -> bytes:
        start = row["offset"]
        try:
            return self.workspace.store.get(row["spool"], start, start + row["size_bytes"])
        except ObjectNotFoundError as error:
            raise StoreFailedError(
                f"{row['spool']} under {self.workspace.store.url} is gone: it held images between the passes",
                "If the same ingest ran twice at once, start one of them again",
            ) from error


def _shard_row(row: Row) -> Row:
    return {
        "id": row["id"].hex(),
        "image": row["image"],
        "width": row["width"],
        "height": row["height"],
        "source": row["source"],
        "label": row["index"],
    }
