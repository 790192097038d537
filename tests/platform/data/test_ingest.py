"""Ingest on a real, small Ray. One start serves all tests of this file."""

import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import killed_ingest
from support.plain_source import PlainSource

from heliostat.data.decode import decode_rgb
from heliostat.data.images import ImageLimits, inspect
from heliostat.data.ingest import IngestOptions, IngestProgress, IngestResult, ingest
from heliostat.data.ingest.rounds import RoundNote
from heliostat.data.ingest.workspace import Workspace, ingest_id
from heliostat.data.manifest import DatasetManifest, load_manifest, load_provenance
from heliostat.data.quarantine import load_quarantine
from heliostat.data.shards import ShardLayout, read_row_group
from heliostat.errors import (
    InvalidValueError,
    NoImagesError,
    PluginFailedError,
    SourceNotFoundError,
    StorageError,
    TooManyRefusedError,
)
from heliostat.storage import Store, open_store
from heliostat.storage.layout import dataset_store
from heliostat.storage.store import RESERVED_NAME
from heliostat_cluster.local import local_ray as start_ray

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]
LAYOUT = ShardLayout(group_rows=4, shard_groups=2)
KILLED_INGEST = str(killed_ingest.__file__)
SMALL = IngestOptions(layout=LAYOUT)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(Path(KILLED_INGEST).parents[1]))  # tasks find the sources of tests
        with start_ray(num_cpus=3):
            yield


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
    result = ingest(photos, root, "photos", SMALL, report=seen.append)
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
    first = ingest(photos, root, "photos", SMALL)
    before = [(info.key, root.get(info.key)) for info in root.list()]
    second = ingest(photos, root, "photos", SMALL)
    assert second.manifest_sha256 == first.manifest_sha256
    assert numbers(second) == (0, 20, 22, 1)
    assert [(info.key, root.get(info.key)) for info in root.list()] == before


def test_ingest__adds_only_what_is_new(root: Store, photos: Path, tmp_path: Path) -> None:
    first = load_manifest(root, "photos", ingest(photos, root, "photos", SMALL).manifest_sha256)
    write_image(photos / "ant" / "new.png", 500)
    write_image(photos / "loose.png", 501)
    result = ingest(photos, root, "photos", SMALL)
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
    first = ingest(photos, root, "photos", IngestOptions(layout=LAYOUT, limits=limits))
    assert numbers(first) == (20, 20, 2, 6)
    assert first.skipped == 1
    manifest = load_manifest(root, "photos")
    files = list(load_quarantine(dataset_store(root, "photos"), manifest))
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
    second = ingest(photos, root, "photos", IngestOptions(layout=LAYOUT, limits=limits))
    assert numbers(second) == (0, 20, 22, 7)
    newer = load_manifest(root, "photos")
    assert newer.shards == manifest.shards
    assert len(list(load_quarantine(dataset_store(root, "photos"), newer))) == 7


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

    result = ingest(photos, root, "photos", SMALL, report=change)
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
            entered.append(ingest(other, root, "photos", SMALL))

    result = ingest(photos, root, "photos", SMALL, report=interfere)
    assert numbers(entered[0]) == (2, 2, 0, 0)
    assert numbers(result) == (19, 21, 3, 0)
    manifest = load_manifest(root, "photos")
    assert len({row["id"] for row in rows_of(root, manifest)}) == manifest.rows == 21


def test_ingest__goes_on_where_an_interrupted_one_was_but_believes_no_broken_shard(root: Store, photos: Path) -> None:
    class StopError(Exception):
        pass

    def stop(progress: IngestProgress) -> None:
        if progress.stage == "store" and progress.done:
            raise StopError

    with pytest.raises(StopError):
        ingest(photos, root, "photos", SMALL, report=stop)
    keys = [info.key for info in root.list("datasets/photos/shards/")]
    assert list(root.list("datasets/photos/manifest")) == []
    for key in keys:
        root.put(key, b"half a shard")
    result = ingest(photos, root, "photos", SMALL)
    assert numbers(result) == (20, 20, 2, 0)
    assert result.resumed == 22
    assert len(rows_of(root, load_manifest(root, "photos"))) == 20
    assert list(root.list("datasets/photos/ingests/")) == []


