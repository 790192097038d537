"""One numbering of the classes of several datasets."""

from pathlib import Path

import pytest
from support.small_datasets import store_dataset, store_selection

from heliostat.data.labels import check_classes, class_names, merge_labels
from heliostat.data.manifest import load_manifest
from heliostat.data.reading import RowReader
from heliostat.data.samples import PinnedDataset, SampleSource
from heliostat.data.shard_index import NO_LABEL
from heliostat.errors import InvalidValueError, UnlabelledDatasetError
from heliostat.storage import open_store

ANIMALS = [f"animal {n}".encode() for n in range(12)]
PETS = [f"pet {n}".encode() for n in range(8)]
BARE = [f"bare {n}".encode() for n in range(4)]


def test_merge_labels__keeps_indices_of_the_first_and_adds_what_is_new() -> None:
    names, places = merge_labels([("b", "a"), (), ("c", "a")])
    assert names == ("b", "a", "c")
    assert [place.tolist() for place in places] == [[0, 1, -1], [-1], [2, 1, -1]]


def test_labels__of_a_mix_and_of_a_selection_are_the_names_that_images_were_stored_with(tmp_path: Path) -> None:
    root = open_store(str(tmp_path))
    animals = store_dataset(root, ANIMALS, "animals", labels=["dog", "cat", "owl"])
    pets = store_dataset(root, PETS, "pets", labels=["fish", "cat"])
    bare = store_dataset(root, BARE, "bare")
    best = store_selection(root, [pets, animals], [(0, row) for row in range(8)] + [(1, row) for row in range(12)])
    names = {image: animals.labels[n % 3] for n, image in enumerate(ANIMALS)}
    names |= {image: pets.labels[n % 2] for n, image in enumerate(PETS)} | dict.fromkeys(BARE, "none")

    reader = RowReader(root, load_manifest(root, "best", best))
    table = reader.read([19, 0, 7, 8, 0])
    assert reader.class_names == ("fish", "cat", "dog", "owl")
    assert [reader.class_names[label] for label in table["label"].to_pylist()] == [
        names[image] for image in table["image"].to_pylist()
    ]

    manifests = {"bare": bare.sha256, "animals": animals.sha256, "best": best}
    classes = class_names(root, manifests)
    assert classes == ("dog", "cat", "owl", "fish")
    pinned = tuple(PinnedDataset(name, sha256) for name, sha256 in manifests.items())
    read = SampleSource(root, pinned, seed=1, window_groups=2, labelled=True).read(range(60))
    found = [classes[label] if label != NO_LABEL else "none" for label in read["label"].to_pylist()]
    assert found == [names[image] for image in read["image"].to_pylist()]
    assert {"none", "fish", "owl"} < set(found)
    assert "label" not in SampleSource(root, pinned, seed=1, window_groups=2).read(range(3)).column_names

    check_classes(root, manifests, 4)
    with pytest.raises(InvalidValueError, match=r"classes is 5, and dataset bare, animals, best has 4 labels"):
        check_classes(root, manifests, 5)
    with pytest.raises(UnlabelledDatasetError, match=r"dataset bare has no labels"):
        check_classes(root, {"bare": bare.sha256}, 5)
