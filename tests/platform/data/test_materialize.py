import hashlib
from pathlib import Path

import pyarrow as pa
import pytest
from support.small_datasets import FaultyStore, store_dataset, store_selection

from heliostat.data.manifest import DatasetManifest, load_manifest, load_provenance, read_head
from heliostat.data.materialize import materialize
from heliostat.data.reading import RowReader
from heliostat.data.shards import read_row_group
from heliostat.data.verify import verify_dataset
from heliostat.errors import CorruptShardError, DatasetNotFoundError, InvalidValueError, SelectionError
from heliostat.storage import Store, open_store
from heliostat.storage.layout import dataset_store

CATS = [b"cat" * n for n in range(1, 20)]
DOGS = [b"dog" * n for n in range(1, 12)] + CATS[:3]
"""Three images are in both datasets."""


@pytest.fixture
def root(tmp_path: Path) -> Store:
    return FaultyStore(tmp_path)


@pytest.fixture
def best(root: Store) -> DatasetManifest:
    """All rows of two datasets with different labels."""
    parts = [
        store_dataset(root, CATS, "cats", labels=["red", "black"]),
        store_dataset(root, DOGS, "dogs", labels=["black", "white", "red"], group_rows=3),
    ]
    store_selection(root, parts, [(0, row) for row in range(19)] + [(1, row) for row in range(14)])
    return load_manifest(root, "best")


def rows_of(root: Store, manifest: DatasetManifest) -> pa.Table:
    store = dataset_store(root, manifest.name)
    return pa.concat_tables(
        [
            read_row_group(store, manifest, shard_index, group_index)
            for shard_index, shard in enumerate(manifest.shards)
            for group_index in range(len(shard.row_groups))
        ]
    )


def test_materialize__writes_each_image_once_by_id_with_all_that_is_known_of_it(
    root: Store, best: DatasetManifest
) -> None:
    seen: list[tuple[int, int]] = []
    result = materialize(root, best, "out", lambda done, total: seen.append((done, total)))
    written = load_manifest(root, "out")
    assert (result.images, result.duplicates, written.rows) == (30, 3, 30)
    assert seen == [(0, 30), (30, 30)]
    rows = rows_of(root, written).to_pylist()
    assert [row["id"] for row in rows] == sorted({hashlib.sha256(image).hexdigest() for image in CATS + DOGS})
    assert all(hashlib.sha256(row["image"]).hexdigest() == row["id"] for row in rows)
    assert written.labels == ("red", "black", "white")
    labels = {CATS[n]: ["red", "black"][n % 2] for n in range(19)}
    labels = {DOGS[n]: ["black", "white", "red"][n % 3] for n in range(14)} | labels  # the first part counts
    assert {row["image"]: written.labels[row["label"]] for row in rows} == labels
    sizes = {DOGS[n]: n for n in range(14)} | {CATS[n]: n for n in range(19)}
    assert {row["image"]: (row["width"] - 20, row["height"] - 10) for row in rows} == {
        image: (n, n) for image, n in sizes.items()
    }
    assert {row["image"]: row["source"] for row in rows} == {image: f"{n}.jpg" for image, n in sizes.items()}
    assert verify_dataset(root, written).broken == ()
    assert load_provenance(root, "out", written.sha256).source == f"materialized best@{best.sha256}"


def test_materialize__reads_as_the_selection_does(root: Store, best: DatasetManifest) -> None:
    store_selection(root, [load_manifest(root, "cats")], [(0, 3), (0, 17), (0, 4)], "few")
    few = load_manifest(root, "few")
    materialize(root, few, "out")
    written = load_manifest(root, "out")
    assert RowReader(root, written).read([0, 1, 2]).equals(RowReader(root, few).read([0, 1, 2]))


def test_materialize__done_again_it_reads_no_image(root: Store, best: DatasetManifest) -> None:
    first = materialize(root, best, "out")
    again = materialize(root, best, "out")
    assert (again.manifest_sha256, again.images, again.bytes_read) == (first.manifest_sha256, 30, 0)


def test_materialize__after_a_crash_it_ends_with_the_same_dataset(
    root: Store, best: DatasetManifest, tmp_path: Path
) -> None:
    shard = load_manifest(root, "dogs").shards[-1]
    key = f"datasets/dogs/{shard.key}"
    whole = root.get(key)
    root.put(key, whole[:10])
    with pytest.raises(CorruptShardError):
        materialize(root, best, "out")
    assert read_head(root, "out") is None
    root.put(key, whole)
    result = materialize(root, best, "out")
    other = open_store(str(tmp_path / "elsewhere"))
    for name in ("cats", "dogs", "best"):
        for info in root.list(f"datasets/{name}/"):
            other.put(info.key, root.get(info.key))
    assert materialize(other, best, "out").manifest_sha256 == result.manifest_sha256


def test_materialize__takes_no_name_of_another_dataset(root: Store, best: DatasetManifest) -> None:
    with pytest.raises(SelectionError, match=r"the dataset 'cats' exists and comes from '\./photos'"):
        materialize(root, best, "cats")
    with pytest.raises(SelectionError, match="'cats' has shards of its own"):
        materialize(root, load_manifest(root, "cats"), "out")
    with pytest.raises(InvalidValueError, match=r"'\.\./out' is not"):
        materialize(root, best, "../out")
    with pytest.raises(DatasetNotFoundError):
        load_manifest(root, "out")


def test_materialize__of_sorted_parts_reads_each_row_group_once(root: Store) -> None:
    parts = [store_dataset(root, [b"%d" % n * 50 for n in range(part, 400, 3)], f"part-{part}") for part in range(3)]
    store_selection(root, parts, [(part, row) for part in range(3) for row in range(0, parts[part].rows, 9)])
    best = load_manifest(root, "best")
    result = materialize(root, best, "out")
    groups = [group for part in parts for shard in part.shards for group in shard.row_groups]
    assert result.bytes_read <= sum(group.size_bytes for group in groups)
    assert result.images == best.rows
