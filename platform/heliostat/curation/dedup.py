"""Which images of a component of near-duplicates stay: decisions on row numbers alone.

Self-deduplication keeps one image of each component, relative deduplication none of a component that touches an image
of a benchmark (DINOv2 paper, appendix A.3). A component that touches an image which an earlier curation has kept keeps
no new one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from heliostat.curation.components import Edges, components, spanning_forest
from heliostat.curation.kmeans import Ints
from heliostat.curation.similarity import NO_ROW, Similarities

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Dropped:
    """Rows that are left out, and for each the row that it repeats. (N,) both, ascending by row."""

    rows: Ints
    because_of: Ints


def edges_above(rows_Q: Ints, neighbours_QK: Ints, similarity_QK: Similarities, threshold: int) -> Edges:
    """A spanning forest of the pairs that are at least as similar as a threshold, in units of ``similarity.UNIT``."""
    near = (similarity_QK >= threshold) & (neighbours_QK != NO_ROW)
    queries = np.broadcast_to(rows_Q[:, None], neighbours_QK.shape)[near]
    return spanning_forest(np.stack([queries, neighbours_QK[near]], axis=1))


def exact_duplicates(ids: npt.NDArray[np.void], rows: Ints) -> Dropped:
    """Rows with an id that a lower row has already.

    Args:
        ids: Of all rows, ``V32``.
        rows: Those that are looked at, ascending.
    """
    keys = np.ascontiguousarray(ids[rows]).view("S32").reshape(-1)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    originals = first[inverse]
    again = originals != np.arange(len(rows))
    return Dropped(rows[again], rows[originals[again]])


def near_duplicates(
    universe_rows: int, forests: Iterable[Edges], alive: Bools, pixels: Ints, quality: npt.NDArray[np.float32]
) -> Dropped:
    """All of each component but one: the one with the most pixels, then the best quality, then the lowest row.

    Rows of a shard are sorted by id, so that the lowest row is the lowest id within one ingest.

    Args:
        universe_rows: How many rows there are.
        forests: Pairs that are the same image.
        alive: (universe_rows,) rows that may stay; pairs of others join what is alive, and are not dropped again.
        pixels: (universe_rows,) of each image.
        quality: (universe_rows,) larger is better.
    """
    roots = components(universe_rows, forests)
    rows = np.flatnonzero(alive)
    if not len(rows):
        return Dropped(rows, rows)
    mine = roots[rows]
    order = np.lexsort((rows, -quality[rows], -pixels[rows], mine))
    rows, mine = rows[order], mine[order]
    begins = np.concatenate([[True], mine[1:] != mine[:-1]])
    keepers = rows[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    return _sorted(rows[~begins], keepers[~begins])


def touching(universe_rows: int, forests: Iterable[Edges], alive: Bools, references: Ints) -> Dropped:
    """Every row that is alive in a component with a reference, and the lowest reference of it.

    Args:
        universe_rows: How many rows there are.
        forests: Pairs that are the same image.
        alive: (universe_rows,) rows that may be dropped.
        references: Rows of benchmarks, or of what was kept earlier; never dropped.
    """
    roots = components(universe_rows, forests)
    first_reference = np.full(universe_rows, NO_ROW)
    ordered = np.sort(references)[::-1]
    first_reference[roots[ordered]] = ordered  # the lowest is written last
    candidates = alive.copy()
    candidates[references] = False
    rows = np.flatnonzero(candidates & (first_reference[roots] != NO_ROW))
    return Dropped(rows, first_reference[roots[rows]])


def _sorted(rows: Ints, because_of: Ints) -> Dropped:
    order = np.argsort(rows)
    return Dropped(rows[order], because_of[order])