@pytest.mark.parametrize(("stage", "done"), [("check", 12), ("store", 8)])
def test_ingest__repeats_little_of_what_a_killed_process_had_done(
    root: Store, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, done: int
) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    undisturbed = open_store(str(tmp_path / "undisturbed"))
    expected = ingest(PlainSource(str(photos)), undisturbed, "photos", SMALL)
    killed = subprocess.run(
        [sys.executable, KILLED_INGEST, str(photos), root.url, stage, str(done)],
        env={**os.environ, "PYTHONPATH": str(Path(KILLED_INGEST).parents[1])},
        capture_output=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    records = (path for path in Path(root.url).rglob("ingests/*/*/*") if not path.name.startswith(RESERVED_NAME))
    left = {path: path.stat().st_ino for path in records}  # a temporary file belongs to a task that outlives its driver
    checked = [path for path in left if path.parent.name == "checked"]
    assert len(checked) >= done // 4
    untouched: list[bool] = []
    end_round = Workspace.end_round

    def look_then_end(workspace: Workspace, index: int, note: RoundNote) -> None:
        untouched.append(all(path.stat().st_ino == inode for path, inode in left.items()))
        end_round(workspace, index, note)

    monkeypatch.setattr(Workspace, "end_round", look_then_end)  # tasks outlive their driver: no pass may be left
    again = ingest(PlainSource(str(photos)), root, "photos", SMALL)
    assert untouched == [True]
    assert min(4 * len(checked), 23) <= again.resumed <= 23  # a task that outlived its driver may have recorded more
    assert (again.manifest_sha256, numbers(again)) == (expected.manifest_sha256, numbers(expected))
    assert list(root.list("datasets/photos/ingests/")) == []


def test_ingest__checks_what_changed_since_it_was_interrupted(root: Store, photos: Path) -> None:
    class StopError(Exception):
        pass

    def stop(progress: IngestProgress) -> None:
        if progress.stage == "store":
            raise StopError

    with pytest.raises(StopError):
        ingest(PlainSource(str(photos)), root, "photos", SMALL, report=stop)
    write_image(photos / "dog" / "18.png", 900)
    result = ingest(PlainSource(str(photos)), root, "photos", SMALL)
    assert result.resumed == 20  # the last unit of two files is checked again
    assert numbers(result) == (20, 20, 2, 0)
    (row,) = (row for row in rows_of(root, load_manifest(root, "photos")) if row["source"] == "dog/18.png")
    assert row["image"] == (photos / "dog" / "18.png").read_bytes()


def test_ingest__in_rounds_gives_the_same_rows_and_one_list_of_refused_files_each(
    root: Store, photos: Path, tmp_path: Path
) -> None:
    for folder in ("cat", "dog"):
        (photos / folder / "empty.png").write_bytes(b"")
    whole_root = open_store(str(tmp_path / "whole"))
    ingest(PlainSource(str(photos)), whole_root, "photos", SMALL)
    seen: list[IngestProgress] = []
    options = IngestOptions(layout=LAYOUT, round_items=8)
    result = ingest(PlainSource(str(photos)), root, "photos", options, report=seen.append)
    assert {step.round for step in seen} == {0, 1, 2}
    assert numbers(result) == (20, 20, 2, 2)
    manifest = load_manifest(root, "photos", result.manifest_sha256)
    whole = load_manifest(whole_root, "photos")
    assert {row["id"] for row in rows_of(root, manifest)} == {row["id"] for row in rows_of(whole_root, whole)}
    assert [part.lines for part in manifest.quarantine] == [1, 1]
    again = ingest(PlainSource(str(photos)), root, "photos", options)
    assert numbers(again) == (0, 20, 22, 2)
    assert again.manifest_sha256 == result.manifest_sha256


def test_ingest__rounds_finished_by_different_starts_add_up(root: Store, photos: Path) -> None:
    options = IngestOptions(layout=LAYOUT, round_items=8)
    whole = ingest(PlainSource(str(photos)), root, "whole", options)
    source = PlainSource(str(photos))
    identity = ingest_id(str(photos), options.limits, None, None)
    workspace = Workspace(dataset_store(root, "photos").sub(f"ingests/{identity}"))

    def stop(progress: IngestProgress) -> None:
        if progress.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(source, root, "photos", options, report=stop)
    note = workspace.load_round(0)
    assert note is not None
    workspace.store.delete("rounds/000000.json")  # it is done again, and finds nothing new
    result = ingest(source, root, "photos", options)
    assert result.dataset_images == whole.dataset_images
    assert result.images == whole.images - note.tally.images
    assert result.duplicates == whole.duplicates + note.tally.images


@pytest.mark.parametrize("is_published", [True, False])
def test_ingest__one_killed_around_its_manifest_counts_what_it_added(
    root: Store, photos: Path, monkeypatch: pytest.MonkeyPatch, is_published: bool
) -> None:
    whole = ingest(PlainSource(str(photos)), root, "whole", SMALL)

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as broken:
        if is_published:
            broken.setattr(Workspace, "end_round", stop)
        else:
            broken.setattr("heliostat.data.ingest.publishing.write_manifest", stop)
        ingest(PlainSource(str(photos)), root, "photos", SMALL)
    result = ingest(PlainSource(str(photos)), root, "photos", SMALL)
    assert numbers(result) == numbers(whole)
    assert load_manifest(root, "photos").shards == load_manifest(root, "whole").shards


def test_ingest__a_finished_round_is_not_done_again(root: Store, photos: Path) -> None:
    class StopError(Exception):
        pass

    def stop(progress: IngestProgress) -> None:
        if progress.round == 1 and progress.done == progress.total:
            raise StopError

    options = IngestOptions(layout=LAYOUT, round_items=8)
    with pytest.raises(StopError):
        ingest(PlainSource(str(photos)), root, "photos", options, report=stop)
    first = load_manifest(root, "photos")
    seen: list[IngestProgress] = []
    result = ingest(PlainSource(str(photos)), root, "photos", options, report=seen.append)
    assert {step.round for step in seen} == {1, 2}
    assert numbers(result) == (20, 20, 2, 0)
    assert load_manifest(root, "photos").shards[: len(first.shards)] == first.shards


def test_ingest__nothing_is_published_before_there_is_an_image(root: Store, tmp_path: Path) -> None:
    folder = tmp_path / "late"
    for index in range(4):
        folder.mkdir(exist_ok=True)
        (folder / f"a{index}.jpg").write_bytes(b"text")
    options = IngestOptions(round_items=4)
    seen: list[bool] = []

    def look(progress: IngestProgress) -> None:
        seen.append(root.exists("datasets/photos/manifest.json"))

    with pytest.raises(NoImagesError, match=r"none of the 4 files"):
        ingest(PlainSource(str(folder)), root, "photos", options)
    assert list(root.list()) == []
    write_image(folder / "b.png", 1)
    result = ingest(PlainSource(str(folder)), root, "photos", options, report=look)
    assert not any(seen)
    assert numbers(result) == (1, 1, 0, 4)
    files = load_quarantine(dataset_store(root, "photos"), load_manifest(root, "photos"))
    assert [file.source for file in files] == ["a0.jpg", "a1.jpg", "a2.jpg", "a3.jpg"]


def test_ingest__images_without_a_place_give_the_same_manifest(root: Store, photos: Path, tmp_path: Path) -> None:
    (photos / "empty.png").write_bytes(b"")
    expected = ingest(PlainSource(str(photos)), root, "photos", SMALL)
    spooled_root = open_store(str(tmp_path / "spooled"))
    spools: list[str] = []

    def look(progress: IngestProgress) -> None:
        if progress.stage == "store":
            spools.extend(info.key for info in spooled_root.list() if "/spool/" in info.key)

    source = PlainSource(str(photos), has_places=False)
    assert ingest(source, spooled_root, "photos", SMALL, report=look).manifest_sha256 == expected.manifest_sha256
    assert len(set(spools)) == 6
    assert not [info.key for info in spooled_root.list() if "/ingests/" in info.key]


def test_ingest__a_spool_that_vanishes_is_an_error_and_no_changed_file(root: Store, photos: Path) -> None:
    def remove(progress: IngestProgress) -> None:
        if progress.stage == "store" and progress.done == 0:
            for info in list(root.list()):
                if "/spool/" in info.key:
                    root.delete(info.key)

    with pytest.raises(StorageError, match=r"HS-STOR-008: spool/.* is gone"):
        ingest(PlainSource(str(photos), has_places=False), root, "photos", SMALL, report=remove)
    assert not root.exists("datasets/photos/manifest.json")


def test_ingest__resizes_what_is_larger(root: Store, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    write_image(folder / "large.png", 1, (120, 60))
    write_image(folder / "small.png", 2, (30, 20))
    result = ingest(folder, root, "photos", IngestOptions(resize_px=30))
    rows = {row["source"]: row for row in rows_of(root, load_manifest(root, "photos", result.manifest_sha256))}
    assert (rows["large.png"]["width"], rows["large.png"]["height"]) == (60, 30)
    assert rows["small.png"]["image"] == (folder / "small.png").read_bytes()
    for row in rows.values():
        info = inspect(row["image"])
        assert (info.width, info.height) == (row["width"], row["height"])
    assert numbers(ingest(folder, root, "photos", IngestOptions(resize_px=30))) == (0, 2, 2, 0)


def test_ingest__stores_what_an_edit_made_and_nothing_where_it_fails(root: Store, tmp_path: Path) -> None:
    folder = tmp_path / "people"
    write_image(folder / "person.png", 200, (40, 30))
    write_image(folder / "sky.png", 3, (40, 30))
    with pytest.raises(PluginFailedError, match=r"failed on 'person\.png'"):
        ingest(folder, root, "photos", IngestOptions(edit="support.image_edits:Failing"))
    assert not [info.key for info in root.list() if "/spool/" in info.key or "shards/" in info.key]
    options = IngestOptions(edit="support.image_edits:BlackenRed", resize_px=15)
    result = ingest(folder, root, "photos", options)
    rows = {row["source"]: row for row in rows_of(root, load_manifest(root, "photos", result.manifest_sha256))}
    person, sky = (decode_rgb(rows[f"{name}.png"]["image"]) for name in ("person", "sky"))
    assert person.shape == sky.shape == (15, 20, 3)
    assert person[:7].max() == 0
    assert person[9:, :, 0].min() == 200
    assert sky[..., 0].min() == 3
    assert numbers(ingest(folder, root, "photos", options)) == (0, 2, 2, 0)


def test_ingest__stops_when_too_much_is_refused_and_goes_on_when_allowed(root: Store, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for index in range(1010):
        (folder / f"{index:04}.jpg").write_bytes(b"text")
    write_image(folder / "zebra.png", 1)
    source = PlainSource(str(folder), per_unit=100)
    with pytest.raises(TooManyRefusedError, match=r"HS-DATA-013: 1\d\d\d of 1\d\d\d items .* \(1\d\d\d not-an-image\)"):
        ingest(source, root, "photos")
    result = ingest(source, root, "photos", IngestOptions(max_quarantined_share=1.0))
    assert result.resumed >= 1000
    assert numbers(result) == (1, 1, 0, 1010)


def test_ingest__what_a_task_meets_in_the_store_is_a_user_error(root: Store, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "root" / "datasets" / "photos").mkdir(parents=True)
    (tmp_path / "root" / "datasets" / "photos" / "shards").write_text("in the way")
    with pytest.raises(StorageError, match="HS-STOR-"):
        ingest(photos, root, "photos", SMALL)


def test_ingest__the_number_of_tasks_does_not_change_the_shards(root: Store, photos: Path) -> None:
    expected = ingest(photos, root, "photos", SMALL)  # one task
    for per_unit in (1, 3):
        ingest(PlainSource(str(photos), per_unit), root, f"photos-{per_unit}", SMALL)
        assert load_manifest(root, f"photos-{per_unit}").shards == load_manifest(root, "photos").shards
    assert expected.images == 20
