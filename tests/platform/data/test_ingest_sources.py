"""Ingest from every kind of source, and of files made to hurt. One start of Ray serves all but the last test."""

import shutil
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image
from support import failing_decoder, hostile

from heliostat.data.ingest import IngestOptions, ingest, prepare
from heliostat.data.manifest import DatasetManifest, load_manifest
from heliostat.data.quarantine import load_quarantine
from heliostat.data.shards import read_row_group
from heliostat.storage import Store, open_store
from heliostat.storage.layout import dataset_store
from heliostat_cluster.local import local_ray as start_ray

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]
TESTS = str(Path(failing_decoder.__file__).parents[1])


def encoded(shade: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (20 + shade, 10), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


PHOTOS = {f"{label}/{shade}.png": encoded(shade) for shade, label in enumerate(["cat", "dog", "cat", "ant", "dog"])}


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", TESTS)  # the child that decodes finds its module there
        with start_ray(num_cpus=2):
            yield


@pytest.fixture
def root(tmp_path: Path, local_ray: None) -> Store:
    return open_store(str(tmp_path / "root"))


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def stored(root: Store, name: str) -> dict[bytes, str | None]:
    """Labels of all rows of a dataset by the bytes of their images."""
    manifest = load_manifest(root, name)
    rows = rows_of(root, manifest)
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["image"]: None if row["label"] is None else manifest.labels[row["label"]] for row in rows}


def rows_of(root: Store, manifest: DatasetManifest) -> list[dict[str, Any]]:
    store = dataset_store(root, manifest.name)
    return [
        row
        for shard_index, shard in enumerate(manifest.shards)
        for group_index in range(len(shard.row_groups))
        for row in read_row_group(store, manifest, shard_index, group_index).to_pylist()
    ]


def refusals(root: Store, name: str) -> dict[str, str]:
    files = list(load_quarantine(dataset_store(root, name), load_manifest(root, name)))
    assert all(file.detail for file in files)
    return {file.source: str(file.reason) for file in files}


LABELLED: dict[bytes, str | None] = {data: name.split("/")[0] for name, data in PHOTOS.items()}


def test_ingest__labels_of_a_csv(root: Store, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", PHOTOS)
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n" + "".join(f"{name},{len(data)}\n" for name, data in PHOTOS.items()))
    result = ingest(prepare(folder, root, "photos", labels=labels), root, "photos")
    assert result.images == 5
    assert stored(root, "photos") == {data: str(len(data)) for data in PHOTOS.values()}


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_ingest__tar(root: Store, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"photos.{kind}"
    with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
        for name, data in PHOTOS.items():
            for suffix, content in ((".png", data), (".cls", name.split("/")[0].encode())):
                member = tarfile.TarInfo(name.removesuffix(".png") + suffix)
                member.size = len(content)
                archive.addfile(member, BytesIO(content))
    result = ingest(path, root, "photos")
    assert (result.images, result.quarantined) == (5, 0)
    assert stored(root, "photos") == LABELLED
    assert ingest(path, root, "photos").manifest_sha256 == result.manifest_sha256


def test_ingest__parquet(root: Store, tmp_path: Path) -> None:
    rows = [{"image": {"bytes": data, "path": name}, "label": name.split("/")[0]} for name, data in PHOTOS.items()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "photos.parquet")
    assert ingest(tmp_path / "photos.parquet", root, "photos").images == 5
    assert stored(root, "photos") == LABELLED


def test_ingest__a_hostile_folder_is_named_file_by_file(root: Store, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    expected = hostile.write_folder(folder)
    assert len(expected) >= 30
    result = ingest(folder, root, "hostile", IngestOptions(max_quarantined_share=1.0))
    assert refusals(root, "hostile") == {name: reason for name, reason in expected.items() if reason}
    accepted = sum(reason is None for reason in expected.values())
    assert result.images + result.duplicates == accepted


def test_ingest__a_hostile_tar_is_named_member_by_member(root: Store, tmp_path: Path) -> None:
    expected = hostile.write_tar(tmp_path / "hostile.tar")
    ingest(tmp_path / "hostile.tar", root, "hostile", IngestOptions(max_quarantined_share=1.0))
    assert refusals(root, "hostile") == {name: reason for name, reason in expected.items() if reason}


def test_ingest__a_decoder_that_dies_costs_the_images_it_dies_of(root: Store, tmp_path: Path) -> None:
    words = [failing_decoder.ABORT, failing_decoder.SEGFAULT, failing_decoder.GARBAGE]
    bad = {f"bad-{number}.png": encoded(100 + number) + word for number, word in enumerate(words)}
    folder = folder_of(tmp_path / "photos", {**PHOTOS, **bad})
    options = IngestOptions(decoder_module=failing_decoder.MODULE)
    assert ingest(folder, root, "photos", options).images == 5
    assert stored(root, "photos") == LABELLED
    assert refusals(root, "photos") == dict.fromkeys(bad, "decoder-crashed")


@pytest.mark.s3
def test_ingest__neither_cpus_nor_store_nor_kind_of_source_change_the_images(
    root: Store, tmp_path: Path, s3_root: str
) -> None:
    expected = ingest(folder_of(tmp_path / "photos", PHOTOS), root, "photos").manifest_sha256
    shutil.copytree(tmp_path / "photos", tmp_path / "elsewhere")
    remote = open_store(s3_root)
    for name, data in PHOTOS.items():
        remote.put(f"source/{name}", data)
    listed = [f"{s3_root}/source/{name},{name.split('/')[0]}\n" for name in PHOTOS]
    (tmp_path / "keys.csv").write_text("key,label\n" + "".join([*listed, f"{s3_root}/source/missing.png,cat\n"]))
    ray.shutdown()
    with start_ray(num_cpus=1):  # also because tasks see the environment in which Ray was started
        assert ingest(tmp_path / "elsewhere", remote, "photos").manifest_sha256 == expected
        result = ingest(tmp_path / "keys.csv", remote, "from-keys")
    assert rows_of(remote, load_manifest(remote, "photos")) == rows_of(root, load_manifest(root, "photos"))
    assert (result.images, result.reasons) == (5, {"unreadable": 1})
    assert stored(remote, "from-keys") == LABELLED
    assert not [info.key for info in remote.list() if "/ingests/" in info.key]
