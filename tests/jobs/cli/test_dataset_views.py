import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.small_datasets import row, store_dataset, store_selection

from heliostat.data.manifest import DatasetManifest, load_manifest
from heliostat.storage import open_store
from heliostat_jobs.cli import app
from heliostat_jobs.contact_sheet import Tile, contact_sheet, make_tiles, pick_rows

HOSTILE = "<script>alert('x')</script>\"[red]\x1b[31m"


def picture(shade: int) -> bytes:
    """Upright, 30 wide and 20 high, in one colour."""
    pixels = np.full((20, 30, 3), (shade, 0, 255 - shade), np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


PICTURES = [picture(8 * n) for n in range(24)]


def heliostat(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        app(list(arguments))
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Photos of two labels, one of them hostile, and a selection from them."""
    folder = tmp_path / "root"
    store = open_store(str(folder))
    photos = store_dataset(store, PICTURES, labels=["cat", HOSTILE])
    store_selection(store, [photos], [(0, number) for number in range(0, 24, 3)])
    return folder


def test_show__prints_counts_of_labels_and_sizes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert heliostat("dataset", "show", f"{root}/photos") == 0
    output = capsys.readouterr().out
    assert re.search(r"^images +24 ", output, re.MULTILINE)
    assert re.search(r"cat +12 ", output)
    assert "[red]" in output
    assert "\x1b" not in output
    assert re.search(r"0 to 31 +22 ", output)
    assert "./photos" in output


def test_show__of_a_selection_says_where_from_and_why(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert heliostat("dataset", "show", f"{root}/best", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    manifest = load_manifest(open_store(str(root)), "photos")
    assert (answer["images"], answer["unlabelled"]) == (8, 0)
    assert answer["parts"] == [{"name": "photos", "manifest_sha256": manifest.sha256}]
    assert answer["reasons"] == {"reason 0": 8}
    assert sum(answer["labels"].values()) == 8
    assert answer["history"][0]["source"].startswith("selection of photos@")
    assert heliostat("dataset", "show", f"{root}/best") == 0
    assert re.search(r"reason 0 +8 ", capsys.readouterr().out)


def test_verify__ends_with_one_and_names_what_is_broken(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert heliostat("dataset", "verify", f"{root}/photos") == 0
    output = capsys.readouterr()
    assert re.search(r"photos: 24 images, .* MiB in .* s \(.* MiB/s\): every byte is as it was ingested", output.out)
    assert "verifying: 24/24 images" in output.err
    shard = load_manifest(open_store(str(root)), "photos").shards[0]
    path = root / "datasets" / "photos" / shard.key
    data = bytearray(path.read_bytes())
    data[shard.row_groups[1].offset + 5] ^= 1
    path.write_bytes(data)
    assert heliostat("dataset", "verify", f"{root}/photos") == 1
    assert f"broken: row group 1 of {shard.key}" in capsys.readouterr().out
    assert heliostat("dataset", "verify", f"{root}/photos", "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["images"], len(answer["broken"])) == (24, 1)


def test_materialize__writes_a_dataset_that_reads_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert heliostat("dataset", "materialize", f"{root}/best", "best-images", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    written = load_manifest(open_store(str(root)), "best-images")
    assert (answer["manifest_sha256"], answer["images"], written.rows) == (written.sha256, 8, 8)
    assert heliostat("dataset", "materialize", f"{root}/best", "best-images") == 0  # again: nothing to do
    assert heliostat("dataset", "materialize", f"{root}/best", "photos") == 2
    assert "HS-DATA-012" in capsys.readouterr().err
    assert heliostat("dataset", "verify", f"{root}/best-images") == 0


@pytest.mark.parametrize("command", ["show", "verify", "sample"])
def test_views__of_a_dataset_that_is_not_there_say_which_are(
    command: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heliostat("dataset", command, f"{root}/photo") == 2
    assert "HS-DATA-003" in (error := capsys.readouterr().err)
    assert "best, photos" in error


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_sample__writes_a_page_that_shows_and_does_nothing_else(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "sheet.html"
    page.write_text("an older one")
    arguments = ("dataset", "sample", f"{root}/photos", "--output", str(page), "--count", "7", "--seed", "3", "--json")
    assert heliostat(*arguments) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(set(answer["ids"])) == 7
    parsed = _Page()
    parsed.feed(page.read_text())
    assert parsed.tags.count("img") == 7
    assert "script" not in parsed.tags
    assert all(
        name != "src" or (value or "").startswith("data:image/jpeg;base64,") for name, value in parsed.attributes
    )
    assert not any(name.startswith("on") for name, _ in parsed.attributes)
    text = "".join(parsed.text)
    assert all(name[:16] in text for name in answer["ids"])
    assert heliostat(*arguments) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == answer["rows"]
    assert list(tmp_path.glob("tmp*")) == []


def test_contact_sheet__escapes_everything_that_others_chose() -> None:
    tile = Tile("ab" * 32, "data:image/jpeg;base64,AA==", HOSTILE, 3, 4, 5, f'"{HOSTILE}')
    parsed = _Page()
    parsed.feed(contact_sheet(DatasetManifest(name="d", labels=(HOSTILE,)), [tile], HOSTILE))
    assert "script" not in parsed.tags
    assert "".join(parsed.text).count("<script>alert('x')</script>") == 3
    assert ("alt", f'"{HOSTILE}') in parsed.attributes


def test_make_tiles__shows_the_images_that_were_asked_for(root: Path) -> None:
    store = open_store(str(root))
    best = load_manifest(store, "best")
    tiles = make_tiles(store, best, [5, 0, 6])
    ids = sorted(str(row(image, 0)["id"]) for image in PICTURES)
    assert [tile.id for tile in tiles] == [ids[15], ids[0], ids[18]]
    for tile in tiles:
        image = next(image for image in PICTURES if row(image, 0)["id"] == tile.id)
        thumbnail = base64.b64decode(tile.data_uri.partition(",")[2])
        shown, stored = (np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), 1)) for data in (thumbnail, image))
        assert shown.shape == stored.shape  # smaller than a thumbnail: as it is
        assert np.abs(shown.astype(int) - stored).max() < 6


@pytest.mark.parametrize("name", ["photos", "best"])
def test_pick_rows__of_a_label_are_rows_with_that_label(root: Path, name: str) -> None:
    store = open_store(str(root))
    manifest = load_manifest(store, name)
    rows = pick_rows(store, manifest, 100, 0, "cat")
    everything = pick_rows(store, manifest, 100, 0)
    assert everything == list(range(manifest.rows))
    assert {tile.label for tile in make_tiles(store, manifest, rows)} == {"cat"}
    others = sorted(set(everything) - set(rows))
    assert {tile.label for tile in make_tiles(store, manifest, others)} == {HOSTILE}
    assert pick_rows(store, manifest, 2, 1, "cat") == pick_rows(store, manifest, 2, 1, "cat")


def test_sample__a_label_that_is_not_there_and_a_place_that_cannot_be_written(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = str(tmp_path / "sheet.html")
    assert heliostat("dataset", "sample", f"{root}/photos", "--label", "dog", "--output", page) == 2
    assert "no image of 'photos' has the label 'dog'. Labels there: " in capsys.readouterr().err
    assert heliostat("dataset", "sample", f"{root}/photos", "--output", f"{tmp_path}/no/where.html") == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
    assert heliostat("dataset", "sample", f"{root}/photos", "--output", str(tmp_path)) == 2
    assert list(tmp_path.iterdir()) == [root]
