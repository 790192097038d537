"""Which dataset of a mix gives the sample at each position: arithmetic only, no I/O, no state.

A mix with shares a_d (whole numbers, A their sum) repeats after A samples. After any n samples of the run, dataset d
has given within one of n · a_d / A. The k-th sample of a dataset then has a window of places in which it keeps that
promise, and taking whichever open window closes first meets them all (proportionate fairness: Baruah et al.,
"Proportionate progress", Algorithmica 15, 1996). Each dataset has an order, and epochs, of its own.

Legend: D datasets, A samples of a period.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from heliostat.data.order import Rows, SampleOrder


@lru_cache(maxsize=8)
def mix_period(shares: tuple[int, ...]) -> NDArray[np.int16]:
    """The dataset of every sample of a period, shape (A,)."""
    period = sum(shares)
    # Samples wait by the place from which on they may come, and are taken by the one at which they must have come.
    waiting = [(0, -(-period // share), dataset, 0) for dataset, share in enumerate(shares)]
    heapq.heapify(waiting)
    due: list[tuple[int, int, int]] = []
    taken = np.empty(period, np.int16)
    for place in range(period):
        while waiting and waiting[0][0] <= place:
            _, last, dataset, count = heapq.heappop(waiting)
            heapq.heappush(due, (last, dataset, count))
        _, dataset, count = heapq.heappop(due)
        taken[place] = dataset
        share, count = shares[dataset], count + 1
        heapq.heappush(waiting, (count * period // share, -(-(count + 1) * period // share), dataset, count))
    return taken


@lru_cache(maxsize=8)
def _counts(shares: tuple[int, ...]) -> NDArray[np.int64]:
    """Samples of each dataset before each place of a period, shape (D, A)."""
    taken = mix_period(shares)[None] == np.arange(len(shares))[:, None]
    return np.asarray(np.cumsum(taken, axis=1, dtype=np.int64) - taken)


@dataclass(frozen=True)
class RunOrder:
    """The endless, seekable order in which a run reads its datasets."""

    orders: tuple[SampleOrder, ...]
    """One for each dataset."""
    shares: tuple[int, ...]
    """Whole numbers in the ratio of the weights, without a common factor."""

    @property
    def window_rows(self) -> int:
        """Rows of a window of the dataset whose windows are largest, about: a resume reads as many at most."""
        return max(order.window_groups * math.ceil(order.rows / len(order.group_rows)) for order in self.orders)

    def span(self, start: int, count: int) -> tuple[NDArray[np.int16], Rows]:
        """Datasets, and rows in them, at positions ``start`` to ``start + count`` of the run, shapes (count,)."""
        periods, places = np.divmod(np.arange(start, start + count), sum(self.shares))
        datasets = mix_period(self.shares)[places]
        before = _counts(self.shares)
        rows = np.empty(count, np.int64)
        for dataset, order in enumerate(self.orders):
            here = np.flatnonzero(datasets == dataset)
            if len(here):  # a dataset's samples follow each other, so its first tells them all
                first = periods[here[0]] * self.shares[dataset] + before[dataset, places[here[0]]]
                rows[here] = order.positions(int(first), len(here))
        return datasets, rows

    def at(self, positions: Sequence[int]) -> tuple[NDArray[np.int16], Rows]:
        """Datasets, and rows in them, at the given positions, which lie near each other."""
        first = min(positions)
        # One call for the whole span: each one permutes the row groups of an epoch anew.
        datasets, rows = self.span(first, max(positions) - first + 1)
        picked = np.subtract(positions, first)
        return datasets[picked], rows[picked]
