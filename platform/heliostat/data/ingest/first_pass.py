"""The first pass: every item of a unit is read, hashed and decoded once, in a task of Ray Data.

What is decoded comes from anywhere, so a child process does it, which may crash or run out of memory: that costs one
image. The child lives as long as the Ray worker, over all units that the worker is given.
"""

import hashlib
import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from heliostat.data.bounded import BoundedDecoder
from heliostat.data.edits import edited
from heliostat.data.images import ImageLimits
from heliostat.data.ingest.checked import CHECKED
from heliostat.data.ingest.workspace import Workspace
from heliostat.data.sources import Item, RefusedItem, Source, Unit
from heliostat.errors import RejectedImageError

DECODER_MODULE = "heliostat.data.decoder_child"
"""What decodes, in a process of its own."""
_WRITTEN_ROWS = 4096
"""Rows that become columns at a time: an archive may hold a hundred thousand items."""


@dataclass(frozen=True, slots=True)
class FirstPass:
    """A task for ``run_tasks``: a unit as JSON gives a record of ``CHECKED`` rows as Parquet, which it keeps too."""

    source: Source
    workspace: Workspace
    limits: ImageLimits
    resize_px: int | None
    edit: str | None
    decoder_module: str = DECODER_MODULE

    def __call__(self, payload: bytes) -> bytes:
        """Check one unit.

        Raises:
            StorageError: the store or the source does not cooperate.
            PluginFailedError: the edit does not do what it is there for.
            OSError: the local disk does not.
        """
        unit = Unit.model_validate_json(payload)
        with _Spool(self.workspace, unit) as spool:
            rows: list[dict[str, object]] = []
            tables: list[pa.Table] = []
            for item in self.source.read(unit, self.limits):
                rows.append(self._check(item, spool))
                if len(rows) == _WRITTEN_ROWS:
                    tables.append(pa.Table.from_pylist(rows, CHECKED))
                    rows = []
            spool.upload()  # before the record that names it
        tables.append(pa.Table.from_pylist(rows, CHECKED))
        return self.workspace.put_checked(unit, pa.concat_tables(tables))

    def _check(self, item: Item | RefusedItem, spool: "_Spool") -> dict[str, object]:
        if isinstance(item, RefusedItem):
            return {"source": item.source, "reason": item.reason.value, "detail": item.detail}
        try:
            return self._accept(item, spool)
        except RejectedImageError as error:
            name = hashlib.sha256(item.data).digest()
            return {"id": name, "source": item.source, "reason": str(error.reason), "detail": error.fact}

    def _accept(self, item: Item, spool: "_Spool") -> dict[str, object]:
        decoder = _decoder(self.limits, self.decoder_module, os.getpid())
        data = item.data
        if self.edit:
            decoder.inspect(data)  # what an edit decodes in this process has been decoded in that one
            data = edited(data, self.edit, item.source)
        if self.resize_px:
            data = decoder.resize(data, self.resize_px)
        info = decoder.inspect(data)
        place = item.place if data == item.data else None
        kept = {"place": place.model_dump_json()} if place else {"spool": spool.key, "offset": spool.append(data)}
        return {
            "id": hashlib.sha256(data).digest(),
            "source": item.source,
            "label": item.label,
            "width": info.width,
            "height": info.height,
            "size_bytes": len(data),
            **kept,
        }


class _Spool:
    """Images of one unit that cannot be read from the source again: a local file, then one object."""

    def __init__(self, workspace: Workspace, unit: Unit) -> None:
        self.key = workspace.spool_key(unit)
        self._workspace = workspace
        self._file: BinaryIO | None = None
        self._path = Path()
        self._open = ExitStack()

    def __enter__(self) -> "_Spool":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def append(self, data: bytes) -> int:
        """Where the bytes begin in the object."""
        if self._file is None:
            folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="heliostat-ingest-")))
            self._path = folder / "spool"
            self._file = self._open.enter_context(self._path.open("wb"))
        offset = self._file.tell()
        self._file.write(data)
        return offset

    def upload(self) -> None:
        if self._file is not None:
            self._file.flush()
            self._workspace.store.upload(self.key, self._path)


@lru_cache(maxsize=1)
def _decoder(limits: ImageLimits, module: str, process: int) -> BoundedDecoder:
    """One child per Ray worker; ``process`` keeps a fork from sharing its parent's."""
    return BoundedDecoder(limits, module=module)
