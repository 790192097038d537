import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.data.manifest import (
    ByteRange,
    DatasetManifest,
    Provenance,
    RowGroup,
    Shard,
    dataset_store,
    load_manifest,
    load_provenance,
    read_head,
    write_manifest,
)
from heliostat.errors import CorruptManifestError, DatasetNotFoundError, ObjectExistsError, VersionConflictError
from heliostat.storage import Store, open_store

HASH = "ab" * 32


def shard(name: str = "0123456789abcdef", rows: int = 5) -> Shard:
    groups = (
        RowGroup(rows=2, offset=4, size_bytes=100, sha256=HASH),
        RowGroup(rows=rows - 2, offset=104, size_bytes=50, sha256=HASH),
    )
    footer = ByteRange(offset=154, size_bytes=30, sha256=HASH)
    key = f"shards/part-{name}.parquet"
    return Shard(key=key, size_bytes=184, rows=rows, footer=footer, row_groups=groups, ids_sha256=HASH)


def manifest(**changes: Any) -> DatasetManifest:
    return DatasetManifest(**{"name": "photos", "labels": ("cat", "dog"), "shards": (shard(),), **changes})


PROVENANCE = Provenance(
    source="./photos",
    created_utc="2026-01-02T03:04:05+00:00",
    heliostat_version="0.1.0",
    parent_sha256=None,
    images_added=5,
    duplicates=0,
)


@pytest.fixture
def root(tmp_path: Any) -> Store:
    return open_store(str(tmp_path))


def test_manifest__its_name_is_frozen_for_ever() -> None:
    assert manifest().sha256 == "23c6c567cb1755fc8aa62adf53b14a577306bdfdafef8720db1fbfb5b909a47d"


def test_manifest__sums_rows_and_bytes() -> None:
    both = manifest(shards=(shard(), shard("fedcba9876543210", rows=9)))
    assert (both.rows, both.size_bytes) == (14, 368)
    assert shard().ids_key == "shards/part-0123456789abcdef.ids"


def test_write_manifest__comes_back_by_name_and_by_hash(root: Store) -> None:
    first, second = manifest(), manifest(quarantined=1)
    name = write_manifest(root, first, PROVENANCE)
    assert name == first.sha256
    assert load_manifest(root, "photos") == first
    write_manifest(root, second, PROVENANCE, base=read_head(root, "photos"))
    assert load_manifest(root, "photos") == second
    assert load_manifest(root, "photos", name) == first
    assert load_provenance(root, "photos", name) == PROVENANCE


def test_write_manifest__the_record_of_who_was_first_stays(root: Store) -> None:
    write_manifest(root, manifest(), PROVENANCE)
    again = PROVENANCE.model_copy(update={"created_utc": "2027-01-01T00:00:00+00:00"})
    write_manifest(root, manifest(), again, base=read_head(root, "photos"))
    assert load_provenance(root, "photos", manifest().sha256) == PROVENANCE


def test_write_manifest__completes_one_that_stopped_before_the_pointer(root: Store) -> None:
    write_manifest(root, manifest(), PROVENANCE)
    dataset_store(root, "photos").delete("manifest.json")
    assert read_head(root, "photos") is None
    write_manifest(root, manifest(), PROVENANCE)
    assert load_manifest(root, "photos") == manifest()


def test_write_manifest__a_late_writer_conflicts_and_changes_nothing(root: Store) -> None:
    write_manifest(root, manifest(), PROVENANCE)
    seen = read_head(root, "photos")
    write_manifest(root, manifest(quarantined=1), PROVENANCE, base=seen)
    with pytest.raises(VersionConflictError):
        write_manifest(root, manifest(quarantined=2), PROVENANCE, base=seen)
    with pytest.raises(ObjectExistsError):
        write_manifest(root, manifest(quarantined=2), PROVENANCE)
    assert load_manifest(root, "photos").quarantined == 1


def test_load_manifest__a_missing_dataset_names_those_that_exist(root: Store) -> None:
    for name in ("photos", "maps"):
        write_manifest(root, manifest(name=name), PROVENANCE)
    with pytest.raises(DatasetNotFoundError, match=r"HS-DATA-003: there is no dataset 'photo' .*: maps, photos; "):
        load_manifest(root, "photo")


def test_load_manifest__an_empty_root_says_so(root: Store) -> None:
    with pytest.raises(DatasetNotFoundError, match="There are no datasets there yet"):
        load_manifest(root, "photos")


def test_load_manifest__an_unknown_hash_is_named(root: Store) -> None:
    write_manifest(root, manifest(), PROVENANCE)
    with pytest.raises(DatasetNotFoundError, match=f"no manifest {HASH}"):
        load_manifest(root, "photos", HASH)


@settings(max_examples=40)
@given(data=st.data())
def test_load_manifest__any_changed_byte_is_caught(data: st.DataObject, tmp_path_factory: Any) -> None:
    root = open_store(str(tmp_path_factory.mktemp("root")))
    name = write_manifest(root, manifest(), PROVENANCE)
    key = f"datasets/photos/manifests/{name}.json"
    content = bytearray(root.get(key))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    root.put(key, bytes(content))
    with pytest.raises(CorruptManifestError, match="HS-DATA-004"):
        load_manifest(root, "photos")


@settings(max_examples=40)
@given(content=st.binary(max_size=60) | st.just(b"[" * 10_000))
def test_load_manifest__a_pointer_of_arbitrary_bytes_is_an_error_of_one_line(
    content: bytes, tmp_path_factory: Any
) -> None:
    root = open_store(str(tmp_path_factory.mktemp("root")))
    root.put("datasets/photos/manifest.json", content)
    with pytest.raises(CorruptManifestError) as caught:
        load_manifest(root, "photos")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda c: c.update(schema_version=2), "schema_version"),
        (lambda c: c.update(extra=1), "extra"),
        (lambda c: c.update(quarantined=-1), "quarantined"),
        (lambda c: c.update(quarantined="1"), "quarantined"),
        (lambda c: c["shards"][0].update(rows=-5), "rows"),
        (lambda c: c["shards"][0].update(rows=6), "rows is not the sum"),
        (lambda c: c["shards"][0].update(size_bytes=185), "the footer does not end the shard"),
        (lambda c: c["shards"][0].update(key="shards/../../../etc/passwd"), "key"),
        (lambda c: c["shards"][0].update(row_groups=[]), "row_groups"),
        (lambda c: c["shards"][0]["row_groups"][0].update(offset=-1), "offset"),
        (lambda c: c["shards"][0]["row_groups"][0].update(size_bytes=101), "row groups overlap"),
        (lambda c: c["shards"][0]["row_groups"][0].update(sha256="AB" * 32), "sha256"),
    ],
)
def test_load_manifest__checks_bounds_even_where_the_hash_is_right(
    root: Store, spoil: Callable[[dict[str, Any]], None], where: str
) -> None:
    content = manifest().model_dump(mode="json")
    spoil(content)
    data = json.dumps(content).encode()
    name = hashlib.sha256(data).hexdigest()
    root.put(f"datasets/photos/manifests/{name}.json", data)
    with pytest.raises(CorruptManifestError, match=where):
        load_manifest(root, "photos", name)


def test_load_provenance__a_missing_record_is_named(root: Store) -> None:
    with pytest.raises(CorruptManifestError, match=r"provenance\.json of dataset 'photos' is missing"):
        load_provenance(root, "photos", HASH)
