from pathlib import Path

import pytest
from support.small_datasets import Faults, FaultyStore, store_dataset, store_selection

from heliostat.data.manifest import DatasetManifest, load_manifest
from heliostat.data.verify import verify_dataset

IMAGES = [f"image {n} ".encode() * (n + 1) for n in range(20)]


@pytest.fixture
def root(tmp_path: Path) -> FaultyStore:
    return FaultyStore(tmp_path)


@pytest.fixture
def photos(root: FaultyStore) -> DatasetManifest:
    return store_dataset(root, IMAGES)


def flip(root: FaultyStore, key: str, at: int) -> None:
    data = bytearray(root.get(f"datasets/{key}"))
    data[at] ^= 16
    root.put(f"datasets/{key}", bytes(data))


def test_verify__a_sound_dataset_is_read_to_the_last_byte(root: FaultyStore, photos: DatasetManifest) -> None:
    seen: list[tuple[int, int]] = []
    result = verify_dataset(root, photos, lambda done, total: seen.append((done, total)))
    assert result.broken == ()
    assert result.images == 20
    assert result.repeated_reads == 0
    magic = 4 * len(photos.shards)  # at the start of each file, named by no range
    assert result.size_bytes == sum(shard.size_bytes for shard in photos.shards) - magic + 20 * 56
    assert seen[-1] == (20, 20)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_verify__names_every_broken_part_and_goes_on(root: FaultyStore, photos: DatasetManifest) -> None:
    first, second = photos.shards
    flip(root, f"photos/{first.key}", first.row_groups[1].offset + 40)
    flip(root, f"photos/{first.key}", first.footer.offset + 1)
    flip(root, f"photos/{second.index_key}", 4 * 56)
    result = verify_dataset(root, photos)
    assert result.images == 20
    assert sorted(fact.partition(" under ")[0] for fact in result.broken) == sorted(
        [f"row group 1 of {first.key}", f"footer of {first.key}", f"row group 1 of {second.index_key}"]
    )
    assert result.repeated_reads == 2 * 3  # each is read three times before it is called broken


def test_verify__what_is_missing_is_broken(root: FaultyStore, photos: DatasetManifest) -> None:
    root.delete(f"datasets/photos/{photos.shards[1].key}")
    result = verify_dataset(root, photos)
    assert len(result.broken) == 1 + len(photos.shards[1].row_groups)  # the footer too
    assert all(f"{photos.shards[1].key} under" in fact and "is missing" in fact for fact in result.broken)


def test_verify__an_image_that_is_not_its_id_is_named(root: FaultyStore) -> None:
    """Hashes alone would not see it: the wrong id was there when they were taken."""
    manifest = store_dataset(root, IMAGES, "wrong", wrong_id=True)
    (fact,) = verify_dataset(root, manifest).broken
    assert "image abababab" in fact
    assert "does not have the hash that is its id" in fact


def test_verify__a_byte_that_was_flipped_on_the_way_is_no_fault(tmp_path: Path, photos: DatasetManifest) -> None:
    root = FaultyStore(tmp_path, Faults(flips=[(".parquet", 2), (".index", 1)]))
    result = verify_dataset(root, photos)
    assert result.broken == ()
    assert result.repeated_reads == 3


def test_verify__a_selection_is_its_rows_and_what_they_refer_to(root: FaultyStore, photos: DatasetManifest) -> None:
    store_selection(root, [photos], [(0, 0), (0, 1), (0, 13)])
    best = load_manifest(root, "best")
    assert best.selection is not None
    result = verify_dataset(root, best)
    assert (result.images, result.broken) == (8, ())  # two row groups of four
    flip(root, f"photos/{photos.shards[0].key}", photos.shards[0].row_groups[1].offset)  # nothing of it is selected
    assert verify_dataset(root, best).broken == ()
    flip(root, f"photos/{photos.shards[1].key}", photos.shards[1].row_groups[0].offset)
    (fact,) = verify_dataset(root, best).broken
    assert fact.startswith(f"row group 0 of {photos.shards[1].key}")
    flip(root, f"best/{best.selection.key}", 10)
    (fact,) = verify_dataset(root, best).broken
    assert fact.startswith(f"row group 0 of {best.selection.key}")


def test_verify__a_selection_without_its_parts_is_broken(root: FaultyStore, photos: DatasetManifest) -> None:
    store_selection(root, [photos], [(0, 0)])
    root.delete(f"datasets/photos/manifests/{photos.sha256}.json")
    assert any(
        f"no manifest {photos.sha256}" in fact for fact in verify_dataset(root, load_manifest(root, "best")).broken
    )
