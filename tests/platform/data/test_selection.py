from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.small_datasets import store_dataset, store_selection

from heliostat.data.manifest import DatasetManifest, Part, load_manifest, load_provenance
from heliostat.data.selection import SELECTED_ROW, predict_selection, read_selected, write_selection
from heliostat.errors import CorruptShardError, DatasetNotFoundError, SelectionError
from heliostat.storage import Store, open_store
from heliostat.storage.layout import dataset_store


@pytest.fixture
def root(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


@pytest.fixture
def parts(root: Store) -> tuple[DatasetManifest, DatasetManifest]:
    cats = store_dataset(root, [b"cat" * n for n in range(1, 15)], "cats")
    return cats, store_dataset(root, [b"dog" * n for n in range(1, 6)], "dogs")


def test_write_selection__stores_sorted_references_and_where_they_come_from(
    root: Store, parts: tuple[DatasetManifest, DatasetManifest], tmp_path: Path
) -> None:
    chosen = [(1, 4), (0, 13), (0, 0), (1, 1), (0, 3), (0, 8)]
    name = store_selection(root, parts, chosen)
    manifest = load_manifest(root, "best")
    assert manifest.sha256 == name
    assert manifest.rows == 6
    assert manifest.group_rows == (2, 1, 1, 1, 1)  # rows 0 and 3; 8; 13 of the cats; 1; 4 of the dogs
    selection = manifest.selection
    assert selection is not None
    found = np.stack(read_selected(dataset_store(root, "best"), selection, 0), axis=1)
    assert [tuple(pair) for pair in found.tolist()] == sorted(chosen)
    stored = pq.read_table(tmp_path / "datasets" / "best" / selection.key)
    assert stored.schema.equals(SELECTED_ROW)
    assert stored["reason"].to_pylist() == [f"reason {row % 3}" for _, row in sorted(chosen)]
    assert [part.name for part in selection.parts] == ["cats", "dogs"]
    provenance = load_provenance(root, "best", name)
    assert provenance.source == f"selection of cats@{parts[0].sha256[:16]}, dogs@{parts[1].sha256[:16]}"
    assert provenance.images_added == 6
    # Each row is taken as large as the mean of its row group.
    groups = [group for part in parts for shard in part.shards for group in shard.row_groups]
    touched = [(groups[0], 2), (groups[2], 1), (groups[3], 1), (groups[4], 1), (groups[5], 1)]
    assert manifest.size_bytes == round(sum(group.size_bytes * rows / group.rows for group, rows in touched))


def test_write_selection__the_same_rows_are_the_same_selection_and_others_follow_it(
    root: Store, parts: tuple[DatasetManifest, DatasetManifest]
) -> None:
    first = store_selection(root, parts, [(0, 1), (1, 2)])
    assert store_selection(root, parts, [(1, 2), (0, 1)]) == first
    second = store_selection(root, parts, [(0, 1)])
    assert load_provenance(root, "best", second).parent_sha256 == first
    assert load_manifest(root, "best", first).rows == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no row is selected"),
        ([(0, 3), (1, 3), (0, 3)], "row 3 of part 0 is selected twice"),
        ([(0, 3), (1, 5)], r"there is no row 5 in part 1\. The 2 parts have 14, 5 rows"),
        ([(2, 0)], "there is no row 0 in part 2"),
        ([(-1, 0)], "there is no row 0 in part -1"),
        ([(0, -1)], "there is no row -1 in part 0"),
    ],
)
def test_write_selection__refuses_rows_that_are_not_there(
    root: Store, parts: tuple[DatasetManifest, DatasetManifest], rows: list[tuple[int, int]], message: str
) -> None:
    with pytest.raises(SelectionError, match=message):
        store_selection(root, parts, rows)
    with pytest.raises(DatasetNotFoundError):
        load_manifest(root, "best")


def test_write_selection__selects_from_images_and_never_takes_their_name(
    root: Store, parts: tuple[DatasetManifest, DatasetManifest]
) -> None:
    name = store_selection(root, parts, [(0, 1)])
    with pytest.raises(SelectionError, match="'best' is itself a selection"):
        store_selection(root, [load_manifest(root, "best", name)], [(0, 0)], "better")
    with pytest.raises(SelectionError, match="'dogs' holds images of its own"):
        store_selection(root, parts, [(0, 1)], "dogs")
    with pytest.raises(DatasetNotFoundError, match="no manifest"):
        write_selection(root, "x", [Part(name="cats", manifest_sha256="ab" * 32)], SELECTED_ROW.empty_table())


def test_read_selected__damaged_references_are_named(
    root: Store, parts: tuple[DatasetManifest, DatasetManifest]
) -> None:
    store_selection(root, parts, [(0, 1), (1, 2)])
    manifest = load_manifest(root, "best")
    assert manifest.selection is not None
    store = dataset_store(root, "best")
    data = store.get(manifest.selection.key)
    store.put(manifest.selection.key, data[:10] + b"?" + data[11:])
    with pytest.raises(CorruptShardError, match=f"row group 0 of {manifest.selection.key}"):
        read_selected(store, manifest.selection, 0)


def test_predict_selection__a_dataset_with_shards_reads_what_it_uses(
    root: Store, parts: tuple[DatasetManifest, DatasetManifest]
) -> None:
    assert predict_selection(root, parts[0]) == 1.0
    store_selection(root, parts, [(0, 0)])  # one tiny image of a tiny row group: the group is one request
    assert predict_selection(root, load_manifest(root, "best")) >= 1.0
