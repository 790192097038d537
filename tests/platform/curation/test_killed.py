"""Curations whose processes die in every stage: the result is that of a calm one, and little is done twice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.curation_pictures import encoded, recompressed, scene
from support.deadly_work import DeadlyRun
from support.processes import kill_own
from support.small_datasets import store_dataset
from support.small_ray import small_ray
from support.work_here import run_here

from heliostat.config.curate import CurateRecipe
from heliostat.curation.curate import Curated, curate, fates_folder, pin
from heliostat.curation.fates import read_fates
from heliostat.curation.image_maps import Run
from heliostat.data.ray_tasks import run_tasks
from heliostat.errors import PluginFailedError
from heliostat.storage import Store
from heliostat.storage.local import LocalStore

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")]

RECIPE: dict[str, Any] = {
    "kind": "curate",
    "name": "best",
    "pool": ["crawl"],
    "filter": {"min_side_px": 1, "max_ratio": 20},
    "dedup": {
        "embedding": {"source": "dct-hash"},
        "threshold": 0.8,
        "benchmark_threshold": 0.8,
        "benchmarks": ["test"],
    },
    "embedding": {"source": "support.curation_pictures:MeanColour"},
    "search": {"flat_rows": 0},
    "retrieve": [{"dataset": "test", "method": "sample", "neighbours": 2}],
    "cluster": {"levels": [{"clusters": 6, "resamplings": 1}, {"clusters": 2, "resamplings": 0}]},
    "sample": 8,
}
IMAGES = 24


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with small_ray():
        yield


def pool(folder: Path) -> LocalStore:
    root = LocalStore(folder)
    store_dataset(root, [recompressed(0), *(encoded(scene(number)) for number in range(IMAGES))], "crawl")
    store_dataset(root, [recompressed(9), encoded(scene(99))], "test")
    return root


def run(root: Store, how: Run, watch: Any = lambda stage, done, total: None) -> Curated:
    recipe = CurateRecipe.model_validate({**RECIPE, "root": root.url})
    found = curate(root, recipe, pin(root, recipe), how, watch)
    assert isinstance(found, Curated)
    return found


def results(root: Store) -> dict[str, object]:
    """Everything that a curation has decided and computed: keys of what is stored, which hold its hashes, and fates."""
    keys = {info.key for info in root.list() if info.key.endswith(".parquet")}
    return {"keys": keys, "fates": read_fates(fates_folder(root, "best")).sort_by([("id", "ascending")]).to_pylist()}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, object]]:
    root = pool(tmp_path_factory.mktemp("calm"))
    found = run(root, run_here)
    return found.manifest_sha256, results(root)


def test_curate__a_worker_killed_in_every_stage_costs_one_block_each(
    tmp_path: Path, calm: tuple[str, dict[str, object]]
) -> None:
    (tmp_path / "notes").mkdir()
    root, deadly = pool(tmp_path / "root"), DeadlyRun(tmp_path / "notes")
    holders: list[str] = []

    def watch(stage: str, done: int, total: int) -> None:
        """Kill those who hold points and indexes, once for each stage that has them."""
        for end, title in (("clusters", "ray::_PointsActor"), ("neighbours", "ray::_ShardActor")):
            if stage.endswith(end) and done and stage not in holders and kill_own(title):
                holders.append(stage)

    found = run(root, deadly, watch)
    assert (found.manifest_sha256, results(root)) == calm
    counts = [each for each in deadly.counts() if each[0]]
    assert len(counts) >= 8
    assert all(killed == 1 and begun <= items + 1 for items, begun, killed in counts)
    assert "clusters" in holders
    assert any(stage.endswith("neighbours") for stage in holders)


def test_curate__an_error_of_a_worker_arrives_as_what_it_is(tmp_path: Path) -> None:
    root = pool(tmp_path)
    recipe = {**RECIPE, "root": root.url, "filter": {"plugins": ["support.curation_pictures:NeverOpens"]}}
    parsed = CurateRecipe.model_validate(recipe)
    with pytest.raises(PluginFailedError, match="never-opens failed: OSError: no weights"):
        curate(root, parsed, pin(root, parsed), run_tasks, lambda stage, done, total: None)


def test_curate__stopped_in_every_stage_goes_on_and_repeats_nothing_that_was_done(
    tmp_path: Path, calm: tuple[str, dict[str, object]]
) -> None:
    """The driver stops at the first result of every call with several items, once for each number of them."""
    root = pool(tmp_path / "root")
    stored: set[tuple[int, bytes]] = set()
    stopped: set[tuple[str, int]] = set()

    def stopping(payloads: Iterator[tuple[int, bytes]], task: Any) -> Iterator[tuple[int, bytes]]:
        items, kind = list(payloads), type(getattr(task, "make", task)).__name__
        for index, result in run_here(items, task):
            if kind not in ("_Thin", "_TakeRows"):  # whose results are small, and kept nowhere
                assert (index, result) not in stored, "it was there already"
                stored.add((index, result))
            yield index, result
            if len(items) > 1 and (kind, len(items)) not in stopped:
                stopped.add((kind, len(items)))
                raise KeyboardInterrupt

    while True:
        try:
            found = run(root, stopping)
            break
        except KeyboardInterrupt:
            continue
    assert {kind for kind, _ in stopped} == {"_MapShards", "_SearchBlock", "_Thin", "_TakeRows"}
    assert (found.manifest_sha256, results(root)) == calm
