"""Which samples belong to which step: arithmetic only, no I/O, no state.

Epoch ``e`` of a dataset is a permutation that depends on the manifest's hash, the run's seed and ``e``, and on nothing
else. Row groups are permuted first; rows are then shuffled inside a window of groups, so that reads stay sequential
while neighbours on disk end up far apart in time. Every window has a random stream of its own: to resume anywhere costs
one window, not an epoch. A run's whole data position is one integer: its step.

A *row* is a sample's index in the manifest (shards in order, row groups in order); a *position* is its place in the
run.

Legend: N rows of the dataset, G images per step (the global batch), B rows of a window.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from heliostat.data.draws import permutation

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class SampleOrder:
    """The endless, seekable order in which a run reads a dataset."""

    manifest_hash: str
    seed: int
    group_rows: tuple[int, ...]
    """Rows of each row group, over all shards in order."""
    window_groups: int = 16

    @cached_property
    def group_starts(self) -> Rows:
        """Row at which each group begins, and N last; shape (groups + 1,)."""
        return np.concatenate([[0], np.cumsum(self.group_rows)]).astype(np.int64)

    @property
    def rows(self) -> int:
        """N."""
        return int(self.group_starts[-1])

    def positions(self, start: int, count: int) -> Rows:
        """Rows at positions ``start`` to ``start + count`` of the run, shape (count,)."""
        taken: list[Rows] = []
        stream = self.stream_from(start)
        while count > 0:
            rows = next(stream)[:count]
            taken.append(rows)
            count -= len(rows)
        return np.concatenate(taken) if taken else np.empty(0, np.int64)

    def step(self, step: int, global_batch: int) -> Rows:
        """Rows of one optimizer step, shape (G,); a step may straddle windows and epochs."""
        return self.positions(step * global_batch, global_batch)

    def stream_from(self, position: int) -> Iterator[Rows]:
        """Windows of rows, shapes (B,), from the ``position``-th sample of the run on, without end."""
        epoch, skip = divmod(position, self.rows)
        sizes = np.diff(self.group_starts)
        while True:
            groups = _permuted_groups(len(sizes), self.seed, self._dataset, epoch)
            ends = np.cumsum(sizes[groups])
            first = int(np.searchsorted(ends, skip, side="right")) // self.window_groups
            for window in range(first, -(-len(groups) // self.window_groups)):
                start = window * self.window_groups
                rows = self._shuffled(epoch, window, groups[start : start + self.window_groups])
                before = int(ends[start - 1]) if start else 0
                yield rows[max(0, skip - before) :]
            epoch, skip = epoch + 1, 0

    def locate(self, row: int) -> tuple[int, int]:
        """(row group, row inside the group) of a row."""
        group = int(np.searchsorted(self.group_starts, row, side="right")) - 1
        return group, int(row - self.group_starts[group])

    def _shuffled(self, epoch: int, window: int, groups: Rows) -> Rows:
        starts = self.group_starts
        rows = np.concatenate([np.arange(starts[group], starts[group + 1]) for group in groups])
        return rows[permutation(len(rows), self.seed, "rows", self._dataset, epoch, window)]

    @property
    def _dataset(self) -> int:
        return int(self.manifest_hash[:32], 16)


@lru_cache(maxsize=16)
def _permuted_groups(groups: int, seed: int, dataset: int, epoch: int) -> Rows:
    """Kept, because every chunk of an epoch asks for it, and a large dataset has a million row groups."""
    return permutation(groups, seed, "groups", dataset, epoch)
