"""Spherical k-means whose result does not depend on how the points are spread over workers, nor on how many there are.

Points are unit vectors stored as float16: multiples of 2^-24, which are added as whole numbers, so that partial sums of
any number of workers add up to the same bits in any order. Which centroid is nearest is decided
chunk by chunk (``CHUNK_ROWS`` points at a time, the same ones whoever computes them). Rounds follow Lloyd; a cluster
that lost all its points keeps its centroid; of several starts the best is kept (Vo et al. 2024, section 3).

Legend of array suffixes: N points, K centroids, D width, T candidates.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from heliostat.data.draws import units

Vectors = npt.NDArray[np.float16]
"""Unit vectors, (N, D)."""
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Stream = tuple[int, ...]
"""A seed, and which of the streams of random numbers that follow from it."""
R = TypeVar("R")

VERSION = "2"
"""Of the results: another one clusters anew."""
CHUNK_ROWS = 4096
_GRID = 2.0**-24
"""All coordinates are multiples of this; potentials are rounded to it."""
EXACT_ROWS = 2**38
"""Fewer points than this add up exactly as 64-bit multiples of the grid."""
_START_POINTS_PER_CENTROID = 64
_START_POINTS_AT_LEAST = 2**15
_SPLIT_FROM = 2048
"""Centroids from which the start is chosen in two levels: choosing them one by one takes K times N operations."""
_COARSE_ROUNDS = 10
_TILE_CENTROIDS = 8192
"""Similarities to this many at once are in memory: 128 MiB."""


class Points(Protocol):
    """Points that lie somewhere in chunks of ``CHUNK_ROWS``, the last one smaller."""

    @property
    def rows(self) -> int:
        """How many points there are."""

    def take(self, rows: Ints) -> Vectors:
        """Some points by their number (ascending), (n, D)."""

    def reduce(self, function: Callable[[Vectors], R], combine: Callable[[R, R], R]) -> R:
        """Of every chunk the function's result, combined in any order."""

    def map(self, function: Callable[[Vectors], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Of every chunk the function's result, (rows of the chunk, …), joined in the order of the points."""


@dataclass(frozen=True, slots=True)
class InMemory:
    """Points of one process."""

    vectors: Vectors

    @property
    def rows(self) -> int:
        """See ``Points``."""
        return len(self.vectors)

    def take(self, rows: Ints) -> Vectors:
        """See ``Points``."""
        return self.vectors[rows]

    def reduce(self, function: Callable[[Vectors], R], combine: Callable[[R, R], R]) -> R:
        """See ``Points``."""
        found = map(function, self._chunks())
        result = next(found)
        for other in found:
            result = combine(result, other)
        return result

    def map(self, function: Callable[[Vectors], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """See ``Points``."""
        return np.concatenate([function(chunk) for chunk in self._chunks()])

    def _chunks(self) -> Iterator[Vectors]:
        for first in range(0, max(1, len(self.vectors)), CHUNK_ROWS):
            yield self.vectors[first : first + CHUNK_ROWS]


@dataclass(frozen=True, slots=True)
class Clusters:
    """The result of k-means.

    Attributes:
        centroids_KD: Unit vectors, float32.
        potential: Sum over all points of one minus the similarity to the nearest centroid.
        rounds: How many were computed.
    """

    centroids_KD: Floats
    potential: float
    rounds: int


@dataclass(frozen=True, slots=True)
class ClusterSums:
    """What a round needs of some points; whole numbers, so that the order of adding does not matter.

    Attributes:
        sums_KD: Of each cluster's points, in units of 2^-24.
        counts_K: Points of each.
        potential: Sum of one minus the similarity to the nearest centroid, in the same units.
    """

    sums_KD: Ints
    counts_K: Ints
    potential: int

    def __add__(self, other: "ClusterSums") -> "ClusterSums":
        return ClusterSums(
            self.sums_KD + other.sums_KD, self.counts_K + other.counts_K, self.potential + other.potential
        )


def kmeans(points: Points, clusters: int, stream: Stream, *, rounds: int = 50, starts: int = 1) -> Clusters:
    """Cluster unit vectors by cosine.

    Args:
        points: At least one, fewer than ``EXACT_ROWS``.
        clusters: K; no more than there are points.
        stream: Everything random follows from it.
        rounds: Of Lloyd at most; fewer if nothing moves any more.
        starts: How many are tried.

    Raises:
        ValueError: there are fewer points than clusters, or too many to add exactly.
    """
    if not 0 < clusters <= points.rows < EXACT_ROWS:
        raise ValueError(f"{points.rows} points cannot be put into {clusters} clusters")
    found = [_from_one_start(points, clusters, (*stream, start), rounds) for start in range(starts)]
    return min(found, key=lambda each: each.potential)


def lloyd(points: Points, centroids_KD: Floats, rounds: int) -> Clusters:
    """Rounds of Lloyd from given centroids, until nothing moves."""
    for number in range(rounds):
        found = sums_of(points, centroids_KD)
        moved_KD = next_centroids(found, centroids_KD)
        if np.array_equal(moved_KD, centroids_KD):
            return Clusters(centroids_KD, found.potential * _GRID, number)
        centroids_KD = moved_KD
    return Clusters(centroids_KD, sums_of(points, centroids_KD).potential * _GRID, rounds)


def sums_of(points: Points, centroids_KD: Floats) -> ClusterSums:
    """What a round needs of all points."""
    return points.reduce(_SumsOfChunk(centroids_KD), ClusterSums.__add__)


def assign(points: Points, centroids_KD: Floats) -> tuple[npt.NDArray[np.int32], Floats]:
    """The nearest centroid of each point, and the similarity to it. (N,) both; of equally near ones the first."""
    found = points.map(_NearestOfChunk(centroids_KD))
    return found["cluster"], found["similarity"]


def next_centroids(found: ClusterSums, centroids_KD: Floats) -> Floats:
    """The directions of the sums; a cluster without points, or whose points cancel out, keeps its centroid."""
    sums_KD = found.sums_KD.astype(np.float64)
    norms_K = np.linalg.norm(sums_KD, axis=1)
    lives = (found.counts_K > 0) & (norms_K > 0)
    moved_KD = centroids_KD.copy()
    moved_KD[lives] = (sums_KD[lives] / norms_K[lives, None]).astype(np.float32)
    return moved_KD


def choose_start(sample_ND: Floats, clusters: int, stream: Stream) -> Ints:
    """k-means++ (Arthur and Vassilvitskii 2007), of several candidates each time the best: numbers of points, (K,).

    The next candidates are drawn with the probability of their squared distance to what is chosen already.
    """
    trials = 2 + int(math.log(clusters))
    drawn_KT = units(clusters * trials, stream[0], "kmeans.start", *stream[1:]).reshape(clusters, trials)
    chosen = np.empty(clusters, np.int64)
    chosen[0] = int(drawn_KT[0, 0] * len(sample_ND))
    closest_N = _distances(sample_ND, sample_ND[chosen[:1]])[0]
    for number in range(1, clusters):
        cumulative_N = np.cumsum(closest_N, dtype=np.float64)
        if cumulative_N[-1] <= 0:  # fewer different points than clusters
            free = np.setdiff1d(np.arange(len(sample_ND)), chosen[:number])
            chosen[number:] = free[: clusters - number]
            break
        places_T = np.searchsorted(cumulative_N, drawn_KT[number] * cumulative_N[-1], side="right")
        candidates_T = np.minimum(places_T, len(sample_ND) - 1)
        closest_TN = np.minimum(_distances(sample_ND, sample_ND[candidates_T]), closest_N)
        best = int(np.argmin(closest_TN.sum(axis=1, dtype=np.float64)))
        chosen[number], closest_N = candidates_T[best], closest_TN[best]
    return chosen


def sample_rows(rows: int, count: int, stream: Stream) -> Ints:
    """Numbers of rows, one at random of each of ``count`` parts of equal length, ascending; all if there are fewer."""
    if count >= rows:
        return np.arange(rows)
    ends = np.arange(count + 1) * rows // count
    return ends[:-1] + (units(count, stream[0], "rows", *stream[1:]) * np.diff(ends)).astype(np.int64)


def split_start(
    sample_ND: Vectors, clusters: int, stream: Stream, choose: Callable[[Vectors, int, Stream], Floats]
) -> Floats:
    """Centroids in two levels: about the root of so many clusters, each of which is given its share of centroids.

    Args:
        sample_ND: What they are chosen from.
        clusters: K.
        stream: Everything random follows from it.
        choose: Gives so many centroids of some vectors.
    """
    sample = InMemory(sample_ND)
    coarse_KD = lloyd(sample, _some_of(sample_ND, math.isqrt(clusters), (*stream, 0)), _COARSE_ROUNDS).centroids_KD
    owners_N, _ = assign(sample, coarse_KD)
    quotas = shares(np.bincount(owners_N, minlength=len(coarse_KD)), clusters).tolist()
    order = np.argsort(owners_N, kind="stable")
    ends = np.cumsum(np.bincount(owners_N, minlength=len(coarse_KD)))
    members = np.split(order, ends[:-1])
    return np.concatenate(
        [
            choose(sample_ND[np.sort(mine)], quota, (*stream, 1, owner))
            for owner, (mine, quota) in enumerate(zip(members, quotas, strict=True))
            if quota
        ]
    )


def _from_one_start(points: Points, clusters: int, stream: Stream, rounds: int) -> Clusters:
    wanted = max(_START_POINTS_AT_LEAST, _START_POINTS_PER_CENTROID * clusters)
    sample_ND = points.take(sample_rows(points.rows, wanted, stream))
    choose = _some_of if clusters < _SPLIT_FROM else partial(split_start, choose=_some_of)
    return lloyd(points, choose(sample_ND, clusters, stream), rounds)


def _some_of(sample_ND: Vectors, clusters: int, stream: Stream) -> Floats:
    floats_ND = normalised(sample_ND)
    return floats_ND[choose_start(floats_ND, clusters, stream)]


def shares(sizes: Ints, total: int) -> Ints:
    """Split a total in proportion to sizes, at most as much as each size: whole numbers, the largest remainders first.

    Raises:
        ValueError: the sizes do not hold as much together.
    """
    if total > sizes.sum():
        raise ValueError(f"{total} is more than {sizes.sum()}")
    exact = sizes * (total / sizes.sum())
    whole: Ints = np.floor(exact).astype(np.int64)
    rest = total - int(whole.sum())
    order = np.argsort(-(exact - whole), kind="stable")
    whole[order[:rest]] += 1
    return whole


def normalised(vectors_ND: npt.NDArray[np.floating]) -> Floats:
    """Unit vectors, float32; zero stays zero."""
    norms = np.linalg.norm(vectors_ND.astype(np.float64), axis=-1, keepdims=True)
    unit: Floats = (vectors_ND / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit


@dataclass(frozen=True, slots=True)
class _SumsOfChunk:
    centroids_KD: Floats

    def __call__(self, chunk_ND: Vectors) -> ClusterSums:
        clusters_N, similarity_N = _nearest(chunk_ND, self.centroids_KD)
        order = np.argsort(clusters_N, kind="stable")
        counts_K = np.bincount(clusters_N, minlength=len(self.centroids_KD))
        sums_KD = np.zeros(self.centroids_KD.shape, np.int64)
        held = np.flatnonzero(counts_K)
        starts = np.concatenate([[0], np.cumsum(counts_K[held])[:-1]])
        # Of one chunk float64 is exact, and faster.
        sums_KD[held] = np.add.reduceat(chunk_ND[order].astype(np.float64), starts, axis=0) / _GRID
        distances = np.rint((1.0 - similarity_N.astype(np.float64)) / _GRID)
        return ClusterSums(sums_KD, counts_K.astype(np.int64), int(distances.sum()))


_NEAREST = np.dtype([("cluster", np.int32), ("similarity", np.float32)])


@dataclass(frozen=True, slots=True)
class _NearestOfChunk:
    centroids_KD: Floats

    def __call__(self, chunk_ND: Vectors) -> npt.NDArray[Any]:
        found = np.empty(len(chunk_ND), _NEAREST)
        found["cluster"], found["similarity"] = _nearest(chunk_ND, self.centroids_KD)
        return found


def _nearest(chunk_ND: Vectors, centroids_KD: Floats) -> tuple[npt.NDArray[np.int32], Floats]:
    floats_ND = chunk_ND.astype(np.float32)
    rows_N = np.arange(len(chunk_ND))
    clusters_N = np.zeros(len(chunk_ND), np.int32)
    best_N = np.full(len(chunk_ND), -np.inf, np.float32)
    for first in range(0, len(centroids_KD), _TILE_CENTROIDS):
        similarity_NK = floats_ND @ centroids_KD[first : first + _TILE_CENTROIDS].T
        here_N = similarity_NK.argmax(axis=1)
        found_N = similarity_NK[rows_N, here_N]
        closer_N = found_N > best_N
        clusters_N[closer_N] = first + here_N[closer_N]
        best_N[closer_N] = found_N[closer_N]
    return clusters_N, best_N


def _distances(sample_ND: Floats, candidates_TD: Floats) -> Floats:
    """Squared distances of unit vectors, (T, N)."""
    squared: Floats = np.maximum(2.0 - 2.0 * (candidates_TD @ sample_ND.T), 0.0)
    return squared
