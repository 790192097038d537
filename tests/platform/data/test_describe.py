import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.small_datasets import PROVENANCE, FaultyStore, store_dataset, store_selection

from heliostat.data.catalogue import list_rows
from heliostat.data.describe import describe_dataset, size_bins
from heliostat.data.manifest import load_manifest, read_head, write_manifest
from heliostat.data.quarantine import QuarantinedFile, write_quarantine
from heliostat.data.rejection import Reason
from heliostat.data.selection import load_parts

IMAGES = [f"image {n} ".encode() * (n + 1) for n in range(30)]


def test_describe__counts_without_reading_an_image(tmp_path: Path) -> None:
    root = FaultyStore(tmp_path)
    photos = store_dataset(root, IMAGES, labels=["cat", "dog", "[red]"])
    summary = describe_dataset(root, photos)
    assert (summary.images, summary.shards, summary.row_groups) == (30, 3, 8)
    assert summary.labels == {"cat": 10, "dog": 10, "[red]": 10}
    assert summary.unlabelled == 0
    assert summary.image_bytes == sum(map(len, IMAGES))
    assert summary.median_short_side_px == 24  # heights are 10 to 39
    assert [(one.from_px, one.below_px, one.images) for one in summary.short_sides] == [(0, 32, 22), (32, 64, 8)]
    assert [sha256 for sha256, _ in summary.history] == [photos.sha256]
    assert (summary.read_amplification, summary.advice) == (1.0, None)
    assert not [key for key, _, _ in root.faults.reads if key.endswith(".parquet")]


def test_describe__counts_refused_files_and_follows_the_history(tmp_path: Path) -> None:
    root = FaultyStore(tmp_path)
    photos = store_dataset(root, IMAGES[:5])
    refused = [
        QuarantinedFile(id=None, source=f"{reason}{n}", reason=reason, detail="")
        for n, reason in enumerate([Reason.TRUNCATED, Reason.EMPTY, Reason.TRUNCATED])
    ]
    part = write_quarantine(root.sub("datasets/photos"), (), refused)
    assert part is not None
    later = photos.model_copy(update={"quarantine": (part,)})
    record = PROVENANCE.model_copy(update={"parent_sha256": photos.sha256, "images_added": 0})
    write_manifest(root, later, record, read_head(root, "photos"))
    summary = describe_dataset(root, load_manifest(root, "photos"))
    assert summary.quarantine == {"empty": 1, "truncated": 2}
    assert [sha256 for sha256, _ in summary.history] == [later.sha256, photos.sha256]


def test_describe__a_selection_counts_what_it_selects_and_advises(tmp_path: Path) -> None:
    root = FaultyStore(tmp_path)
    photos = store_dataset(root, IMAGES, labels=["cat", "dog"], group_rows=30)
    other = store_dataset(root, [b"x" * 9], "other")
    store_selection(root, [photos, other], [(0, 0), (0, 4), (0, 20), (1, 0)])
    best = load_manifest(root, "best")
    summary = describe_dataset(root, best)
    assert summary.images == sum(summary.labels.values()) + summary.unlabelled == 4
    assert summary.unlabelled == 1
    assert summary.parts == (("photos", photos.sha256), ("other", other.sha256))
    assert summary.reasons == {"reason 0": 2, "reason 1": 1, "reason 2": 1}
    assert summary.read_amplification > 2.0
    assert summary.advice is not None
    assert "materialize" in summary.advice


@given(sides=st.lists(st.integers(1, 9000), min_size=1, max_size=30))
def test_size_bins__every_image_is_in_the_bin_of_its_size(sides: list[int]) -> None:
    bins = size_bins(np.array(sides, np.int32))
    for one in bins:
        assert one.images == sum(one.from_px <= side < (one.below_px or 10**9) for side in sides)
    assert sum(one.images for one in bins) == len(sides)
    assert bins[0].images
    assert bins[-1].images


@pytest.mark.parametrize("seed", range(3))
def test_list_rows__lists_a_selection_in_its_order(seed: int, tmp_path: Path) -> None:
    root = FaultyStore(tmp_path)
    parts = [
        store_dataset(root, IMAGES[:18], "one", shard_groups=2),
        store_dataset(root, IMAGES[18:], "two", group_rows=5, shard_groups=1),
    ]
    everything = [(part, row) for part in (0, 1) for row in range(parts[part].rows)]
    chosen = random.Random(seed).sample(everything, 13)
    store_selection(root, parts, chosen)
    best = load_manifest(root, "best")
    listed = list(list_rows(root, best, load_parts(root, best)))
    ids = [[row["id"].tobytes().hex() for one in list_rows(root, part, (part,)) for row in one.index] for part in parts]
    assert [row["id"].tobytes().hex() for one in listed for row in one.index] == [
        ids[part][row] for part, row in sorted(chosen)
    ]
    shards = Counter((one.part, one.shard) for one in listed)
    assert set(shards.values()) == {1}
