"""Near-duplicates from stored neighbours: each block is thinned out in a task of its own, the rest is arithmetic."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from heliostat.curation.components import Edges
from heliostat.curation.dedup import edges_above
from heliostat.curation.image_maps import Run
from heliostat.curation.neighbours import Found, NeighbourTable
from heliostat.storage.results import ResultFolder


@dataclass(frozen=True, slots=True)
class _Thin:
    """A task: pairs of a block that are similar enough, as few as have the same components."""

    folder: ResultFolder

    def __call__(self, payload: bytes) -> bytes:
        key, threshold = json.loads(payload)
        table = NeighbourTable.from_arrow(self.folder.read(key))
        sink = io.BytesIO()
        np.save(sink, edges_above(table.rows, table.neighbours, table.similarity, threshold), allow_pickle=False)
        return sink.getvalue()


def forests(found: Found, threshold: int, run: Run) -> Iterator[Edges]:
    """A spanning forest of each block's pairs that reach a threshold, in units of ``similarity.UNIT``.

    Raises:
        CorruptResultError: a block is damaged or gone.
    """
    payloads = ((number, json.dumps([key, threshold]).encode()) for number, key in enumerate(found.keys))
    for _, data in run(payloads, _Thin(found.folder)):
        edges: Edges = np.load(io.BytesIO(data), allow_pickle=False)
        yield edges
