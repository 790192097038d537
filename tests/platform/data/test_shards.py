import hashlib
import struct
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heliostat.data.manifest import DatasetManifest, Shard
from heliostat.data.shard_index import Index, read_group_index, read_index
from heliostat.data.shards import (
    SCHEMA,
    ShardLayout,
    plan_shards,
    read_row_group,
    upload_shard,
    write_shard,
)
from heliostat.errors import CorruptShardError
from heliostat.storage import Store, open_store

GROUP_ROWS = (3, 1, 4)


def table(first: int, rows: int) -> pa.Table:
    images = [f"image {n} ".encode() * (n + 1) for n in range(first, first + rows)]
    return pa.Table.from_pylist(
        [
            {
                "id": hashlib.sha256(image).hexdigest(),
                "image": image,
                "width": n + 1,
                "height": 7,
                "source": f"ä/{n}.png",
                "label": n % 2 if n % 3 else None,
            }
            for n, image in enumerate(images, start=first)
        ],
        SCHEMA,
    )


TABLES = [table(sum(GROUP_ROWS[:g]), rows) for g, rows in enumerate(GROUP_ROWS)]


def ids_in(index: Index) -> list[str]:
    return [row["id"].tobytes().hex() for row in index]


def stored(folder: Path) -> tuple[Store, DatasetManifest]:
    shard = write_shard(folder / "local.parquet", TABLES)
    store = open_store(str(folder / "store"))
    upload_shard(store, shard, folder / "local.parquet")
    return store, DatasetManifest(name="d", shards=(shard,))


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Store, DatasetManifest]:
    return stored(tmp_path)


def test_write_shard__describes_every_byte_but_the_leading_magic(dataset: tuple[Store, DatasetManifest]) -> None:
    store, manifest = dataset
    (shard,) = manifest.shards
    data = store.get(shard.key)
    ranges = [*shard.row_groups, shard.footer]
    assert [part.offset for part in ranges] == [4, *(part.end for part in ranges[:-1])]
    assert ranges[-1].end == shard.size_bytes == len(data)
    assert all(hashlib.sha256(data[part.offset : part.end]).hexdigest() == part.sha256 for part in ranges)
    assert [group.rows for group in shard.row_groups] == list(GROUP_ROWS)
    assert shard.key == f"shards/part-{hashlib.sha256(data).hexdigest()[:16]}.parquet"


def test_write_shard__is_parquet_that_any_reader_reads(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.parquet", TABLES)
    assert pq.read_table(tmp_path / "x.parquet").equals(pa.concat_tables(TABLES))


def test_write_shard__the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    assert write_shard(first, TABLES) == write_shard(second, iter(TABLES))
    assert first.read_bytes() == second.read_bytes()


def test_read_row_group__gives_the_rows_that_were_written(dataset: tuple[Store, DatasetManifest]) -> None:
    store, manifest = dataset
    for index, expected in enumerate(TABLES):
        assert read_row_group(store, manifest, 0, index).equals(expected)


def test_read_row_group__needs_no_byte_of_its_neighbours(dataset: tuple[Store, DatasetManifest]) -> None:
    store, manifest = dataset
    (shard,) = manifest.shards
    wanted = shard.row_groups[1]
    data = store.get(shard.key)
    holes = b"\0" * wanted.offset + data[wanted.offset : wanted.end] + b"\0" * (shard.footer.offset - wanted.end)
    store.put(shard.key, holes + data[shard.footer.offset :])
    assert read_row_group(store, manifest, 0, 1).equals(TABLES[1])
    with pytest.raises(CorruptShardError):
        read_row_group(store, manifest, 0, 0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_read_row_group__any_flipped_bit_of_it_is_caught(
    dataset: tuple[Store, DatasetManifest], data: st.DataObject
) -> None:
    store, manifest = dataset
    (shard,) = manifest.shards
    index = data.draw(st.integers(0, len(GROUP_ROWS) - 1))
    group = shard.row_groups[index]
    whole = store.get(shard.key)
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(group.offset, group.end - 1))] ^= 1 << data.draw(st.integers(0, 7))
    store.put(shard.key, bytes(damaged))
    with pytest.raises(
        CorruptShardError, match=f"HS-DATA-005: row group {index} of {shard.key} .* does not have the hash"
    ):
        read_row_group(store, manifest, 0, index)
    store.put(shard.key, whole)


