from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.points import blobs

from heliostat.curation import kmeans as module
from heliostat.curation.kmeans import (
    Clusters,
    InMemory,
    Vectors,
    assign,
    choose_start,
    kmeans,
    lloyd,
    normalised,
    sample_rows,
    shares,
    sums_of,
)
from heliostat.data.draws import units

R = TypeVar("R")


class Scattered(InMemory):
    """The same chunks, combined as workers would that end in any order: in two halves, each backwards."""

    def reduce(self, function: Callable[[Vectors], R], combine: Callable[[R, R], R]) -> R:
        found = [function(chunk) for chunk in self._chunks()]
        halves = [found[1::2][::-1], found[::2][::-1]]
        results = []
        for half in filter(None, halves):
            total = half[0]
            for other in half[1:]:
                total = combine(total, other)
            results.append(total)
        total = results[0]
        for other in results[1:]:
            total = combine(total, other)
        return total


def reference(points: Vectors, start: npt.NDArray[np.int64], rounds: int) -> npt.NDArray[np.float64]:
    """Lloyd by the book in float64, one cluster after the other."""
    x = points.astype(np.float64)
    centroids: npt.NDArray[np.float64] = x[start] / np.linalg.norm(x[start], axis=1, keepdims=True)
    for _ in range(rounds):
        owners = (x @ centroids.T).argmax(axis=1)
        for cluster in range(len(centroids)):
            mine = x[owners == cluster]
            if len(mine):
                centroids[cluster] = mine.sum(axis=0) / np.linalg.norm(mine.sum(axis=0))
    return centroids


def test_kmeans__agrees_with_float64_on_10_000_points() -> None:
    points = blobs(10_000, 32, 40, noise=0.3)
    found = kmeans(InMemory(points), 40, (7,), rounds=20)
    start = choose_start(points.astype(np.float32), 40, (7, 0))
    expected = reference(points, start, found.rounds)
    owners, _ = assign(InMemory(points), found.centroids_KD)
    theirs = (points.astype(np.float64) @ expected.T).argmax(axis=1)
    assert (owners == theirs).mean() >= 0.999
    assert np.abs(found.centroids_KD - expected).max() < 1e-3
    potential = (1 - (points.astype(np.float64) @ expected.T).max(axis=1)).sum()
    assert found.potential == pytest.approx(potential, rel=1e-4)


def test_kmeans__is_the_same_however_partial_sums_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", 64)
    points = blobs(2_000, 16, 12, noise=0.4)
    one, other = (kmeans(kind(points), 12, (3,), rounds=15) for kind in (InMemory, Scattered))
    assert np.array_equal(one.centroids_KD, other.centroids_KD)
    assert (one.potential, one.rounds) == (other.potential, other.rounds)


def test_kmeans__finds_blobs_that_stand_apart() -> None:
    points = blobs(1_500, 24, 15, noise=0.02)
    found = kmeans(InMemory(points), 15, (0,), starts=3)
    assert found.potential / len(points) < 0.01


def test_kmeans__takes_the_best_of_several_starts() -> None:
    points = InMemory(blobs(600, 8, 20, noise=0.3))
    alone = [lloyd(points, _start(points, 20, number), 50).potential for number in range(4)]
    assert kmeans(points, 20, (1,), starts=4).potential == min(alone)


def _start(points: InMemory, clusters: int, number: int) -> Any:
    floats = points.vectors.astype(np.float32)
    return normalised(floats[choose_start(floats, clusters, (1, number))])


def test_kmeans__begins_in_two_levels_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    points = InMemory(blobs(4_000, 16, 60, noise=0.05))
    plain = kmeans(points, 60, (5,), rounds=20)
    monkeypatch.setattr(module, "_SPLIT_FROM", 32)
    split = kmeans(points, 60, (5,), rounds=20)
    assert split.centroids_KD.shape == plain.centroids_KD.shape
    assert split.potential < 1.5 * plain.potential


def test_lloyd__a_cluster_without_points_keeps_its_centroid() -> None:
    points = InMemory(normalised(np.array([[1.0, 0.1], [1.0, -0.1], [1.0, 0.0]])).astype(np.float16))
    start = np.array([[1, 0], [-1, 0]], np.float32)
    found = lloyd(points, start, 5)
    assert np.array_equal(found.centroids_KD[1], start[1])


def test_lloyd__stops_when_nothing_moves() -> None:
    points = InMemory(blobs(200, 8, 4, noise=0.01))
    found = kmeans(points, 4, (0,), rounds=50)
    assert found.rounds < 50
    again = lloyd(points, found.centroids_KD, 5)
    assert (again.rounds, again.potential) == (0, found.potential)


def test_sums_of__are_exact() -> None:
    points = blobs(9_000, 8, 3)
    found = sums_of(InMemory(points), np.eye(8, dtype=np.float32)[:1])
    total = [sum(int(value) for value in (points[:, column].astype(np.float64) * 2**24)) for column in range(8)]
    assert found.sums_KD[0].tolist() == total


def test_kmeans__with_more_clusters_than_different_points_does_not_fail() -> None:
    points = np.repeat(np.eye(3, dtype=np.float16), 5, axis=0)
    found: Clusters = kmeans(InMemory(points), 6, (0,))
    assert found.potential == 0


@pytest.mark.parametrize("clusters", [0, 11])
def test_kmeans__refuses_what_cannot_be(clusters: int) -> None:
    with pytest.raises(ValueError, match="10 points cannot be put into"):
        kmeans(InMemory(blobs(10, 4, 2)), clusters, (0,))


def test_assign__does_not_depend_on_how_centroids_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    points, centroids = InMemory(blobs(500, 16, 9)), blobs(200, 16, 9, seed=1).astype(np.float32)
    owners, similarity = assign(points, centroids)
    monkeypatch.setattr(module, "_TILE_CENTROIDS", 7)
    tiled, near = assign(points, centroids)
    assert np.array_equal(owners, tiled)
    assert near == pytest.approx(similarity, abs=1e-6)
    assert np.array_equal(owners, (points.vectors.astype(np.float64) @ centroids.T.astype(np.float64)).argmax(axis=1))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.data())
def test_shares__are_whole_and_no_larger_than_what_there_is(sizes: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(sizes))) if sum(sizes) else 0
    held = np.array(sizes, np.int64)
    if not sum(sizes):
        return
    found = shares(held, total)
    assert found.sum() == total
    assert (found <= held).all()
    assert (np.abs(found - held * total / held.sum()) < 1).all()


@settings(max_examples=50)
@given(st.integers(1, 500), st.integers(1, 500), st.integers())
def test_sample_rows__are_different_and_in_order(rows: int, count: int, seed: int) -> None:
    found = sample_rows(rows, count, (seed,))
    assert len(found) == min(rows, count)
    assert found[0] >= 0
    assert found[-1] < rows
    assert (np.diff(found) > 0).all()


def test_choose_start__draws_far_points_first() -> None:
    """Of two far blobs of very different size both are taken, whatever is drawn."""
    near, far = np.tile([[1.0, 0.0]], (999, 1)), np.array([[0.0, 1.0]])
    sample = np.concatenate([near, far]).astype(np.float32)
    for seed in range(20):
        assert set(map(tuple, sample[choose_start(sample, 2, (seed,))].tolist())) == {(1.0, 0.0), (0.0, 1.0)}
    assert units(1, 0, "kmeans.start")[0] < 1
