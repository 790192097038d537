"""Hierarchical balanced sampling (Vo et al. 2024, section 3.3): as equally many images of every cluster as there are.

At the coarsest level each cluster is given an equal share of the target, or all it has if that is less; each cluster
divides its share among its clusters of the level below in the same way, down to the images.
"""

from collections.abc import Sequence

import numpy as np

from heliostat.curation.hierarchy import Level
from heliostat.curation.kmeans import Ints, Stream
from heliostat.data.draws import permutation, units


def balanced_quotas(sizes_K: Ints, target: int, stream: Stream) -> Ints:
    """How many of each cluster: min(c, size) with the largest c that does not give more than the target, (K,).

    What is left goes to clusters that have more, one each, at random.

    Args:
        sizes_K: What each cluster holds.
        target: How many together; all if it is more than there are.
        stream: Chooses who is given one more.
    """
    if target >= sizes_K.sum():
        return sizes_K.copy()
    level = _largest_level(sizes_K, target)
    quotas_K = np.minimum(sizes_K, level)
    with_room = np.flatnonzero(sizes_K > level)
    lucky = permutation(len(with_room), stream[0], "sample.quotas", *stream[1:])
    quotas_K[with_room[lucky[: target - int(quotas_K.sum())]]] += 1
    return quotas_K


def sample_balanced(levels: Sequence[Level], target: int, seed: int) -> Ints:
    """Numbers of the points that are chosen, ascending.

    Args:
        levels: From the bottom up, as ``cluster_levels`` gives them.
        target: How many; all if it is more than there are.
        seed: Everything random follows from it.
    """
    sizes = _sizes(levels)
    quotas_K = balanced_quotas(sizes[-1], target, (seed, len(levels), 0))
    for number in range(len(levels) - 1, 0, -1):
        quotas_K = _divide(levels[number].assignment, sizes[number - 1], quotas_K, (seed, number))
    return _draw(levels[0].assignment, quotas_K, seed)


def entropy_share(labels: Ints, classes: int) -> float:
    """Entropy of the labels' distribution over its maximum, log(classes): 1 is perfectly balanced."""
    counts = np.bincount(labels, minlength=classes)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum() / np.log(classes)) if classes > 1 else 1.0


def _sizes(levels: Sequence[Level]) -> list[Ints]:
    """Points below each cluster of each level."""
    sizes: list[Ints] = []
    for level in levels:
        weights = sizes[-1] if sizes else None
        counts = np.bincount(level.assignment, weights, minlength=len(level.centroids_KD))
        sizes.append(counts.astype(np.int64))
    return sizes


def _divide(owners: Ints, sizes: Ints, quotas: Ints, stream: Stream) -> Ints:
    """Quotas of the clusters of a level from those of their owners in the level above."""
    order = np.argsort(owners, kind="stable")
    ends = np.cumsum(np.bincount(owners, minlength=len(quotas)))
    below = np.zeros(len(owners), np.int64)
    for owner, quota in enumerate(quotas.tolist()):
        members = order[ends[owner - 1] if owner else 0 : ends[owner]]
        if quota and len(members):
            below[members] = balanced_quotas(sizes[members], quota, (*stream, owner))
    return below


def _draw(owners: Ints, quotas: Ints, seed: int) -> Ints:
    """Of each cluster its quota of points, at random."""
    keys = units(len(owners), seed, "sample.draw")
    order = np.lexsort((keys, owners))
    begins = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(quotas)))[:-1]])
    place = np.arange(len(order)) - begins[owners[order]]
    return np.sort(order[place < quotas[owners[order]]])


def _largest_level(sizes: Ints, target: int) -> int:
    low, high = 0, int(sizes.max())
    while high - low > 1:  # min(low, sizes) sums to at most the target, min(high, sizes) to more
        middle = (low + high) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= target else (low, middle)
    return low
