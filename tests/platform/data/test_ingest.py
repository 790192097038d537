"""Ingest on a real, small Ray. One start serves all tests of this file."""

import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import ray
from PIL import Image

from heliostat.data.images import ImageLimits, inspect
from heliostat.data.ingest import IngestProgress, IngestResult, extend_labels, ingest, unique_images
from heliostat.data.manifest import DatasetManifest, dataset_store, load_manifest, load_provenance
from heliostat.data.passes import Candidate
from heliostat.data.quarantine import load_quarantine
from heliostat.data.shards import ShardLayout, read_row_group
from heliostat.errors import InvalidValueError, NoImagesError, SourceNotFoundError, StorageError
from heliostat.storage import Store, open_store

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]
SMALL = ShardLayout(group_rows=4, shard_groups=2)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    start_ray(num_cpus=3)
    yield
    ray.shutdown()


def start_ray(num_cpus: int) -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


@pytest.fixture
def root(tmp_path: Path, local_ray: None) -> Store:
    return open_store(str(tmp_path / "root"))


def write_image(path: Path, shade: int, size: tuple[int, int] = (12, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade % 256, shade // 256, 7)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """22 images in two classes: 20 different ones, a copy, and a copy in the other class."""
    folder = tmp_path / "photos"
    for shade in range(20):
        write_image(folder / ("cat" if shade % 2 else "dog") / f"{shade:02}.png", shade, (12 + shade, 8))
    shutil.copy(folder / "cat" / "01.png", folder / "cat" / "copy.png")
    shutil.copy(folder / "cat" / "03.png", folder / "dog" / "cat-too.png")
    return folder


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises an image and holds none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT", b"IEND")
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def rows_of(root: Store, manifest: DatasetManifest) -> list[dict[str, Any]]:
    store = dataset_store(root, manifest.name)
    return [
        row
        for shard_index, shard in enumerate(manifest.shards)
        for group_index in range(len(shard.row_groups))
        for row in read_row_group(store, manifest, shard_index, group_index).to_pylist()
    ]


def numbers(result: IngestResult) -> tuple[int, int, int, int]:
    return result.images, result.dataset_images, result.duplicates, result.quarantined


def test_ingest__stores_each_image_once_with_its_label(root: Store, photos: Path) -> None:
    seen: list[IngestProgress] = []
    result = ingest(photos, root, "photos", layout=SMALL, report=seen.append)
    assert numbers(result) == (20, 20, 2, 0)
    manifest = load_manifest(root, "photos", result.manifest_sha256)
    assert manifest == load_manifest(root, "photos")
    assert [[group.rows for group in shard.row_groups] for shard in manifest.shards] == [[4, 4], [4, 4], [4]]
    assert result.size_bytes == manifest.size_bytes
    rows = rows_of(root, manifest)
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    by_source = {row["source"]: row for row in rows}
    for source, row in by_source.items():
        data = (photos / source).read_bytes()
        info = inspect(data)
        assert (row["image"], row["width"], row["height"]) == (data, info.width, info.height)
        conflict = source == "cat/03.png"  # also lies in dog
        assert row["label"] == (None if conflict else manifest.labels.index(source.split("/")[0]))
    assert manifest.labels == ("cat", "dog")
    assert [step.stage for step in seen if step.done == step.total] == ["check", "store"]
    assert [step.stage for step in seen if step.done == 0] == ["check", "store"]
    provenance = load_provenance(root, "photos", result.manifest_sha256)
    assert (provenance.source, provenance.images_added, provenance.parent_sha256) == (str(photos), 20, None)


def test_ingest__twice_changes_nothing(root: Store, photos: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    first = ingest(photos, root, "photos", layout=SMALL)
    before = [(info.key, root.get(info.key)) for info in root.list()]
    second = ingest(photos, root, "photos", layout=SMALL)
    assert second.manifest_sha256 == first.manifest_sha256
    assert numbers(second) == (0, 20, 22, 1)
    assert [(info.key, root.get(info.key)) for info in root.list()] == before


@pytest.mark.s3
def test_ingest__neither_cpus_nor_store_nor_folder_change_the_manifest(
    root: Store, photos: Path, tmp_path: Path, s3_root: str
) -> None:
    expected = ingest(photos, root, "photos", layout=SMALL).manifest_sha256
    copied = shutil.copytree(photos, tmp_path / "elsewhere")
    ray.shutdown()
    start_ray(num_cpus=1)  # also because tasks see the environment in which Ray was started
    assert ingest(copied, open_store(s3_root), "photos", layout=SMALL).manifest_sha256 == expected
    assert rows_of(open_store(s3_root), load_manifest(open_store(s3_root), "photos")) == rows_of(
        root, load_manifest(root, "photos")
    )


def test_ingest__adds_only_what_is_new(root: Store, photos: Path, tmp_path: Path) -> None:
    first = load_manifest(root, "photos", ingest(photos, root, "photos", layout=SMALL).manifest_sha256)
    write_image(photos / "ant" / "new.png", 500)
    write_image(photos / "loose.png", 501)
    result = ingest(photos, root, "photos", layout=SMALL)
    assert numbers(result) == (2, 22, 22, 0)
    second = load_manifest(root, "photos")
    assert second.shards[:3] == first.shards
    assert second.labels == ("cat", "dog", "ant")
    added = rows_of(root, second)[20:]
    assert {(row["source"], row["label"]) for row in added} == {("ant/new.png", 2), ("loose.png", None)}
    assert load_provenance(root, "photos", second.sha256).parent_sha256 == first.sha256
    assert load_manifest(root, "photos", first.sha256) == first


def test_ingest__names_every_bad_file_in_the_quarantine(root: Store, photos: Path, tmp_path: Path) -> None:
    whole = BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "JPEG")
    (photos / "cat" / "bad").mkdir()
    (photos / "cat" / "bad" / "half.jpg").write_bytes(whole.getvalue()[:-200])
    (photos / "cat" / "bad" / "bomb.png").write_bytes(png_header(30_000, 30_000))
    (photos / "cat" / "bad" / "empty.png").write_bytes(b"")
    (photos / "cat" / "bad" / "text.jpg").write_bytes(b"not an image at all")
    (photos / "cat" / "bad" / "large.jpg").write_bytes(b"\xff\xd8\xff" + b"\0" * 5000)
    (photos / "cat" / "bad" / "link.png").symlink_to(tmp_path / "somewhere-else.png")
    (tmp_path / "somewhere-else.png").write_bytes(b"secret")
    (photos / "notes.txt").write_text("a companion")
    limits = ImageLimits(max_bytes=4000)
    first = ingest(photos, root, "photos", layout=SMALL, limits=limits)
    assert numbers(first) == (20, 20, 2, 6)
    assert first.skipped == 1
    manifest = load_manifest(root, "photos")
    files = load_quarantine(dataset_store(root, "photos"), manifest)
    assert manifest.quarantined == len(files) == 6
    assert {(Path(file.source).name, str(file.reason)) for file in files} == {
        ("half.jpg", "truncated"),
        ("bomb.png", "too-many-pixels"),
        ("empty.png", "empty"),
        ("text.jpg", "not-an-image"),
        ("large.jpg", "too-many-bytes"),
        ("link.png", "link-leaves-source"),
    }
    assert first.reasons == dict.fromkeys(sorted(str(file.reason) for file in files), 1)
    (photos / "worse.png").write_bytes(b"GIF89a")
    second = ingest(photos, root, "photos", layout=SMALL, limits=limits)
    assert numbers(second) == (0, 20, 22, 7)
    newer = load_manifest(root, "photos")
    assert newer.shards == manifest.shards
    assert len(load_quarantine(dataset_store(root, "photos"), newer)) == 7


def test_ingest__a_folder_without_usable_images_is_named_and_writes_nothing(root: Store, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"text")
    (folder / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(
        NoImagesError, match=r"HS-DATA-002: none of the 2 files .* the first is 'a.jpg': the file starts"
    ):
        ingest(folder, root, "photos")
    with pytest.raises(SourceNotFoundError):
        ingest(tmp_path / "missing", root, "photos")
    with pytest.raises(InvalidValueError, match=r"dataset name '\.\./up'"):
        ingest(folder, root, "../up")
    assert list(root.list()) == []


def test_ingest__a_file_that_changes_between_the_passes_is_quarantined(root: Store, photos: Path) -> None:
    def change(progress: IngestProgress) -> None:
        if (progress.stage, progress.done) == ("check", 22):
            write_image(photos / "cat" / "05.png", 900)
            (photos / "cat" / "07.png").unlink(missing_ok=True)

    result = ingest(photos, root, "photos", layout=SMALL, report=change)
    assert numbers(result) == (18, 18, 2, 2)
    assert result.reasons == {"changed-during-ingest": 2}
    assert len(rows_of(root, load_manifest(root, "photos"))) == 18


def test_ingest__adds_to_what_another_ingest_published_meanwhile(root: Store, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_image(other / "elk" / "a.png", 700)
    shutil.copy(photos / "dog" / "00.png", other / "elk" / "b.png")
    entered: list[IngestResult] = []

    def interfere(progress: IngestProgress) -> None:
        if progress.stage == "store" and not entered:
            entered.append(ingest(other, root, "photos", layout=SMALL))

    result = ingest(photos, root, "photos", layout=SMALL, report=interfere)
    assert numbers(entered[0]) == (2, 2, 0, 0)
    assert numbers(result) == (19, 21, 3, 0)
    manifest = load_manifest(root, "photos")
    assert len({row["id"] for row in rows_of(root, manifest)}) == manifest.rows == 21


def test_ingest__what_an_interrupted_one_left_is_not_taken_for_good(root: Store, photos: Path) -> None:
    class StopError(Exception):
        pass

    def stop(progress: IngestProgress) -> None:
        if progress.stage == "store" and progress.done:
            raise StopError

    with pytest.raises(StopError):
        ingest(photos, root, "photos", layout=SMALL, report=stop)
    keys = [info.key for info in root.list()]
    assert all(key.startswith("datasets/photos/shards/") for key in keys)
    root.put(keys[0], b"half a shard")
    assert numbers(ingest(photos, root, "photos", layout=SMALL)) == (20, 20, 2, 0)
    assert len(rows_of(root, load_manifest(root, "photos"))) == 20


def test_ingest__what_a_task_meets_in_the_store_is_a_user_error(root: Store, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "root" / "datasets" / "photos").mkdir(parents=True)
    (tmp_path / "root" / "datasets" / "photos" / "shards").write_text("in the way")
    with pytest.raises(StorageError, match="HS-STOR-"):
        ingest(photos, root, "photos", layout=SMALL)


def candidate(source: str, label: str | None, name: str = "aa") -> Candidate:
    return Candidate(path=b"/x", source=source, label=label, id=name, width=1, height=1, size_bytes=1)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["a", "a"], "a"), (["a", None], "a"), ([None, None], None), (["a", "b"], None), ([None, "b", "a"], None)],
)
def test_unique_images__copies_agree_on_a_label_or_have_none(labels: list[str | None], expected: str | None) -> None:
    copies = [candidate(f"{n}.png", label) for n, label in enumerate(labels)]
    (image,) = unique_images(reversed(copies))
    assert (image.source, image.label) == ("0.png", expected)


def test_extend_labels__keeps_the_places_of_old_ones() -> None:
    new = [candidate("1", "ant"), candidate("2", None), candidate("3", "zoo"), candidate("4", "bee")]
    assert extend_labels(("zoo", "cat"), new) == ("zoo", "cat", "ant", "bee")
