"""Hierarchical k-means with resampling (Vo et al. 2024): clusters of clusters, spread evenly over what there is.

Plain k-means follows the density of the data. Level 1 clusters the points, each further level the centroids of the one
below. At every level the points closest to each centroid, equally many of each cluster, are clustered again several
times: what is frequent loses its weight, and centroids spread over the support of the data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from heliostat.curation.kmeans import Clusters, Floats, InMemory, Ints, Points, Stream, assign, kmeans


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """One level.

    Attributes:
        clusters: How many.
        resamplings: How often the points closest to the centroids are clustered again.
        closest: How many of each cluster then.
        rounds: Of each k-means.
        starts: Of each k-means; the best is kept.
    """

    clusters: int
    resamplings: int = 0
    closest: int = 1
    rounds: int = 50
    starts: int = 1


@dataclass(frozen=True, slots=True)
class Level:
    """Clusters of one level.

    Attributes:
        centroids_KD: Unit vectors, float32.
        assignment: The cluster of each point, or of each centroid of the level below.
    """

    centroids_KD: Floats
    assignment: Ints


class Kept(Protocol):
    """Centroids of clusterings that are done, by name; a dictionary will do."""

    def __contains__(self, name: object, /) -> bool: ...

    def __getitem__(self, name: str, /) -> Floats: ...

    def __setitem__(self, name: str, centroids_KD: Floats, /) -> None: ...


def cluster_levels(
    points: Points,
    plans: Sequence[LevelPlan],
    seed: int,
    kept: Kept,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Level]:
    """All levels, from the one with the most clusters to the coarsest.

    Args:
        points: Unit vectors.
        plans: From the bottom up; each with fewer clusters than the one before.
        seed: Everything random follows from it.
        kept: Centroids of clusterings that are done; those of this call are added, so that another goes on from there.
        report: Told how many clusterings of how many are done.
    """
    levels: list[Level] = []
    below = points
    total = sum(1 + plan.resamplings for plan in plans)
    done = 0
    report(done, total)
    for number, plan in enumerate(plans):
        names = [f"level-{number}-resampling-{resampling}" for resampling in range(plan.resamplings + 1)]
        newest = max((place for place, name in enumerate(names) if name in kept), default=-1)
        if newest >= 0:
            done += newest + 1
            report(done, total)
            centroids_KD = kept[names[newest]]
            owners, similarity = assign(below, centroids_KD)
        for resampling in range(newest + 1, len(names)):
            subset = below
            if resampling:
                subset = InMemory(below.take(closest_rows(owners, similarity, plan.closest)))
            centroids_KD = _cluster(subset, plan, (seed, number, resampling)).centroids_KD
            kept[names[resampling]] = centroids_KD
            owners, similarity = assign(below, centroids_KD)
            done += 1
            report(done, total)
        levels.append(Level(centroids_KD, owners.astype(np.int64)))
        below = InMemory(centroids_KD.astype(np.float16))
    return levels


def _cluster(points: Points, plan: LevelPlan, stream: Stream) -> Clusters:
    return kmeans(points, min(plan.clusters, points.rows), stream, rounds=plan.rounds, starts=plan.starts)


def closest_rows(owners_N: npt.NDArray[np.integer], similarity_N: Floats, count: int) -> Ints:
    """Numbers of the points most similar to their centroid, at most ``count`` of each cluster, ascending.

    Of equally similar ones the first.
    """
    order = np.lexsort((np.arange(len(owners_N)), -similarity_N, owners_N))
    sorted_owners = owners_N[order]
    begins = np.flatnonzero(np.concatenate([[True], sorted_owners[1:] != sorted_owners[:-1]]))
    sizes = np.diff(np.append(begins, len(order)))
    place = np.arange(len(order)) - np.repeat(begins, sizes)
    return np.sort(order[place < count])
