import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.curation.hierarchy import Level
from heliostat.curation.sampling import balanced_quotas, entropy_share, sample_balanced

NOTHING = np.zeros((1, 1), np.float32)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=15), st.integers(0, 500), st.integers())
def test_balanced_quotas__no_cluster_gets_much_more_than_another_that_has_more(
    sizes: list[int], target: int, seed: int
) -> None:
    held = np.array(sizes)
    quotas = balanced_quotas(held, target, (seed,))
    assert quotas.sum() == min(target, held.sum())
    assert (quotas <= held).all()
    with_room = quotas < held
    if with_room.any():  # who has more could have been given more: nobody has over one more than it
        assert quotas.max() <= quotas[with_room].min() + 1


def test_balanced_quotas__gives_the_rest_to_other_clusters_under_another_seed() -> None:
    sizes = np.full(50, 9)
    first, second = balanced_quotas(sizes, 125, (1,)), balanced_quotas(sizes, 125, (2,))
    assert not np.array_equal(first, second)
    assert set(first.tolist()) == {2, 3}


def levels_of(*assignments: list[int]) -> list[Level]:
    return [Level(np.zeros((max(assignment) + 1, 1), np.float32), np.array(assignment)) for assignment in assignments]


def test_sample_balanced__divides_from_the_top() -> None:
    # Cluster 0 of the top owns one cluster of 10 points, cluster 1 owns two: of 90 points and of 1.
    levels = levels_of([0] * 10 + [1] * 90 + [2], [0, 1, 1])
    chosen = sample_balanced(levels, 12, seed=3)
    owners = levels[0].assignment[chosen]
    assert np.bincount(owners).tolist() == [6, 5, 1]
    assert len(set(chosen.tolist())) == 12
    assert np.array_equal(chosen, sample_balanced(levels, 12, seed=3))
    assert not np.array_equal(chosen, sample_balanced(levels, 12, seed=4))


def test_sample_balanced__takes_all_where_that_is_less_than_the_target() -> None:
    levels = levels_of([0, 1, 1], [0, 0])
    assert sample_balanced(levels, 10, seed=0).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("labels", "expected"), [([0, 1, 2, 3], 1.0), ([0, 0, 0, 0], 0.0), ([0, 0, 1, 1], 0.5)])
def test_entropy_share__is_one_where_all_classes_are_equally_many(labels: list[int], expected: float) -> None:
    assert entropy_share(np.array(labels), 4) == pytest.approx(expected)
