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
    Part,
    Provenance,
    QuarantinePart,
    RowGroup,
    Selection,
    Shard,
    ShardRowGroup,
    load_manifest,
    load_provenance,
    read_head,
    write_manifest,
)
from heliostat.errors import CorruptManifestError, DatasetNotFoundError, ObjectExistsError, VersionConflictError
from heliostat.storage import Store, open_store
from heliostat.storage.layout import dataset_store

HASH = "ab" * 32


def shard(name: str = "0123456789abcdef", rows: int = 5) -> Shard:
    groups = (
        ShardRowGroup(rows=2, offset=4, size_bytes=100, sha256=HASH, index_sha256=HASH),
        ShardRowGroup(rows=rows - 2, offset=104, size_bytes=50, sha256=HASH, index_sha256=HASH),
    )
    footer = ByteRange(offset=154, size_bytes=30, sha256=HASH)
    key = f"shards/part-{name}.parquet"
    return Shard(key=key, size_bytes=184, rows=rows, footer=footer, row_groups=groups)


def selection(**changes: Any) -> Selection:
    fields = {
        "key": "selections/0123456789abcdef.parquet",
        "size_bytes": 84,
        "rows": 3,
        "footer": ByteRange(offset=54, size_bytes=30, sha256=HASH),
        "row_groups": (RowGroup(rows=3, offset=4, size_bytes=50, sha256=HASH),),
        "parts": (Part(name="photos", manifest_sha256=HASH),),
        "selected_bytes": 95,
        "group_rows": (1, 2),
    }
    return Selection(**{**fields, **changes})


def refused(lines: int) -> QuarantinePart:
    return QuarantinePart(key="quarantine/0123456789abcdef.jsonl", sha256=HASH, size_bytes=9, lines=lines)


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
    assert manifest().sha256 == "599796302f90033196e8eb9ee36874d60856baf24e5af5c1f89ff067f8f6f380"


def test_manifest__sums_rows_and_bytes() -> None:
    both = manifest(shards=(shard(), shard("fedcba9876543210", rows=9)))
    assert (both.rows, both.size_bytes) == (14, 368)
    assert both.group_rows == (2, 3, 2, 7)
    assert shard().index_key == "shards/part-0123456789abcdef.index"


def test_manifest__of_a_selection_counts_its_rows_and_about_their_bytes() -> None:
    chosen = DatasetManifest(name="best", selection=selection())
    assert (chosen.rows, chosen.size_bytes, chosen.group_rows) == (3, 95, (1, 2))


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda c: c.update(labels=["cat"]), "a selection has no shards or labels"),
        (lambda c: c["selection"].update(group_rows=[1, 1]), "rows is not the sum of group_rows"),
        (lambda c: c["selection"].update(group_rows=[3, 0]), "group_rows"),
        (lambda c: c["selection"].update(rows=4), "rows is not the sum over the row groups"),
        (lambda c: c["selection"].update(parts=[]), "parts"),
        (lambda c: c["selection"].update(key="selections/../../x.parquet"), "key"),
        (lambda c: c["selection"]["parts"][0].update(name="../photos"), "name"),
    ],
)
def test_load_manifest__checks_the_bounds_of_a_selection(
    root: Store, spoil: Callable[[dict[str, Any]], None], where: str
) -> None:
    content = DatasetManifest(name="photos", selection=selection()).model_dump(mode="json")
    spoil(content)
    with pytest.raises(CorruptManifestError, match=where):
        load_manifest(root, "photos", stored_as_it_is(root, content))


def stored_as_it_is(root: Store, content: dict[str, Any]) -> str:
    data = json.dumps(content).encode()
    name = hashlib.sha256(data).hexdigest()
    root.put(f"datasets/photos/manifests/{name}.json", data)
    return name


def test_write_manifest__comes_back_by_name_and_by_hash(root: Store) -> None:
    first, second = manifest(), manifest(quarantine=(refused(1),))
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
    write_manifest(root, manifest(quarantine=(refused(1),)), PROVENANCE, base=seen)
    with pytest.raises(VersionConflictError):
        write_manifest(root, manifest(quarantine=(refused(2),)), PROVENANCE, base=seen)
    with pytest.raises(ObjectExistsError):
        write_manifest(root, manifest(quarantine=(refused(2),)), PROVENANCE)
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
        (lambda c: c.update(schema_version=3), "schema_version"),
        (lambda c: c.update(extra=1), "extra"),
        (lambda c: c.update(quarantine=[{}]), "quarantine"),
        (lambda c: c.update(quarantine=[{**refused(1).model_dump(), "lines": 0}]), "quarantine"),
        (lambda c: c.update(quarantine=[{**refused(1).model_dump(), "lines": "1"}]), "quarantine"),
        (lambda c: c["shards"][0].update(rows=-5), "rows"),
        (lambda c: c["shards"][0].update(rows=6), "rows is not the sum"),
        (lambda c: c["shards"][0].update(size_bytes=185), "the footer does not end the object"),
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
    with pytest.raises(CorruptManifestError, match=where):
        load_manifest(root, "photos", stored_as_it_is(root, content))


def test_load_manifest__of_the_first_version_asks_for_another_ingest(root: Store) -> None:
    content = manifest().model_dump(mode="json")
    del content["selection"]
    content["schema_version"] = 1
    content["shards"][0]["ids_sha256"] = HASH
    with pytest.raises(CorruptManifestError, match=r"schema_version: Input should be 2.*ingest the dataset again"):
        load_manifest(root, "photos", stored_as_it_is(root, content))


def test_load_provenance__a_missing_record_is_named(root: Store) -> None:
    with pytest.raises(CorruptManifestError, match=r"provenance\.json of dataset 'photos' is missing"):
        load_provenance(root, "photos", HASH)
