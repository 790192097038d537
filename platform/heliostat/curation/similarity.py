"""Similarities that are the same to the last bit, whatever the batch, the shard and the library.

Unit vectors are stored as float16, multiples of 2^-24. A product of two such numbers is a multiple of 2^-48, and the
sum over a unit vector's width stays below 2: float64 holds it exactly, in any order of adding. What is compared with a
threshold is that sum, rounded to ``1 / UNIT``.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from heliostat.curation.kmeans import Ints, Vectors

UNIT = 2**14
"""Similarities are stored as int16 in units of 1 / UNIT: -16384 to 16384, in steps of 0.00006."""
LOWEST = np.int16(-UNIT - 1)
"""Below every similarity: of a neighbour that is not there."""
NO_ROW = -1
_GATHERED_BYTES = 64 * 2**20

Similarities = npt.NDArray[np.int16]


def exact_similarities(queries_QD: Vectors, base_ND: Vectors, candidates_QC: Ints) -> Similarities:
    """Similarity of each query to its candidates, rows of ``base_ND``; ``LOWEST`` where the candidate is ``NO_ROW``.

    Returns:
        (Q, C), in units of 1 / UNIT.
    """
    found = np.full(candidates_QC.shape, LOWEST, np.int16)
    per_query = max(1, candidates_QC.shape[1] * queries_QD.shape[1] * 8)
    for part in _slices(len(queries_QD), max(1, _GATHERED_BYTES // per_query)):
        rows_QC = candidates_QC[part]
        gathered_QCD = base_ND[np.maximum(rows_QC, 0)].astype(np.float64)
        exact_QC = np.matmul(gathered_QCD, queries_QD[part].astype(np.float64)[:, :, None])[:, :, 0]
        found[part] = np.where(rows_QC == NO_ROW, LOWEST, in_units(exact_QC))
    return found


def in_units(similarity: npt.NDArray[np.float64]) -> Similarities:
    """Rounded to int16, in units of 1 / UNIT."""
    rounded: Similarities = np.rint(np.clip(similarity, -1.0, 1.0) * UNIT).astype(np.int16)
    return rounded


def units_of(threshold: float) -> int:
    """The smallest stored similarity that is above a threshold."""
    return int(np.floor(threshold * UNIT)) + 1


def best_of(rows_QC: Ints, similarity_QC: Similarities, count: int) -> tuple[Ints, Similarities]:
    """The most similar candidates of each query, best first, of equally similar ones the lowest row; (Q, count) both.

    A candidate that stands there twice counts once. Where there are fewer, ``NO_ROW`` fills up.
    """
    by_row = np.argsort(rows_QC, axis=1, kind="stable")
    rows_QC = np.take_along_axis(rows_QC, by_row, axis=1)
    similarity_QC = np.take_along_axis(similarity_QC, by_row, axis=1)
    twice = np.zeros(rows_QC.shape, bool)
    twice[:, 1:] = rows_QC[:, 1:] == rows_QC[:, :-1]
    keys = np.where(twice | (rows_QC == NO_ROW), LOWEST, similarity_QC).astype(np.int32)
    order = np.argsort(-keys, axis=1, kind="stable")[:, :count]
    best, near = np.take_along_axis(rows_QC, order, axis=1), np.take_along_axis(keys, order, axis=1)
    missing = near == LOWEST
    short = max(0, count - best.shape[1])
    best = np.pad(np.where(missing, NO_ROW, best), ((0, 0), (0, short)), constant_values=NO_ROW)
    near = np.pad(near, ((0, 0), (0, short)), constant_values=LOWEST)
    return best, near.astype(np.int16)


def _slices(length: int, size: int) -> Iterator[slice]:
    for first in range(0, length, size):
        yield slice(first, first + size)
