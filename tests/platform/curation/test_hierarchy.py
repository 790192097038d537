import numpy as np
import numpy.typing as npt

from heliostat.curation.hierarchy import LevelPlan, closest_rows, cluster_levels
from heliostat.curation.kmeans import Floats, InMemory, normalised
from heliostat.curation.sampling import entropy_share, sample_balanced


def imbalanced(classes: int, largest: int, smallest: int) -> tuple[InMemory, npt.NDArray[np.int64]]:
    """A mixture whose classes shrink geometrically."""
    rng = np.random.default_rng(0)
    sizes = np.geomspace(largest, smallest, classes).astype(int)
    labels = np.repeat(np.arange(classes), sizes)
    means = rng.normal(size=(classes, 24))
    points = means[labels] + 0.25 * rng.normal(size=(len(labels), 24))
    order = rng.permutation(len(labels))
    return InMemory(normalised(points[order]).astype(np.float16)), labels[order]


PLANS = [LevelPlan(200, 4, 4), LevelPlan(40, 4, 3), LevelPlan(10, 2, 2)]


def test_cluster_levels__balances_what_is_a_hundred_to_one() -> None:
    points, labels = imbalanced(10, 3000, 30)
    levels = cluster_levels(points, PLANS, 0, {})
    chosen = sample_balanced(levels, 250, seed=0)
    random = np.random.default_rng(0).choice(len(labels), 250, replace=False)
    assert len(chosen) == 250
    assert entropy_share(labels[chosen], 10) >= 0.95
    assert entropy_share(labels[random], 10) < 0.85


def test_cluster_levels__every_level_owns_the_one_below() -> None:
    points, _ = imbalanced(5, 300, 30)
    told: list[tuple[int, int]] = []
    levels = cluster_levels(
        points, [LevelPlan(40, 1, 2), LevelPlan(8)], 1, {}, lambda done, total: told.append((done, total))
    )
    assert [len(level.assignment) for level in levels] == [points.rows, 40]
    assert [level.centroids_KD.shape[0] for level in levels] == [40, 8]
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    again = cluster_levels(points, [LevelPlan(40, 1, 2), LevelPlan(8)], 1, {})
    assert all(np.array_equal(a.centroids_KD, b.centroids_KD) for a, b in zip(levels, again, strict=True))


def test_cluster_levels__goes_on_from_what_is_kept() -> None:
    points, _ = imbalanced(5, 300, 30)
    plans = [LevelPlan(40, 2, 2), LevelPlan(8, 1, 2)]
    kept: dict[str, Floats] = {}
    whole = cluster_levels(points, plans, 1, kept)
    assert len(kept) == 5
    some = dict(list(kept.items())[:2])
    again = cluster_levels(points, plans, 1, some)
    assert all(np.array_equal(a.centroids_KD, b.centroids_KD) for a, b in zip(whole, again, strict=True))
    assert all(np.array_equal(a.assignment, b.assignment) for a, b in zip(whole, again, strict=True))


def test_cluster_levels__takes_as_many_clusters_as_there_are_points() -> None:
    points = InMemory(np.eye(4, dtype=np.float16))
    levels = cluster_levels(points, [LevelPlan(9), LevelPlan(6)], 0, {})
    assert [len(level.centroids_KD) for level in levels] == [4, 4]


def test_closest_rows__as_many_of_each_and_the_first_of_equals() -> None:
    owners = np.array([0, 1, 0, 0, 1])
    similarity = np.array([0.5, 0.9, 0.8, 0.8, 0.1], np.float32)
    assert closest_rows(owners, similarity, 1).tolist() == [1, 2]
    assert closest_rows(owners, similarity, 2).tolist() == [1, 2, 3, 4]