def test_read_row_group__a_damaged_footer_is_caught(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "other.parquet", [table(50, 2)])  # a footer that no other test has in the cache
    data = bytearray((tmp_path / "other.parquet").read_bytes())
    data[-20] ^= 1
    store = open_store(str(tmp_path / "store"))
    store.put(shard.key, bytes(data))
    with pytest.raises(CorruptShardError, match="footer of"):
        read_row_group(store, DatasetManifest(name="d", shards=(shard,)), 0, 0)


def test_read_row_group__a_shard_that_is_cut_or_gone_is_named(dataset: tuple[Store, DatasetManifest]) -> None:
    store, manifest = dataset
    (shard,) = manifest.shards
    store.put(shard.key, store.get(shard.key)[:50])
    with pytest.raises(CorruptShardError, match="row group 2"):
        read_row_group(store, manifest, 0, 2)
    store.delete(shard.key)
    with pytest.raises(CorruptShardError, match=f"{shard.key} .* is missing"):
        read_row_group(store, manifest, 0, 0)


@pytest.mark.s3
def test_read_row_group__from_s3_names_a_cut_shard_too(tmp_path: Path, s3_root: str) -> None:
    shard = write_shard(tmp_path / "local.parquet", TABLES)
    store, manifest = open_store(s3_root), DatasetManifest(name="d", shards=(shard,))
    upload_shard(store, shard, tmp_path / "local.parquet")
    assert read_row_group(store, manifest, 0, 2).equals(TABLES[2])
    assert ids_in(read_index(store, shard)) == pa.concat_tables(TABLES)["id"].to_pylist()
    store.put(shard.key, store.get(shard.key)[:50])
    with pytest.raises(CorruptShardError, match="row group 2"):
        read_row_group(store, manifest, 0, 2)


def test_read_row_group__refuses_other_columns(tmp_path: Path) -> None:
    good = write_shard(tmp_path / "good.parquet", TABLES)
    other = pa.table({"id": ["a"], "image": [b"x"]})
    pq.write_table(other, tmp_path / "bad.parquet", compression="none", use_dictionary=False)
    data = (tmp_path / "bad.parquet").read_bytes()
    metadata = pq.read_metadata(tmp_path / "bad.parquet")
    end = len(data) - 8 - metadata.serialized_size

    def part(start: int, stop: int) -> dict[str, object]:
        return {"offset": start, "size_bytes": stop - start, "sha256": hashlib.sha256(data[start:stop]).hexdigest()}

    fields = good.model_dump() | {"size_bytes": len(data), "rows": 1, "footer": part(end, len(data))}
    group = {"rows": 1, "index_sha256": "ab" * 32, **part(4, end)}
    shard = Shard.model_validate(fields | {"row_groups": (group,)})
    store = open_store(str(tmp_path / "store"))
    store.put(shard.key, data)
    with pytest.raises(CorruptShardError, match="holds other columns or rows than it should"):
        read_row_group(store, DatasetManifest(name="d", shards=(shard,)), 0, 0)


def test_read_index__gives_all_rows_in_order(dataset: tuple[Store, DatasetManifest]) -> None:
    store, manifest = dataset
    assert ids_in(read_index(store, manifest.shards[0])) == pa.concat_tables(TABLES)["id"].to_pylist()


def test_write_shard__the_index_says_where_each_image_lies(dataset: tuple[Store, DatasetManifest]) -> None:
    store, manifest = dataset
    (shard,) = manifest.shards
    data = store.get(shard.key)
    rows = pa.concat_tables(TABLES).to_pylist()
    # Parsed with the standard library alone, as any other reader of the format would.
    records = list(struct.iter_unpack("<32sQIiii", store.get(shard.index_key)))
    assert len(records) == len(rows) == shard.rows
    for (name, offset, size, width, height, label), row in zip(records, rows, strict=True):
        assert (name.hex(), width, height) == (row["id"], row["width"], row["height"])
        assert data[offset : offset + size] == row["image"]
        assert label == (-1 if row["label"] is None else row["label"])


