import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.data.images import ImageLimits, Reason
from heliostat.data.sources.parquet import ParquetSource
from heliostat.data.sources.source import Item, RefusedItem
from heliostat.errors import SourceNotFoundError
from heliostat.storage import open_store

Found = list[Item | RefusedItem]


def read(path: Path | str, limits: ImageLimits | None = None) -> Found:
    source = ParquetSource(str(path))
    return [item for unit in source.units() for item in source.read(unit, limits or ImageLimits())]


def items(found: Found) -> list[tuple[str, str | None, bytes]]:
    return [(item.source, item.label, item.data) for item in found if isinstance(item, Item)]


def refused(found: Found) -> list[tuple[str, Reason]]:
    return [(item.source, item.reason) for item in found if isinstance(item, RefusedItem)]


def hugging_face(images: list[bytes | None], labels: list[int | None]) -> pa.Table:
    """A table as the datasets library writes it."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    }
    schema = pa.schema(
        [("label", pa.int64()), ("image", struct)],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    cells = [None if data is None else {"bytes": data, "path": "x.jpg"} for data in images]
    return pa.table({"label": labels, "image": pa.array(cells, struct)}, schema)


def test_parquet__hugging_face_columns(tmp_path: Path) -> None:
    table = hugging_face([b"a", b"b", None, b"d", b"e"], [0, 1, 0, -1, None])
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    found = read(tmp_path / "t.parquet")
    assert items(found) == [
        ("t.parquet/0", "cat", b"a"),
        ("t.parquet/1", "dog", b"b"),
        ("t.parquet/3", None, b"d"),
        ("t.parquet/4", None, b"e"),
    ]
    assert refused(found) == [("t.parquet/2", Reason.EMPTY)]
    assert all(item.place is None for item in found if isinstance(item, Item))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"data": pa.array([b"x"])}, [("t.parquet/0", None, b"x")]),
        ({"data": pa.array([b"x"], pa.large_binary()), "label": ["cat"]}, [("t.parquet/0", "cat", b"x")]),
        ({"data": [b"x"], "label": [7]}, [("t.parquet/0", "7", b"x")]),
        ({"data": [b"x"], "label": [1.5]}, [("t.parquet/0", None, b"x")]),
        ({"mask": [b"m"], "Image": [b"x"]}, [("t.parquet/0", None, b"x")]),
        ({"image": [{"bytes": b"x", "path": None}], "mask": [b"m"]}, [("t.parquet/0", None, b"x")]),
    ],
)
def test_parquet__finds_the_columns(tmp_path: Path, columns: dict[str, object], expected: object) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert items(read(tmp_path / "t.parquet")) == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["x"]}, r"no column that is clearly the one of images: it has text \(string\)"),
        ({"left": [b"x"], "right": [b"y"]}, r"it has left \(binary\), right \(binary\)"),
        ({"image": [[b"x"]]}, r"it has image \(list<element: binary>\)"),
    ],
)
def test_parquet__a_table_without_clear_images_is_named(
    tmp_path: Path, columns: dict[str, object], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(SourceNotFoundError, match=message):
        read(tmp_path / "t.parquet")


@pytest.mark.parametrize("metadata", [b"", b"{", b"[]", b'{"info": 1}', b'{"info": {"features": []}}', b"[" * 99999])
def test_parquet__odd_metadata_are_none(tmp_path: Path, metadata: bytes) -> None:
    table = pa.table({"image": [b"x"], "label": [0]}).replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, tmp_path / "t.parquet")
    assert items(read(tmp_path / "t.parquet")) == [("t.parquet/0", "0", b"x")]


def test_parquet__two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([b"x"]), pa.array([b"y"])], names=["image", "image"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(SourceNotFoundError, match="no column that is clearly"):
        read(tmp_path / "t.parquet")


def test_parquet__units_are_runs_of_row_groups(tmp_path: Path) -> None:
    images: list[bytes | None] = [str(number).encode() for number in range(1000)]
    pq.write_table(hugging_face(images, [0] * 1000), tmp_path / "a.parquet", row_group_size=100)
    pq.write_table(hugging_face(images[:5], [1] * 5), tmp_path / "b.parquet")
    units = list(ParquetSource(str(tmp_path)).units())
    assert [unit.items for unit in units] == [300, 300, 300, 100, 5]
    assert units == list(ParquetSource(str(tmp_path)).units())
    found = items(read(tmp_path))
    assert [data for _, _, data in found] == images + images[:5]
    assert [name for name, _, _ in found][998:1002] == ["a.parquet/998", "a.parquet/999", "b.parquet/0", "b.parquet/1"]


def test_parquet__a_repeated_value_of_a_dictionary_is_read_one_at_a_time(tmp_path: Path) -> None:
    big = bytes(8 * 2**20)
    images = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 500, pa.int32()), pa.array([big, b"x"]))
    table = pa.table({"image": images})
    pq.write_table(table, tmp_path / "t.parquet", dictionary_pagesize_limit=2**30, store_schema=False)
    assert (tmp_path / "t.parquet").stat().st_size < 2**20
    before = pa.total_allocated_bytes()
    peak = 0
    source = ParquetSource(str(tmp_path / "t.parquet"))
    (unit,) = source.units()
    for count, _ in enumerate(source.read(unit, ImageLimits(max_bytes=2**20))):
        peak = max(peak, pa.total_allocated_bytes() - before)
        if count == 100:
            break
    assert peak < 64 * 2**20


@pytest.mark.parametrize("in_struct", [False, True])
def test_parquet__a_row_group_that_expands_enormously_is_refused_before_it_is_read(
    tmp_path: Path, in_struct: bool
) -> None:
    image = pa.array([b"ok", bytes(100 * 2**20), b"too"], pa.binary())
    cells = pa.StructArray.from_arrays([image], ["bytes"]) if in_struct else image
    with pq.ParquetWriter(tmp_path / "t.parquet", pa.schema({"image": cells.type}), compression="zstd") as writer:
        for row in range(3):
            writer.write_table(pa.table({"image": cells.slice(row, 1)}))
    before = pa.default_memory_pool().max_memory()
    found = read(tmp_path / "t.parquet")
    assert pa.default_memory_pool().max_memory() == before
    assert [item.data for item in found if isinstance(item, Item)] == [b"ok", b"too"]
    (item,) = (item for item in found if isinstance(item, RefusedItem))
    assert (item.source, item.reason) == ("t.parquet", Reason.BROKEN_ARCHIVE)
    assert "row group 1 cannot be read on: its images expand from" in item.detail


def test_parquet__a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in/a.parquet", tmp_path / "out.parquet"
    inside.parent.mkdir()
    for path in (inside, outside):
        pq.write_table(pa.table({"image": [path.name.encode()]}), path)
    (tmp_path / "in/b.parquet").symlink_to("a.parquet")
    (tmp_path / "in/c.parquet").symlink_to(outside)
    found = read(tmp_path / "in")
    assert [item.data for item in found if isinstance(item, Item)] == [b"a.parquet"] * 2
    assert refused(found) == [("c.parquet", Reason.LINK_LEAVES_SOURCE)]
    inside.unlink()
    (tmp_path / "in/b.parquet").unlink()
    with pytest.raises(SourceNotFoundError, match="the link leads out of the source folder"):
        read(tmp_path / "in")


def test_parquet__byte_limit(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x" * 11, b"x" * 10]}), tmp_path / "t.parquet")
    found = read(tmp_path / "t.parquet", ImageLimits(max_bytes=10))
    assert (len(items(found)), refused(found)) == (1, [("t.parquet/0", Reason.TOO_MANY_BYTES)])


def test_parquet__one_that_is_none_is_refused_among_others_and_an_error_alone(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + b"x" * 100)
    with pytest.raises(SourceNotFoundError, match=r"a\.parquet' is no Parquet file"):
        read(tmp_path / "a.parquet")
    with pytest.raises(SourceNotFoundError, match=r"c\.parquet' does not exist"):
        read(tmp_path / "c.parquet")
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "c.parquet")
    found = read(tmp_path)
    assert [name for name, _, _ in items(found)] == ["b.parquet/0"]
    assert refused(found) == [("a.parquet", Reason.BROKEN_ARCHIVE), ("c.parquet", Reason.BROKEN_ARCHIVE)]


def test_parquet__a_broken_row_group_does_not_end_the_others(tmp_path: Path) -> None:
    images: list[bytes | None] = [bytes([number]) * 1000 for number in range(6)]
    pq.write_table(
        hugging_face(images, [0] * 6),
        tmp_path / "a.parquet",
        row_group_size=2,
        compression="gzip",
        use_dictionary=False,
    )
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    offset = pq.read_metadata(tmp_path / "a.parquet").row_group(1).column(1).data_page_offset
    data[offset : offset + 20] = bytes(20)
    (tmp_path / "a.parquet").write_bytes(data)
    found = read(tmp_path / "a.parquet")
    assert [name for name, _, _ in items(found)] == [f"a.parquet/{row}" for row in (0, 1, 4, 5)]
    assert refused(found) == [("a.parquet", Reason.BROKEN_ARCHIVE)]


def test_parquet__a_name_in_the_footer_that_is_no_text_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"a" * 50]}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "b.parquet")
    for at in range(len(data)):
        if data[at : at + 5] == b"image":
            (tmp_path / "a.parquet").write_bytes(data[:at] + b"\x80" + data[at + 1 :])
            assert items(read(tmp_path))[-1] == ("b.parquet/0", None, b"x")


@given(st.data())
def test_parquet__changed_bytes_are_read_without_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    pq.write_table(hugging_face([b"a" * 50, b"b" * 60, None], [0, 1, None]), folder / "a.parquet", row_group_size=1)
    pq.write_table(pa.table({"image": [b"x"]}), folder / "b.parquet")
    good = bytearray((folder / "a.parquet").read_bytes())
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=6)):
        good[at] = byte
    (folder / "a.parquet").write_bytes(good[: data.draw(st.sampled_from([len(good), len(good) // 2, 11]))])
    assert items(read(folder))[-1] == ("b.parquet/0", None, b"x")


@pytest.mark.s3
def test_parquet__on_s3(s3_root: str, tmp_path: Path) -> None:
    images: list[bytes | None] = [bytes([number]) * 1000 for number in range(20)]
    pq.write_table(hugging_face(images, [0, 1] * 10), tmp_path / "a.parquet", row_group_size=7)
    store = open_store(s3_root)
    store.upload("in/a.parquet", tmp_path / "a.parquet")
    store.put("in/b.parquet", b"no table")
    found = read(f"{s3_root}/in")
    assert [(data, label) for _, label, data in items(found)] == list(zip(images, ["cat", "dog"] * 10, strict=True))
    assert refused(found) == [("b.parquet", Reason.BROKEN_ARCHIVE)]
    source = ParquetSource(f"{s3_root}/in/a.parquet")
    (unit,) = source.units()
    store.delete("in/a.parquet")
    assert refused(list(source.read(unit))) == [("a.parquet", Reason.BROKEN_ARCHIVE)]
