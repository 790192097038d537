"""Whole curations: what is planted is found, and what was computed is not computed again.

Indexes and points are in actors of a real Ray; tasks run here (in ``test_killed.py`` they run on Ray as well).
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.curation_pictures import Plugin, encoded, recompressed, scene
from support.small_datasets import store_dataset, store_selection
from support.small_ray import small_ray
from support.work_here import run_here

from heliostat.config.curate import CurateRecipe
from heliostat.curation.curate import Curated, Stopped, curate, fates_folder, load_result, pin
from heliostat.curation.fates import Fate, fates_in, find_fate, read_fates
from heliostat.curation.image_maps import results_folder
from heliostat.curation.lookup import find_nearest
from heliostat.data.manifest import load_manifest
from heliostat.data.reading import RowReader
from heliostat.errors import (
    ChangedConfigError,
    CorruptShardError,
    PluginFailedError,
    RejectedImageError,
    SelectionError,
)
from heliostat.storage import Store
from heliostat.storage.layout import dataset_store
from heliostat.storage.local import LocalStore

pytestmark = pytest.mark.ray

FILTER: dict[str, Any] = {"min_side_px": 1, "max_ratio": 20}
"""Sizes of the datasets here are made up: an image that stands later is larger."""
DEDUP: dict[str, Any] = {
    "embedding": {"source": "dct-hash"},
    "threshold": 0.8,
    "benchmark_threshold": 0.8,
    "neighbours": 8,
}


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with small_ray():
        yield


def name_of(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


def run(root: Store, **recipe: Any) -> tuple[Curated, dict[str, Fate]]:
    chosen = CurateRecipe.model_validate(
        {"kind": "curate", "name": "best", "root": root.url, "dedup": DEDUP, "filter": FILTER, **recipe}
    )
    found = curate(root, chosen, pin(root, chosen), run_here, lambda stage, done, total: None)
    assert isinstance(found, Curated)
    return found, {fate.id: fate for fate in fates_in(read_fates(fates_folder(root, chosen.name)))}


def images_of(root: Store, name: str) -> set[str]:
    manifest = load_manifest(root, name)
    return set(RowReader(root, manifest).read(list(range(manifest.rows)))["id"].to_pylist())


def test_curate__keeps_one_of_each_and_says_why(tmp_path: Path) -> None:
    root = LocalStore(tmp_path)
    originals = [encoded(scene(number)) for number in range(12)]
    copies = [recompressed(number) for number in range(4)]
    grey = encoded(np.full((96, 96, 3), 128, np.uint8))
    store_dataset(root, [*copies, *originals, grey], "crawl")
    store_dataset(root, [originals[11], encoded(scene(50))], "more")
    store_dataset(root, [recompressed(5)], "benchmark")
    found, fates = run(root, pool=["crawl", "more"], dedup={**DEDUP, "benchmarks": ["benchmark"]})
    kept = {*originals[:5], *originals[6:], encoded(scene(50))}
    assert images_of(root, "best") == {name_of(image) for image in kept}
    for number, copy in enumerate(copies):
        fate = fates[name_of(copy)]
        assert (fate.is_kept, fate.reason, fate.because_of) == (False, "near-duplicate", name_of(originals[number]))
    assert fates[name_of(grey)].reason == "near-constant"
    assert fates[name_of(originals[5])].because_of == name_of(recompressed(5))
    assert (found.images, found.pool) == (12, 19)
    assert found.reasons["exact duplicates", "exact duplicate", False] == 1
    assert found == load_result(root, "best")
    twice = find_fate(fates_folder(root, "best"), name_of(originals[11]))
    assert twice is not None
    assert (twice.is_kept, twice.dataset) == (True, "crawl")
    assert find_fate(fates_folder(root, "best"), "00" * 32) is None


def test_curate__goes_on_from_an_earlier_curation(tmp_path: Path) -> None:
    root = LocalStore(tmp_path)
    old = [encoded(scene(number)) for number in range(5)]
    part = store_dataset(root, old, "old")
    ids = RowReader(root, part).read(list(range(5)))["id"].to_pylist()
    store_selection(root, [part], [(0, row) for row in range(4)], "curated")
    store_dataset(root, [*(recompressed(number) for number in range(5)), encoded(scene(9))], "new")
    _, fates = run(root, pool=["new"], dedup={**DEDUP, "existing": "curated"})
    (left,) = [number for number, image in enumerate(old) if name_of(image) == ids[4]]
    assert images_of(root, "best") == {*ids[:4], name_of(recompressed(left)), name_of(encoded(scene(9)))}
    for number in set(range(5)) - {left}:
        fate = fates[name_of(recompressed(number))]
        assert (fate.reason, fate.because_of) == ("repeats an image of the existing set", name_of(old[number]))


def test_curate__names_images_that_cannot_be_read_and_goes_on(tmp_path: Path) -> None:
    root = LocalStore(tmp_path)
    images = [encoded(scene(number)) for number in range(20)]
    manifest = store_dataset(root, images, "crawl", group_rows=4, shard_groups=2)
    store = dataset_store(root, "crawl")
    broken, gone = manifest.shards[0], manifest.shards[1]
    data = bytearray(store.get(broken.key))
    data[broken.row_groups[0].offset + 40] ^= 1
    store.put(broken.key, bytes(data))
    store.delete(gone.key)
    lost = manifest.shards[2]
    store.delete(lost.index_key)
    found, fates = run(root, pool=["crawl"])
    assert found.images == 20 - 4 - 8 - lost.rows
    reasons = [fate.reason for fate in fates.values() if not fate.is_kept]
    assert reasons.count("unreadable") == 12
    assert reasons.count("its index is damaged or gone") >= 1
    assert images_of(root, "best") == {name for name, fate in fates.items() if fate.is_kept}


def test_curate__takes_what_resembles_a_set_and_a_balanced_sample(tmp_path: Path) -> None:
    root = LocalStore(tmp_path)
    rng = np.random.default_rng(0)

    def tinted(colour: tuple[int, int, int], count: int) -> list[bytes]:
        images = []
        for _ in range(count):
            noise = rng.integers(-60, 60, (64, 64, 3))
            images.append(encoded(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8), "PNG"))
        return images

    red, green, blue = tinted((190, 60, 60), 60), tinted((60, 190, 60), 6), tinted((60, 60, 190), 6)
    store_dataset(root, [*red, *green, *blue], "crawl")
    store_dataset(root, tinted((60, 190, 60), 2), "grass")
    found, fates = run(
        root,
        pool=["crawl"],
        dedup={**DEDUP, "threshold": 0.999},
        embedding={"source": "support.curation_pictures:MeanColour"},
        retrieve=[{"dataset": "grass", "method": "sample", "neighbours": 2}],
        cluster={"levels": [{"clusters": 12, "resamplings": 2}, {"clusters": 3, "resamplings": 1}]},
        sample=12,
    )
    kept = {name for name, fate in fates.items() if fate.is_kept}
    retrieved = {name for name, fate in fates.items() if fate.reason == "retrieved for grass"}
    assert 2 <= len(retrieved) <= 4
    assert retrieved <= {name_of(image) for image in green}
    counts = [len(kept & {name_of(image) for image in images}) for images in (red, green, blue)]
    assert min(counts) >= 4
    assert found.images == len(kept) == sum(counts)


def test_curate__again_computes_nothing_and_gives_the_same(tmp_path: Path) -> None:
    root = LocalStore(tmp_path)
    store_dataset(root, [encoded(scene(number)) for number in range(8)], "crawl")
    first, fates = run(root, pool=["crawl"])
    before = {info.key for info in root.list()}

    def nothing(payloads: Any, task: Any) -> Iterator[tuple[int, bytes]]:
        assert list(payloads) == [] or type(task).__name__ == "_Thin"
        return run_here(payloads, task)

    recipe = CurateRecipe.model_validate(
        {"kind": "curate", "name": "best", "root": root.url, "dedup": DEDUP, "filter": FILTER, "pool": ["crawl"]}
    )
    again = curate(root, recipe, pin(root, recipe), nothing, lambda stage, done, total: None)
    assert isinstance(again, Curated)
    assert again.manifest_sha256 == first.manifest_sha256
    assert {info.key for info in root.list()} == before
    assert fates


def test_curate__leaves_out_what_plugins_and_lists_say(tmp_path: Path) -> None:
    root = LocalStore(tmp_path / "root")
    dark = [encoded((scene(number) // 8).astype(np.uint8), "PNG") for number in range(3)]
    light = [encoded(scene(number + 10) // 2 + 127, "PNG") for number in range(3)]
    store_dataset(root, [*dark, *light], "crawl")
    denied = tmp_path / "deny.txt"
    denied.write_text(f"# by hand\n{name_of(light[0])}\n4.jpg\n")
    _, fates = run(
        root,
        pool=["crawl"],
        filter={**FILTER, "plugins": ["support.curation_pictures:Darkness"], "max_score": 0.8, "deny": str(denied)},
    )
    reasons = [fates[name_of(image)].reason for image in [*dark, *light]]
    assert reasons[:3] == ["darkness above 0.8"] * 3
    assert reasons[3:5] == ["on the deny list"] * 2
    assert fates[name_of(light[2])].is_kept


def test_curate__takes_sets_as_they_are_and_says_so(tmp_path: Path) -> None:
    root = LocalStore(tmp_path)
    good = [encoded(scene(number)) for number in range(3)]
    store_dataset(root, [*good, encoded(scene(7))], "good")
    store_dataset(root, [good[0], encoded(scene(7)), encoded(scene(8))], "better")
    store_dataset(root, [good[1], recompressed(2), encoded(scene(9))], "crawl")
    found, fates = run(root, pool=["crawl"], as_is=["good", "better"])
    expected = {*good, encoded(scene(7)), encoded(scene(8)), recompressed(2), encoded(scene(9))}
    assert images_of(root, "best") == {name_of(image) for image in expected}
    assert (found.images, found.pool) == (7, 3)
    assert found.reasons["as is", "taken as it is", True] == 5
    assert found.reasons["exact duplicates", "exact duplicate", False] == 3
    assert (fates[name_of(good[2])].is_kept, fates[name_of(good[2])].dataset) == (True, "good")


def test_curate__leaves_out_images_that_a_benchmark_shares_with_the_pool(tmp_path: Path) -> None:
    """The benchmark is a selection of rows of the pool: they are no duplicates of anything, but must go."""
    root = LocalStore(tmp_path)
    crawl = store_dataset(root, [encoded(scene(number)) for number in range(6)] + [recompressed(0)], "crawl")
    ids = RowReader(root, crawl).read(list(range(7)))["id"].to_pylist()
    chosen = [ids.index(name_of(encoded(scene(number)))) for number in (0, 1)]
    store_selection(root, [crawl], [(0, row) for row in chosen], "test")
    _, fates = run(root, pool=["crawl"], dedup={**DEDUP, "benchmarks": ["test"]})
    assert images_of(root, "best") == {name_of(encoded(scene(number))) for number in range(2, 6)}
    assert {fates[ids[row]].stage for row in chosen} == {"benchmarks"}
    assert fates[name_of(recompressed(0))].because_of == name_of(encoded(scene(0)))


@pytest.mark.parametrize(
    ("plugin", "fact"),
    [
        ("Raising", "raising failed: RuntimeError: out of luck"),
        ("Short", "short failed: ValueError: it gave 1 rows for 4 images"),
        ("WithoutScore", "without-score failed: ValueError: it gave no column 'score' of numbers"),
    ],
)
def test_curate__stops_where_a_plugin_of_the_filter_fails(tmp_path: Path, plugin: str, fact: str) -> None:
    root = LocalStore(tmp_path)
    store_dataset(root, [encoded(scene(number)) for number in range(4)], "crawl")
    with pytest.raises(PluginFailedError, match=fact):
        run(root, pool=["crawl"], filter={**FILTER, "plugins": [f"support.curation_pictures:{plugin}"]})


def test_curate__what_has_no_score_or_no_direction_is_left_out(tmp_path: Path) -> None:
    root = LocalStore(tmp_path)
    black, red = (encoded(np.full((32, 32, 3), colour, np.uint8), "PNG") for colour in ((0, 0, 0), (250, 9, 9)))
    store_dataset(root, [black, red, encoded(scene(0))], "crawl")
    plain = {"min_entropy_bits": 0, "min_deviation": 0}
    _, fates = run(root, pool=["crawl"], filter={**FILTER, **plain, "plugins": ["support.curation_pictures:Hue"]})
    assert fates[name_of(black)].reason == "hue gave no score"
    dedup = {"embedding": {"source": "support.curation_pictures:Direction"}, "threshold": 0.999, "neighbours": 4}
    _, fates = run(root, name="other", pool=["crawl"], filter={**FILTER, **plain}, dedup=dedup)
    assert (fates[name_of(black)].stage, fates[name_of(black)].reason) == ("near-duplicates", "unreadable")
    assert fates[name_of(red)].is_kept


def test_curate__stops_where_an_embedding_gives_no_unit_vectors(tmp_path: Path) -> None:
    root = LocalStore(tmp_path)
    store_dataset(root, [encoded(scene(0))], "crawl")
    dedup = {"embedding": {"source": "support.curation_pictures:Long"}, "threshold": 0.9}
    with pytest.raises(PluginFailedError, match=r"long failed: ValueError: it gave a vector of length 2; 1 is wanted"):
        run(root, pool=["crawl"], dedup=dedup)


def test_find_nearest__tells_copies_from_other_images(tmp_path: Path) -> None:
    root = LocalStore(tmp_path)
    store_dataset(root, [encoded(scene(number)) for number in range(20)], "crawl")
    recipe = CurateRecipe.model_validate(
        {"kind": "curate", "name": "best", "root": root.url, "dedup": DEDUP, "filter": FILTER, "pool": ["crawl"]}
    )
    found = curate(root, recipe, pin(root, recipe), run_here, lambda stage, done, total: None)
    assert isinstance(found, Curated)
    for number in (0, 13, 19):
        near = find_nearest(root, recipe, found, recompressed(number))
        assert (near.id, near.is_copy, near.compared, near.images) == (name_of(encoded(scene(number))), True, 20, 20)
    assert not find_nearest(root, recipe, found, encoded(scene(77))).is_copy
    with pytest.raises(RejectedImageError):
        find_nearest(root, recipe, found, b"text")


def test_curate__stops_where_it_is_told_and_goes_on_from_there(tmp_path: Path) -> None:
    root = LocalStore(tmp_path)
    store_dataset(root, [recompressed(0), *(encoded(scene(number)) for number in range(12))], "crawl")
    wanted: dict[str, Any] = {
        "kind": "curate",
        "name": "best",
        "root": root.url,
        "dedup": DEDUP,
        "filter": FILTER,
        "pool": ["crawl"],
        "embedding": {"source": "support.curation_pictures:MeanColour"},
        "cluster": {"levels": [{"clusters": 3, "resamplings": 0}]},
        "sample": 6,
    }
    kept: set[str] = set()
    for until, stage in (
        ("filter", "filter"),
        ("dedup", "near-duplicates"),
        ("embed", "embedding"),
        ("cluster", "clusters"),
    ):
        recipe = CurateRecipe.model_validate({**wanted, "until": until})
        found = curate(root, recipe, pin(root, recipe), run_here, lambda stage, done, total: None)
        assert isinstance(found, Stopped)
        assert (found.until, found.records[-1].name) == (until, stage)
        keys = {info.key for info in root.list()}
        assert kept < keys
        assert not any("datasets/best" in key or "curations/best" in key for key in keys)
        kept = keys

    def nothing(payloads: Any, task: Any) -> Iterator[tuple[int, bytes]]:
        assert list(payloads) == [] or type(task).__name__ == "_Thin"
        return run_here(payloads, task)

    recipe = CurateRecipe.model_validate(wanted)
    found = curate(root, recipe, pin(root, recipe), nothing, lambda stage, done, total: None)
    assert isinstance(found, Curated)
    assert found.images == 6


def test_curate__finds_exact_copies_only_where_there_is_no_embedding(tmp_path: Path) -> None:
    root = LocalStore(tmp_path)
    store_dataset(root, [recompressed(0), encoded(scene(0))], "crawl")
    store_dataset(root, [encoded(scene(0)), encoded(scene(1))], "more")
    found, _ = run(root, pool=["crawl", "more"], dedup={"embedding": {"source": None}})
    assert found.images == 3
    reasons = {reason: images for reason, images in found.reasons.items() if images}
    assert reasons == {("exact duplicates", "exact duplicate", False): 1, ("all", "survived all stages", True): 3}


def test_curate__says_so_where_nothing_is_left(tmp_path: Path) -> None:
    root = LocalStore(tmp_path)
    store_dataset(root, [encoded(scene(0))], "crawl")
    for more in ({}, {"embedding": {"source": "support.curation_pictures:MeanColour"}, "sample": 5}):
        levels = {"cluster": {"levels": [{"clusters": 2}]}} if more else {}
        with pytest.raises(SelectionError):
            run(root, pool=["crawl"], filter={**FILTER, "min_side_px": 5000}, **more, **levels)


def test_curate__another_curation_of_the_same_images_does_not_mix_up_numbers(tmp_path: Path) -> None:
    """A dataset before the pool moves the numbers of all its rows; what an earlier curation kept has the old ones."""
    expected: set[str] = set()
    for root in (LocalStore(tmp_path / "fresh"), LocalStore(tmp_path / "used")):
        pool = [encoded(scene(number)) for number in range(18)] + [recompressed(number) for number in (1, 5, 9, 13)]
        store_dataset(root, pool, "crawl", group_rows=4, shard_groups=1)
        store_dataset(root, [encoded(scene(number)) for number in range(30, 34)], "good", group_rows=4, shard_groups=1)
        if root.root.name == "used":
            run(root, name="first", pool=["crawl"])
        found, _ = run(root, pool=["crawl"], as_is=["good"])
        assert found.images == 18 + 4
        expected = expected or images_of(root, "best")
        assert images_of(root, "best") == expected


def test_curate__leaves_out_images_of_a_benchmark_by_their_bytes(tmp_path: Path) -> None:
    root = LocalStore(tmp_path)
    both = encoded(scene(3))
    store_dataset(root, [both, encoded(scene(4))], "crawl")
    store_dataset(root, [both, encoded(scene(5))], "good")
    store_dataset(root, [both], "test")
    found, fates = run(root, pool=["crawl"], as_is=["good"], dedup={**DEDUP, "threshold": 1.0, "benchmarks": ["test"]})
    assert (fates[name_of(both)].stage, fates[name_of(both)].dataset) in {("benchmarks", "crawl"), ("as is", "good")}
    (record,) = [each for each in found.records if each.name == "exact duplicates"]
    assert record.details["as is, and of a benchmark"] == 1
    assert found.reasons["benchmarks", "in a component with an image of a benchmark", False] == 1


@pytest.mark.parametrize("lost", ["key", "index_key"])
def test_curate__stops_where_a_benchmark_cannot_be_read(tmp_path: Path, lost: str) -> None:
    root = LocalStore(tmp_path)
    store_dataset(root, [encoded(scene(number)) for number in range(3)], "crawl")
    (shard,) = store_dataset(root, [recompressed(0), recompressed(9)], "test").shards
    store = dataset_store(root, "test")
    data = store.get(getattr(shard, lost))
    store.delete(getattr(shard, lost))
    with pytest.raises(CorruptShardError, match="2 images of test cannot be compared with the pool"):
        run(root, pool=["crawl"], dedup={**DEDUP, "benchmarks": ["test"]})
    store.put(getattr(shard, lost), data)  # repaired: what was found damaged is looked at again
    run(root, pool=["crawl"], dedup={**DEDUP, "benchmarks": ["test"]})
    assert images_of(root, "best") == {name_of(encoded(scene(number))) for number in (1, 2)}


@pytest.mark.parametrize("method", ["sample", "clusters"])
def test_curate__a_set_that_cannot_be_read_retrieves_nothing(tmp_path: Path, method: str) -> None:
    root = LocalStore(tmp_path)
    store_dataset(root, [encoded(scene(number)) for number in range(5)], "crawl")
    (shard,) = store_dataset(root, [recompressed(0)], "wanted").shards
    dataset_store(root, "wanted").delete(shard.key)
    found, _ = run(
        root,
        pool=["crawl"],
        embedding={"source": "support.curation_pictures:MeanColour"},
        retrieve=[{"dataset": "wanted", "method": method, "min_hits": 0}],
        cluster={"levels": [{"clusters": 2, "resamplings": 0}]},
        sample=3,
    )
    (record,) = [each for each in found.records if each.name == "retrieval: wanted"]
    assert (record.details["retrieved"], record.details["unreadable queries"]) == (0, 1)
    assert found.images == 3


def test_curate__a_dataset_without_images_is_no_obstacle(tmp_path: Path) -> None:
    root = LocalStore(tmp_path)
    store_dataset(root, [], "nothing")
    store_dataset(root, [encoded(scene(0))], "crawl")
    found, _ = run(root, pool=["nothing", "crawl"])
    assert (found.images, found.pool) == (1, 1)
    with pytest.raises(SelectionError):
        run(root, name="other", pool=["nothing"])


def test_curate__a_list_that_has_changed_since_the_start_is_refused(tmp_path: Path) -> None:
    root = LocalStore(tmp_path / "root")
    store_dataset(root, [encoded(scene(0)), encoded(scene(1))], "crawl")
    denied = tmp_path / "deny.txt"
    denied.write_text("0.jpg\n")
    recipe = CurateRecipe.model_validate(
        {
            "kind": "curate",
            "name": "best",
            "root": root.url,
            "pool": ["crawl"],
            "filter": {**FILTER, "deny": str(denied)},
        }
    )
    pinned = pin(root, recipe)
    denied.write_text("1.jpg\n")
    with pytest.raises(ChangedConfigError, match=r"deny\.txt' is not what it was"):
        curate(root, recipe, pinned, run_here, lambda stage, done, total: None)


def test_results_folder__is_another_one_for_every_fingerprint(tmp_path: Path) -> None:
    root = LocalStore(tmp_path)
    folders = {
        results_folder(root, Plugin("safety", fingerprint)).store.url  # type: ignore[arg-type]
        for fingerprint in ("nsfw-vit-base-2024-01", "nsfw-vit-base-2024-02", "2024/01")
    }
    assert len(folders) == 3
    assert not any(name in url for url in folders for name in ("nsfw", "2024"))