@settings(max_examples=25)
@given(images=st.lists(st.binary(max_size=40) | st.sampled_from([b"", b"PAR1", b"\4\0\0\0"]), min_size=1, max_size=12))
def test_write_shard__finds_images_of_any_bytes(images: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("shard") / "x.parquet"
    rows = [row | {"image": image} for row, image in zip(table(0, len(images)).to_pylist(), images, strict=True)]
    write_shard(path, [pa.Table.from_pylist(rows, SCHEMA)])
    data = path.read_bytes()
    found = [record[1:3] for record in struct.iter_unpack("<32sQIiii", path.with_suffix(".index").read_bytes())]
    assert [data[offset : offset + size] for offset, size in found] == images
    assert all(first[0] + first[1] <= second[0] for first, second in pairwise(found))


def test_write_shard__finds_images_beyond_the_pages_of_parquet(tmp_path: Path) -> None:
    """A page is 1 MiB: these rows take several, with headers between them, and one image is larger than a page."""
    images = [bytes([n]) * size for n, size in enumerate([700_000, 300_000, 3_000_000, 5, 900_000])]
    rows = [row | {"image": image} for row, image in zip(table(0, 5).to_pylist(), images, strict=True)]
    shard = write_shard(tmp_path / "x.parquet", [pa.Table.from_pylist(rows, SCHEMA)])
    data = (tmp_path / "x.parquet").read_bytes()
    store = open_store(str(tmp_path / "store"))
    upload_shard(store, shard, tmp_path / "x.parquet")
    index = read_group_index(store, shard, 0)
    assert [data[row["offset"] : row["offset"] + row["size"]] for row in index] == images


def test_read_index__one_damaged_or_missing_group_is_named(dataset: tuple[Store, DatasetManifest]) -> None:
    store, manifest = dataset
    (shard,) = manifest.shards
    whole = store.get(shard.index_key)
    store.put(shard.index_key, whole[: 3 * 56] + b"\1" + whole[3 * 56 + 1 :])
    assert read_group_index(store, shard, 0)["width"].tolist() == [1, 2, 3]
    assert read_group_index(store, shard, 2)["width"].tolist() == [5, 6, 7, 8]
    with pytest.raises(CorruptShardError, match=f"row group 1 of {shard.index_key} .* does not have the hash"):
        read_index(store, shard)
    store.delete(shard.index_key)
    with pytest.raises(CorruptShardError, match=f"{shard.index_key} .* is missing"):
        read_index(store, shard)


@given(
    sizes=st.lists(st.integers(1, 50), max_size=60),
    layout=st.builds(
        ShardLayout,
        group_rows=st.integers(1, 8),
        group_bytes=st.integers(1, 120),
        shard_groups=st.integers(1, 5),
        shard_bytes=st.integers(1, 400),
    ),
)
def test_plan_shards__every_row_once_in_order_within_the_bounds(sizes: list[int], layout: ShardLayout) -> None:
    plan = plan_shards(sizes, layout)
    assert [row for shard in plan for group in shard for row in group] == list(range(len(sizes)))
    for shard in plan:
        assert 1 <= len(shard) <= layout.shard_groups
        shard_bytes = sum(sizes[row] for group in shard for row in group)
        assert shard_bytes <= layout.shard_bytes or len(shard) == 1
        for group in shard:
            assert 1 <= len(group) <= layout.group_rows
            assert sum(sizes[row] for row in group) <= layout.group_bytes or len(group) == 1


def test_plan_shards__cuts_where_a_bound_is_met() -> None:
    layout = ShardLayout(group_rows=2, group_bytes=10, shard_groups=2, shard_bytes=100)
    assert plan_shards([1, 1, 1, 9, 2, 50], layout) == [
        [range(2), range(2, 4)],
        [range(4, 5), range(5, 6)],
    ]
