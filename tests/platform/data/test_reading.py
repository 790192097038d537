import hashlib
import pickle
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.small_datasets import Faults, FaultyStore, store_dataset, store_selection

from heliostat.data import reading
from heliostat.data.cache import ShardCache
from heliostat.data.manifest import DatasetManifest, load_manifest
from heliostat.data.memory import ByteLru
from heliostat.data.reading import RowReader
from heliostat.data.selection import predict_selection
from heliostat.errors import CorruptShardError
from heliostat.storage import Store, open_store
from heliostat.storage.layout import dataset_store

SMALL = sorted((f"image {n} ".encode() * (n + 1) for n in range(30)), key=lambda data: hashlib.sha256(data).digest())
"""By id, as the rows of a dataset of them stand."""
LARGE = sorted((random.Random(n).randbytes(400_000) for n in range(16)), key=lambda data: hashlib.sha256(data).digest())
"""Larger than a gap that is worth reading."""


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests have read is not in memory."""
    monkeypatch.setattr(reading, "_GROUPS", ByteLru(reading.GROUPS_MAX_BYTES, len))
    monkeypatch.setattr(reading, "_INDEXES", ByteLru(reading.INDEXES_MAX_BYTES, len))


def faulty(folder: Path) -> tuple[FaultyStore, Faults]:
    store = FaultyStore(folder)
    return store, store.faults


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, DatasetManifest, DatasetManifest]:
    """A root, a dataset and a selection from it and another one."""
    root = open_store(str(tmp_path_factory.mktemp("root")))
    both = [store_dataset(root, SMALL[:20]), store_dataset(root, SMALL[20:], "more", group_rows=3)]
    store_selection(root, both, [(0, 1), (0, 2), (0, 11), (1, 0), (1, 8), (0, 19)])
    return root, both[0], load_manifest(root, "best")


@settings(max_examples=40)
@given(rows=st.lists(st.integers(0, 19), max_size=30))
def test_read__gives_any_rows_in_any_order(
    small: tuple[Store, DatasetManifest, DatasetManifest], rows: list[int]
) -> None:
    root, photos, _ = small
    table = RowReader(root, photos).read(rows)
    assert table.column_names == ["id", "image", "label"]
    assert table["image"].to_pylist() == [SMALL[row] for row in rows]
    assert table["id"].to_pylist() == [hashlib.sha256(SMALL[row]).hexdigest() for row in rows]


@settings(max_examples=20)
@given(rows=st.lists(st.integers(0, 5), max_size=12))
def test_read__follows_the_references_of_a_selection(
    small: tuple[Store, DatasetManifest, DatasetManifest], rows: list[int]
) -> None:
    root, _, best = small
    chosen = [SMALL[1], SMALL[2], SMALL[11], SMALL[19], SMALL[20], SMALL[28]]  # sorted by part and row
    assert RowReader(root, best).read(rows)["image"].to_pylist() == [chosen[row] for row in rows]


@pytest.mark.parametrize("rows", [[20], [0, -1]])
def test_read__a_row_that_is_not_there_is_an_error(
    small: tuple[Store, DatasetManifest, DatasetManifest], rows: list[int]
) -> None:
    with pytest.raises(IndexError, match="of a dataset with 20"):
        RowReader(small[0], small[1]).read(rows)


def test_read__a_pickled_reader_reads_the_same(small: tuple[Store, DatasetManifest, DatasetManifest]) -> None:
    root, _, best = small
    reader = RowReader(root, best)
    reader.read([3, 0])
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.stats.requests == 0
    assert copy.read([3, 0]).equals(reader.read([3, 0]))


def test_read__fetches_the_wanted_of_large_images_and_nothing_else(tmp_path: Path) -> None:
    root, faults = faulty(tmp_path)
    reader = RowReader(root, store_dataset(root, LARGE, group_rows=8))
    assert reader.read([9, 2, 9, 3])["image"].to_pylist() == [LARGE[9], LARGE[2], LARGE[9], LARGE[3]]
    images = sorted(size for key, _, size in faults.reads if key.endswith(".parquet"))
    # Rows 2 and 3 are neighbours: one request, with the length of the second between them.
    assert (len(images), images[0]) == (2, 400_000)
    assert 800_000 < images[1] < 800_200
    stats = reader.stats
    assert stats.bytes_used == 1_200_000
    assert stats.bytes_read == sum(images) + 2 * 8 * 56  # and the index of two row groups
    assert (stats.requests, stats.repeated_reads, stats.cached_bytes) == (4, 0, 0)
    reader.read([9])
    assert reader.stats.bytes_read == stats.bytes_read + 400_000  # of the index nothing any more


def test_read__of_small_images_fetches_a_row_group_once(tmp_path: Path) -> None:
    root, faults = faulty(tmp_path)
    manifest = store_dataset(root, SMALL[:12])
    reader = RowReader(root, manifest)
    for row in range(12):
        assert reader.read([row])["image"].to_pylist() == [SMALL[row]]
    groups = manifest.shards[0].row_groups
    assert sorted((start, size) for key, start, size in faults.reads if key.endswith(".parquet")) == [
        (group.offset, group.size_bytes) for group in groups
    ]
    assert reader.stats.bytes_read == sum(group.size_bytes for group in groups) + 12 * 56
    assert reader.stats.bytes_used == sum(map(len, SMALL[:12]))


@pytest.mark.parametrize("images", [SMALL[:8], LARGE[:8]], ids=["whole", "ranges"])
@pytest.mark.parametrize("part", [".parquet", ".index"])
@pytest.mark.parametrize("times", [1, 2])
def test_read__what_is_flipped_on_the_way_is_read_again(
    images: list[bytes], part: str, times: int, tmp_path: Path
) -> None:
    root, faults = faulty(tmp_path)
    manifest = store_dataset(root, images)
    faults.flips.append((part, times))
    reader = RowReader(root, manifest)
    assert reader.read([1])["image"].to_pylist() == [images[1]]
    assert reader.stats.repeated_reads == times


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_read__any_damaged_byte_of_an_image_is_caught(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = open_store(str(tmp_path_factory.mktemp("root")))
    images = data.draw(st.sampled_from([SMALL[:8], LARGE[:3]]))
    manifest = store_dataset(root, images)
    row = data.draw(st.integers(0, len(images) - 1))
    key = f"datasets/photos/{manifest.shards[0].key}"
    whole = bytearray(root.get(key))
    at = bytes(whole).index(images[row]) + data.draw(st.integers(0, len(images[row]) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    root.put(key, bytes(whole))
    # What was read before under the same hash is good, so each example begins with nothing.
    reading._GROUPS = ByteLru(reading.GROUPS_MAX_BYTES, len)
    with pytest.raises(CorruptShardError, match=r"of shards/part-\w+\.parquet under .* does not have the hash"):
        RowReader(root, manifest).read([row])


def test_read__a_broken_part_is_named_after_three_reads(tmp_path: Path) -> None:
    root, faults = faulty(tmp_path)
    manifest = store_dataset(root, LARGE[:8])
    faults.flips.append((".parquet", 9))
    name = hashlib.sha256(LARGE[1]).hexdigest()
    with pytest.raises(CorruptShardError, match=f"image {name} in row group 0 of shards/part-"):
        RowReader(root, manifest).read([1])
    assert len([key for key, _, _ in faults.reads if key.endswith(".parquet")]) == 4  # in a span, and thrice alone
    dataset_store(root, "photos").delete(manifest.shards[0].key)
    with pytest.raises(CorruptShardError, match="is missing"):
        RowReader(root, manifest).read([1])


def test_read__a_cache_large_enough_for_all_takes_whole_row_groups(tmp_path: Path) -> None:
    root, faults = faulty(tmp_path / "root")
    manifest = store_dataset(root, LARGE)
    cache = ShardCache(tmp_path / "cache", manifest.size_bytes)
    RowReader(root, manifest, cache).read([1])
    before = len(faults.reads)
    reading._GROUPS = ByteLru(0, len)  # another process of the machine
    second = RowReader(root, manifest, cache)
    assert second.read([0, 3])["image"].to_pylist() == [LARGE[0], LARGE[3]]
    assert len(faults.reads) == before
    assert (second.stats.bytes_read, second.stats.cached_bytes) == (0, manifest.shards[0].row_groups[0].size_bytes)


def test_read__a_cache_too_small_for_all_is_no_reason_to_read_more(tmp_path: Path) -> None:
    root, _ = faulty(tmp_path / "root")
    manifest = store_dataset(root, LARGE)
    reader = RowReader(root, manifest, ShardCache(tmp_path / "cache", manifest.size_bytes - 1))
    reader.read([1])
    assert reader.stats.bytes_read < 500_000


@pytest.mark.parametrize(("density", "image_bytes"), [(0.1, 20_000), (0.1, 100_000), (0.5, 100_000)])
def test_read__a_sparse_selection_costs_what_was_predicted(density: float, image_bytes: int, tmp_path: Path) -> None:
    root, _ = faulty(tmp_path)
    draws = random.Random(5)
    images = [draws.randbytes(image_bytes) for _ in range(320)]
    photos = store_dataset(root, images, group_rows=64)
    store_selection(root, [photos], [(0, row) for row in draws.sample(range(320), int(320 * density))])
    best = load_manifest(root, "best")
    reader = RowReader(root, best)
    reader.read(range(best.rows))
    measured = reader.stats.bytes_read / reader.stats.bytes_used
    assert measured < 0.8 / density
    assert predict_selection(root, best) == pytest.approx(measured, rel=0.3)


@pytest.mark.s3
def test_read__from_s3_gives_the_same_rows(tmp_path: Path, s3_root: str) -> None:
    root = open_store(s3_root)
    photos = store_dataset(root, LARGE[:6])
    store_selection(root, [photos], [(0, 5), (0, 1)])
    assert RowReader(root, photos).read([4, 0])["image"].to_pylist() == [LARGE[4], LARGE[0]]
    assert RowReader(root, load_manifest(root, "best")).read([1, 0])["image"].to_pylist() == [LARGE[5], LARGE[1]]
