import numpy as np
import pytest
from support.points import surface

from heliostat.curation.index import Code, IndexPlan, SearchShard, plan_index, sample_size, train_index
from heliostat.curation.kmeans import Ints, Vectors
from heliostat.curation.similarity import NO_ROW, best_of

ROWS, WIDTH, K = 6000, 32, 10


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return surface(ROWS, WIDTH)


@pytest.fixture(scope="module")
def truth(vectors: Vectors) -> Ints:
    return np.argsort(-(vectors[:300].astype(np.float64) @ vectors.astype(np.float64).T), axis=1)[:, :K]


def recall(found: Ints, truth: Ints) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, truth, strict=True)]))


def shard(vectors: Vectors, code: Code, lists: int = 24) -> SearchShard:
    plan = IndexPlan(lists, code, WIDTH)
    trained = train_index(vectors[: sample_size(plan)], plan, (0,))
    return SearchShard(plan, trained, vectors, np.arange(len(vectors)))


def test_search__without_lists_is_exact(vectors: Vectors, truth: Ints) -> None:
    found, near = SearchShard(IndexPlan(0, "sq8", WIDTH), None, vectors, np.arange(ROWS)).search(vectors[:300], K, 1)
    assert recall(found, truth) > 0.999
    assert (np.diff(near.astype(int), axis=1) <= 0).all()
    assert np.array_equal(found[:, 0], np.arange(300))


@pytest.mark.parametrize(("code", "least"), [("flat", 0.97), ("sq8", 0.97), ("rabitq", 0.9), ("pq", 0.8)])
def test_search__by_lists_finds_most(vectors: Vectors, truth: Ints, code: Code, least: float) -> None:
    index = shard(vectors, code)
    few, many = (recall(index.search(vectors[:300], K, probes)[0], truth) for probes in (1, 12))
    assert many >= least
    assert few < many
    found, _ = index.search(vectors[:300], K + 1, 12)
    exact = np.argsort(-(vectors[:300].astype(np.float64) @ vectors.astype(np.float64).T), axis=1)[:, : K + 1]
    hits = [
        len(np.intersect1d(mine, theirs[theirs != own]))
        for own, (mine, theirs) in enumerate(zip(found, exact, strict=True))
    ]
    assert index.recall(np.arange(300), K, 12) == pytest.approx(np.mean(hits) / K, abs=0.005)


def test_search__of_parts_merges_into_that_of_the_whole(vectors: Vectors) -> None:
    plan = IndexPlan(24, "sq8", WIDTH)
    trained = train_index(vectors[:2000], plan, (0,))
    whole = SearchShard(plan, trained, vectors, np.arange(ROWS)).search(vectors[:200], K, 24)
    rows = np.arange(ROWS)
    parts = [SearchShard(plan, trained, vectors[part], rows[part]) for part in (rows % 3 == 0, rows % 3 != 0)]
    found = [part.search(vectors[:200], K, 24) for part in parts]
    rows_of, near_of = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
    merged = best_of(rows_of, near_of, K)
    assert np.array_equal(merged[1], whole[1])
    assert (merged[0] == whole[0]).mean() > 0.999


def test_search__does_not_depend_on_the_batch(vectors: Vectors) -> None:
    index = shard(vectors, "sq8")
    whole = index.search(vectors[:50], K, 4)
    alone = [index.search(vectors[row : row + 1], K, 4) for row in range(50)]
    assert np.array_equal(whole[0], np.concatenate([rows for rows, _ in alone]))
    assert np.array_equal(whole[1], np.concatenate([near for _, near in alone]))


def test_train_index__gives_the_same_bytes_again(vectors: Vectors) -> None:
    plan = IndexPlan(80, "sq8", WIDTH)  # begins in two levels
    assert train_index(vectors, plan, (3,)) == train_index(vectors, plan, (3,))


def test_search__says_where_there_are_too_few(vectors: Vectors) -> None:
    found, _ = SearchShard(IndexPlan(0, "sq8", WIDTH), None, vectors[:3], np.array([5, 6, 9])).search(vectors[:2], 5, 1)
    assert sorted(found[0].tolist()) == [NO_ROW, NO_ROW, 5, 6, 9]


def test_plan_index__lists_for_many_rows_and_shards_that_fit_into_memory() -> None:
    assert plan_index(1000, WIDTH, "sq8", flat_rows=1000).lists == 0
    plan = plan_index(1_000_000, 384, "sq8", flat_rows=1000)
    assert plan.lists == 3906
    assert plan.row_bytes == 384 * 3 + 16
    assert plan.shards(1_000_000, 2**30) == 2
    assert plan.shards(10, 2**30) == 1
