import numpy as np

from heliostat.curation.retrieval import by_clusters, by_sample
from heliostat.curation.similarity import NO_ROW

NEIGHBOURS = np.array([[5, 9, 7], [9, 6, NO_ROW]])


def test_by_sample__takes_the_first_of_each_query_once() -> None:
    found = by_sample(np.array([100, 101]), NEIGHBOURS, 2, 10, (0,))
    assert found.rows.tolist() == [5, 6, 9]
    assert found.queries.tolist() == [100, 101, 100]
    assert found.before_cap == 3


def test_by_sample__keeps_to_the_cap() -> None:
    found = [by_sample(np.array([100, 101]), NEIGHBOURS, 3, 2, (seed,)) for seed in range(20)]
    assert all(len(each.rows) == 2 and each.before_cap == 4 for each in found)
    assert {tuple(each.rows) for each in found} > {tuple(found[0].rows)}


def test_by_clusters__takes_from_clusters_that_are_hit_often_enough() -> None:
    pool = np.arange(1000, 1090)
    clusters = np.repeat([0, 1, 2], 30)
    queries = np.arange(8)
    hits = np.array([0, 0, 0, 0, 1, 1, 1, 2])  # four, three and one
    found = by_clusters(queries, hits, pool, clusters, min_hits=3, per_cluster=20, cap=100, stream=(0,))
    assert len(found.rows) == 20
    assert (found.rows < 1030).all()
    assert set(found.queries.tolist()) == {0}
    both = by_clusters(queries, hits, pool, clusters, min_hits=2, per_cluster=50, cap=100, stream=(0,))
    assert both.rows.tolist() == list(range(1000, 1060))
    assert both.queries.tolist() == [0] * 30 + [4] * 30
    capped = by_clusters(queries, hits, pool, clusters, min_hits=2, per_cluster=50, cap=7, stream=(0,))
    assert (len(capped.rows), capped.before_cap) == (7, 60)


def test_by_clusters__takes_nothing_where_nothing_is_hit() -> None:
    found = by_clusters(
        np.arange(2), np.array([0, 0]), np.arange(5), np.zeros(5, int), min_hits=3, per_cluster=9, cap=9, stream=(0,)
    )
    assert found.rows.tolist() == []
