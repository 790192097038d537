"""Neighbours and clusters by Ray actors: the same as of one process, whatever the division, and whoever dies."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.points import stored, surface
from support.processes import kill_own
from support.small_ray import small_ray
from support.work_here import run_here

from heliostat.config.curate import SearchConfig
from heliostat.curation import neighbours as module
from heliostat.curation.hierarchy import LevelPlan, cluster_levels
from heliostat.curation.index import IndexPlan
from heliostat.curation.kmeans import InMemory, Ints, Vectors, sample_rows
from heliostat.curation.neighbours import Found, NeighbourTable, Search, find_neighbours
from heliostat.curation.ray_points import divide, ray_points
from heliostat.curation.vectors import VectorPart, take_rows
from heliostat.data.ray_tasks import run_tasks
from heliostat.errors import CorruptResultError, InvalidValueError
from heliostat.storage.local import LocalStore
from heliostat.storage.results import ResultFolder

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")]

WIDTH, ROWS, PER_SHARD, K = 24, 2400, 300, 8


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with small_ray():
        yield


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return surface(ROWS, WIDTH)


def search(root: LocalStore, vectors: Vectors, name: str = "a", run: Any = run_tasks, **config: Any) -> Found:
    folder, parts = stored(root, vectors, PER_SHARD)
    asked = Search(
        folder, root.sub(f"index-{name}"), ResultFolder(root.sub(f"found-{name}")), parts, parts, WIDTH, K, 0
    )
    return find_neighbours(asked, SearchConfig.model_validate(config), run)


def whole(found: Found) -> tuple[Ints, Ints, npt.NDArray[np.int16]]:
    tables = [NeighbourTable.from_arrow(found.folder.read(key)) for key in found.keys]
    joined = [
        np.concatenate([getattr(table, name) for table in tables]) for name in ("rows", "neighbours", "similarity")
    ]
    return joined[0], joined[1], joined[2]


def same(found: Sequence[npt.NDArray[Any]], others: Sequence[npt.NDArray[Any]]) -> bool:
    return all(np.array_equal(mine, theirs) for mine, theirs in zip(found, others, strict=True))


def truth(vectors: Vectors) -> Ints:
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    np.fill_diagonal(exact, -2)
    return np.argsort(-exact, axis=1)[:, :K]


def recall(found: Ints, expected: Ints) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, expected, strict=True)]))


def test_find_neighbours__of_few_vectors_is_exact(tmp_path: Path, vectors: Vectors) -> None:
    found = search(LocalStore(tmp_path), vectors)
    rows, neighbours, near = whole(found)
    assert rows.tolist() == list(range(ROWS))
    assert recall(neighbours, truth(vectors)) > 0.998  # what is equally near to 1/16384 may stand in another order
    assert (neighbours != rows[:, None]).all()
    assert (np.diff(near.astype(int), axis=1) <= 0).all()
    assert (found.probes, found.recall) == (0, 1.0)


def test_find_neighbours__by_lists_reaches_the_recall_that_was_asked_for(tmp_path: Path, vectors: Vectors) -> None:
    found = search(LocalStore(tmp_path), vectors, flat_rows=0, recall=0.97)
    _, neighbours, _ = whole(found)
    assert found.plan.lists == ROWS // 256
    assert found.recall >= 0.97
    assert recall(neighbours, truth(vectors)) >= 0.95


@pytest.mark.parametrize("config", [{}, {"flat_rows": 0}, {"flat_rows": 0, "code": "rabitq"}], ids=str)
def test_find_neighbours__does_not_depend_on_shards_and_passes(
    tmp_path: Path, vectors: Vectors, config: dict[str, Any]
) -> None:
    """With a GiB so small that there are several shards, and a cluster for one at a time."""
    one = whole(search(LocalStore(tmp_path), vectors, "one", run_here, **config))
    many = search(LocalStore(tmp_path), vectors, "many", run_here, **config, shard_gib=72_000 / 2**30)
    assert many.keys[0].count("-of-") == 1
    assert same(whole(many), one)


def test_find_neighbours__a_start_with_another_division_takes_nothing_of_the_first(
    tmp_path: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second of two passes, and started again with other shards, two passes again."""
    expected = whole(search(LocalStore(tmp_path), vectors, "calm", run_here))

    def in_shards(count: int, stop_after: int) -> Found:
        done = 0

        def run(payloads: Any, task: Any) -> Iterator[tuple[int, bytes]]:
            nonlocal done
            for result in run_here(payloads, task):
                yield result
                done += 1
                if done == stop_after:
                    raise KeyboardInterrupt

        monkeypatch.setattr(module, "_fitting", lambda shards, plan, gpus: -(-len(shards) // 2))
        bytes_of_shard = ROWS * (WIDTH * 6 + 8) / count
        return search(LocalStore(tmp_path), vectors, "stopped", run, shard_gib=bytes_of_shard / 2**30)

    with pytest.raises(KeyboardInterrupt):
        in_shards(2, stop_after=11)
    assert same(whole(in_shards(4, stop_after=-1)), expected)


def test_find_neighbours__says_where_no_node_holds_a_shard(tmp_path: Path, vectors: Vectors) -> None:
    with pytest.raises(InvalidValueError, match=r"search\.gpus is 1, and no node has so many"):
        search(LocalStore(tmp_path), vectors, flat_rows=0, gpus=1.0)
    huge = [[VectorPart(0, "", 0, np.arange(2**33, 2**33 + 1))]]
    with pytest.raises(InvalidValueError, match=r"no node has so much memory"):
        module._fitting(huge, IndexPlan(1, "sq8", 2**40), 0.0)


def test_find_neighbours__names_vectors_that_are_damaged(tmp_path: Path, vectors: Vectors) -> None:
    root = LocalStore(tmp_path)
    folder, parts = stored(root, vectors, PER_SHARD)
    folder.store.delete(parts[3].key)
    queries = parts[:1]  # the search alone reads the damaged part
    asked = Search(folder, root.sub("index"), ResultFolder(root.sub("found")), parts, queries, WIDTH, K, 0)
    with pytest.raises(CorruptResultError) as error:
        find_neighbours(asked, SearchConfig.model_validate({}), run_tasks)
    assert "is gone" in error.value.fact


def test_find_neighbours__goes_on_when_a_shard_dies(tmp_path: Path, vectors: Vectors) -> None:
    expected = whole(search(LocalStore(tmp_path), vectors, "calm"))
    killed: list[int] = []

    def run(payloads: Any, task: Any) -> Iterator[tuple[int, bytes]]:
        for number, result in enumerate(run_tasks(payloads, task)):
            if number == 2:
                killed.extend(kill_own("ray::_ShardActor"))
            yield result

    found = whole(search(LocalStore(tmp_path), vectors, "killed", run))
    assert killed
    assert same(found, expected)


def test_find_neighbours__again_searches_nothing(tmp_path: Path, vectors: Vectors) -> None:
    first = search(LocalStore(tmp_path), vectors)

    def nothing(payloads: Any, task: Any) -> Iterator[tuple[int, bytes]]:
        assert list(payloads) == []
        return iter(())

    assert search(LocalStore(tmp_path), vectors, run=nothing).keys == first.keys


def test_find_neighbours__refuses_a_block_that_was_changed(tmp_path: Path, vectors: Vectors) -> None:
    found = search(LocalStore(tmp_path), vectors[:400])
    data = bytearray(found.folder.store.get(found.keys[0]))
    data[100] ^= 1
    found.folder.store.put(found.keys[0], bytes(data))
    with pytest.raises(CorruptResultError, match="hash"):
        whole(found)


@pytest.mark.parametrize("actors", [1, 2, 4])
def test_ray_points__give_the_same_clusters_at_any_number_of_workers(
    tmp_path: Path, vectors: Vectors, actors: int
) -> None:
    folder, parts = stored(LocalStore(tmp_path), vectors, PER_SHARD)
    plans = [LevelPlan(20, resamplings=2, closest=3, rounds=5, starts=2), LevelPlan(4, rounds=5)]
    with ray_points(folder, parts, actors) as points:
        found = cluster_levels(points, plans, 3, {})
    alone = cluster_levels(_InParts(vectors), plans, 3, {})
    for mine, theirs in zip(found, alone, strict=True):
        assert np.array_equal(mine.centroids_KD, theirs.centroids_KD)
        assert np.array_equal(mine.assignment, theirs.assignment)


def test_ray_points__take_rows_of_any_actor(tmp_path: Path, vectors: Vectors) -> None:
    folder, parts = stored(LocalStore(tmp_path), vectors, PER_SHARD)
    asked = sample_rows(ROWS, 77, (5,))
    few = np.array([PER_SHARD * 3 - 1, PER_SHARD * 3])
    with ray_points(folder, parts, 3) as points:
        assert np.array_equal(points.take(asked), vectors[asked])
        assert np.array_equal(points.take(few), vectors[few])
    assert np.array_equal(take_rows(parts, folder, asked, run_here), vectors[asked])


def test_ray_points__read_again_when_a_worker_dies(tmp_path: Path, vectors: Vectors) -> None:
    folder, parts = stored(LocalStore(tmp_path), vectors, PER_SHARD)
    with ray_points(folder, parts, 2) as points:
        before = points.map(_first_column)
        assert kill_own("ray::_PointsActor")
        after = points.map(_first_column)
    assert np.array_equal(before, after)
    assert np.array_equal(before, vectors[:, 0])


def test_divide__gives_consecutive_parts_of_about_equal_size(vectors: Vectors) -> None:
    parts = [VectorPart(shard, "", 0, np.arange(rows)) for shard, rows in enumerate([5, 5, 100, 5, 5, 90, 90])]
    shares = divide(parts, 3)
    assert [part.shard for share in shares for part in share] == list(range(7))
    assert max(sum(len(part.places) for part in share) for share in shares) <= 200
    assert len(divide(parts[:2], 5)) == 2


class _InParts(InMemory):
    """Chunks as shards cut them."""

    def _chunks(self) -> Iterator[Vectors]:
        for first in range(0, len(self.vectors), PER_SHARD):
            yield self.vectors[first : first + PER_SHARD]


def _first_column(chunk: Vectors) -> npt.NDArray[Any]:
    return chunk[:, 0]
