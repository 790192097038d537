"""What a frozen teacher has said of each image of a dataset, kept from before: read by row, as the images are.

One result (``storage/results.py``) for each row group of the manifest, with a column ``view`` of as many bytes
for each of its rows. What the bytes mean is the matter of who writes them (``training/teacher_views.py``).
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from heliostat.data.manifest import DatasetManifest
from heliostat.data.memory import ByteLru
from heliostat.errors import CorruptResultError
from heliostat.storage import Store
from heliostat.storage.results import ResultFolder

VIEW = "view"
_GROUPS_MAX_BYTES = 256 * 2**20
_GROUPS: ByteLru[pa.ChunkedArray] = ByteLru(_GROUPS_MAX_BYTES, lambda column: column.nbytes)
"""Of the process, for all readers in it, as the row groups of datasets."""


@dataclass(frozen=True, slots=True)
class ViewFolder:
    """Where views are kept."""

    store: Store
    row_bytes: int
    """Of each image."""


def group_name(manifest_sha256: str, group: int) -> str:
    """Of the result for a row group of a manifest."""
    return f"{manifest_sha256[:16]}-{group:08d}"


def first_rows(manifest: DatasetManifest) -> list[int]:
    """Of each row group the first row, and the number of all rows."""
    return [0, *np.cumsum(manifest.group_rows).tolist()]


class ViewReader:
    """Reads the views of a dataset's rows; what it needs is there before it is made.

    Args:
        folder: Where they are kept.
        manifest: Of the dataset.
    """

    def __init__(self, folder: ViewFolder, manifest: DatasetManifest) -> None:
        self._results = ResultFolder(folder.store)
        self._row_bytes = folder.row_bytes
        self._sha256 = manifest.sha256
        self._starts = np.asarray(first_rows(manifest))
        self._keys = self._results.found()
        self._lock = threading.Lock()
        self.bytes_read = 0
        """From the store since it was made."""

    def read(self, rows: Sequence[int]) -> pa.Array:
        """The views of these rows of the manifest, in this order.

        Raises:
            CorruptResultError: they are gone, or are not what was written.
            StorageError: the store does not cooperate.
        """
        wanted = np.asarray(rows)
        groups = np.searchsorted(self._starts, wanted, side="right") - 1
        columns = {group: self._group(group) for group in dict.fromkeys(groups.tolist())}
        found = [
            columns[group][row].as_buffer().to_pybytes()
            for group, row in zip(groups.tolist(), (wanted - self._starts[groups]).tolist(), strict=True)
        ]
        return pa.array(found, pa.large_binary())

    def _group(self, group: int) -> pa.ChunkedArray:
        name = group_name(self._sha256, group)
        key = self._keys.get(name)
        if key is None:
            raise CorruptResultError(
                f"{name} under {self._results.store.url} is gone",
                "Start it again with heliostat run, which computes what is missing",
            )
        held = _GROUPS.get(key)
        if held is not None:
            return held
        column = self._results.read(key, [VIEW])[VIEW]
        wanted = pa.binary(self._row_bytes), int(self._starts[group + 1] - self._starts[group])
        if (column.type, len(column)) != wanted:
            raise CorruptResultError(
                f"{key} under {self._results.store.url} holds {len(column)} views of type {column.type}, not "
                f"{wanted[1]} of {wanted[0]}",
                "Delete the object: the run computes it again",
            )
        with self._lock:
            self.bytes_read += column.nbytes
        _GROUPS.put(key, column)
        return column
