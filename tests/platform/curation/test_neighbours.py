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

from heliostat.config.curate import SearchConfig
from heliostat.curation.kmeans import InMemory, Ints, Vectors, kmeans
from heliostat.curation.neighbours import Found, NeighbourTable, Search, find_neighbours
from heliostat.curation.ray_points import divide, ray_points
from heliostat.curation.results import ResultFolder
from heliostat.curation.vectors import VectorPart
from heliostat.data.ray_tasks import run_tasks
from heliostat.errors import CorruptResultError
from heliostat.storage.local import LocalStore

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


def test_find_neighbours__does_not_depend_on_shards_and_passes(tmp_path: Path, vectors: Vectors) -> None:
    """With a GiB so small that a shard is one part, and memory for one shard at a time."""
    one = whole(search(LocalStore(tmp_path), vectors, "one"))
    many = search(LocalStore(tmp_path), vectors, "many", shard_gib=PER_SHARD * 170 / 2**30)
    assert many.keys[0].count("-of-8") == 1
    assert same(whole(many), one)


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
    with ray_points(folder, parts, actors) as points:
        found = kmeans(points, 20, (3,), rounds=6)
    alone = kmeans(_InParts(vectors), 20, (3,), rounds=6)
    assert np.array_equal(found.centroids_KD, alone.centroids_KD)
    assert found.potential == alone.potential


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
