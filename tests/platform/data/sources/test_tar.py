import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import Buffer

from heliostat.data.images import ImageLimits, Reason
from heliostat.data.sources import tar as tar_module
from heliostat.data.sources.source import Item, RefusedItem
from heliostat.data.sources.tar import TarSource
from heliostat.errors import SourceNotFoundError
from heliostat.storage import open_store

Members = list[tuple[str, bytes]]


def archive(members: Members, **settings: object) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **settings) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def special(**fields: object) -> bytes:
    """One member of a given kind between two good ones."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("a.jpg", None, "z.jpg"):
            info = tarfile.TarInfo(name or "bad")
            for field, value in fields.items() if name is None else ():
                setattr(info, field, value)
            has_data = info.type in (tarfile.REGTYPE, b"Z")
            info.size = 3 * has_data
            tar.addfile(info, io.BytesIO(b"abc") if has_data else None)
    return file.getvalue()


def read(path: Path | str, limits: ImageLimits | None = None) -> list[Item | RefusedItem]:
    source = TarSource(str(path))
    return [item for unit in source.units() for item in source.read(unit, limits or ImageLimits())]


def names(found: list[Item | RefusedItem]) -> list[str]:
    return [item.source for item in found if isinstance(item, Item)]


def refused(found: list[Item | RefusedItem]) -> list[tuple[str, Reason]]:
    return [(item.source, item.reason) for item in found if isinstance(item, RefusedItem)]


SAMPLES: Members = [
    ("./0001.cls", b"cat\n"),
    ("./0001.jpg", b"first"),
    ("./0002.jpg", b"second"),
    ("./0002.cls", b"7"),
    ("./0003.seg.png", b"third"),
    ("./0003.jpg", b"fourth"),
    ("./0003.json", b"{}"),
    ("./.hidden.jpg", b"no"),
    ("./sub.dir/0001.jpg", b"fifth"),
]
WANTED = [
    ("a.tar/0001.jpg", "cat", b"first"),
    ("a.tar/0002.jpg", "7", b"second"),
    ("a.tar/0003.seg.png", None, b"third"),
    ("a.tar/0003.jpg", None, b"fourth"),
    ("a.tar/sub.dir/0001.jpg", None, b"fifth"),
]
COMPRESSIONS: list[Callable[[bytes], bytes]] = [bytes, gzip.compress, bz2.compress, lzma.compress]


@pytest.mark.parametrize("compress", COMPRESSIONS)
@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar__samples_have_the_class_beside_them(
    tmp_path: Path, compress: Callable[[bytes], bytes], layout: int
) -> None:
    (tmp_path / "a.tar").write_bytes(compress(archive(SAMPLES, format=layout)))
    found = [item for item in read(tmp_path / "a.tar") if isinstance(item, Item)]
    assert [(item.source, item.label, item.data) for item in found] == WANTED
    plain = compress is bytes
    assert all((item.place.fetch() == item.data) if item.place else not plain for item in found)


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar__long_and_foreign_names(tmp_path: Path, layout: int) -> None:
    long, foreign = "x" * 3000 + ".jpg", "ünï/1.jpg"
    (tmp_path / "a.tar").write_bytes(archive([(long, b"1"), (foreign, b"2")], format=layout))
    shown = names(read(tmp_path / "a.tar"))
    assert shown == [f"a.tar/{'x' * 300}…", f"a.tar/{foreign}"]


def test_tar__concatenated_compressed_parts_are_one_archive(tmp_path: Path) -> None:
    whole = archive(SAMPLES)
    (tmp_path / "a.tar").write_bytes(gzip.compress(whole[:700]) + gzip.compress(whole[700:]))
    assert names(read(tmp_path / "a.tar")) == [name for name, _, _ in WANTED]


@pytest.mark.parametrize(
    ("fields", "reason", "detail"),
    [
        ({"name": "../../etc/passwd"}, Reason.UNSAFE_NAME, "'..'"),
        ({"name": "a/../b.jpg"}, Reason.UNSAFE_NAME, "'..'"),
        ({"name": "/etc/passwd"}, Reason.UNSAFE_NAME, "absolute"),
        ({"name": "..\\b.jpg"}, Reason.UNSAFE_NAME, "backslash"),
        ({"name": "bad", "pax_headers": {"path": "b\0d"}}, Reason.UNSAFE_NAME, "NUL"),
        ({"name": "bad", "pax_headers": {"comment": "x" * 70_000}}, Reason.UNSAFE_NAME, "limit is 65536"),
        ({"name": "bad", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, Reason.NOT_A_FILE, "a link"),
        ({"name": "bad", "type": tarfile.LNKTYPE, "linkname": "a.jpg"}, Reason.NOT_A_FILE, "a link"),
        ({"name": "bad", "type": tarfile.CHRTYPE}, Reason.NOT_A_FILE, "a device or a pipe"),
        ({"name": "bad", "type": tarfile.FIFOTYPE}, Reason.NOT_A_FILE, "a device or a pipe"),
        ({"name": "bad", "pax_headers": {"GNU.sparse.major": "1"}}, Reason.NOT_A_FILE, "a sparse file"),
        ({"name": "bad", "type": b"Z"}, Reason.NOT_A_FILE, "of an unknown type"),
    ],
)
def test_tar__bad_members_are_named_and_the_others_go_on(
    tmp_path: Path, fields: dict[str, object], reason: Reason, detail: str
) -> None:
    data = special(**fields)
    (tmp_path / "a.tar").write_bytes(data)
    found = read(tmp_path / "a.tar")
    assert names(found) == ["a.tar/a.jpg", "a.tar/z.jpg"]
    (refusal,) = (item for item in found if isinstance(item, RefusedItem))
    assert (refusal.reason, detail in refusal.detail) == (reason, True)
    assert refusal.source.isprintable()


def test_tar__limits_of_bytes_apply_to_a_member_and_to_a_sample(tmp_path: Path) -> None:
    members = [("a.jpg", b"x" * 11), ("b.jpg", b"x" * 6), ("b.png", b"x" * 6), ("c.jpg", b"x" * 10), ("d.jpg", b"")]
    (tmp_path / "a.tar").write_bytes(archive(members))
    found = read(tmp_path / "a.tar", ImageLimits(max_bytes=10))
    assert names(found) == ["a.tar/b.jpg", "a.tar/c.jpg"]
    assert refused(found) == [
        ("a.tar/a.jpg", Reason.TOO_MANY_BYTES),
        ("a.tar/b.png", Reason.TOO_MANY_BYTES),
        ("a.tar/d.jpg", Reason.EMPTY),
    ]


def test_tar__huge_sizes_in_headers_take_no_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = 2**60
    huge_name = tarfile.TarInfo("L")
    huge_name.type, huge_name.size = b"L", 2**40
    for header in (info, huge_name):
        (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT))
        tracemalloc.start()
        found = read(tmp_path / "a.tar")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert refused(found)[-1] == ("a.tar", Reason.TRUNCATED)
        assert peak < 2**20


@pytest.mark.parametrize("cut", [20, 512, 1000, 1024 + 512 + 100, 5 * 1024])
@pytest.mark.parametrize("compress", COMPRESSIONS)
def test_tar__a_cut_one_yields_what_is_whole(tmp_path: Path, compress: Callable[[bytes], bytes], cut: int) -> None:
    noise = [bytes(byte * 37 % 251 for byte in range(start, start + 900)) for start in range(4)]
    data = archive([(f"{number}.jpg", image) for number, image in enumerate(noise)])[: 4 * 1536 + 1024]
    whole = compress(data)
    (tmp_path / "a.tar").write_bytes(whole[:-cut])
    (tmp_path / "b.tar").write_bytes(archive([("x.jpg", b"x")]))
    found = read(tmp_path)
    images = [item.data for item in found if isinstance(item, Item) and item.source.startswith("a.tar/")]
    assert images == noise[: len(images)]
    assert names(found)[-1] == "b.tar/x.jpg"
    assert {name for name, _ in refused(found)} <= {"a.tar"}
    assert refused(found) or images == noise
    if compress is bytes:  # one block of the two of the end mark is enough
        assert len(images) == min(4, (len(whole) - cut + 124) // 1536)
        assert bool(refused(found)) == (cut > 512)


def test_tar__a_damaged_header_ends_the_archive_and_is_named(tmp_path: Path) -> None:
    data = bytearray(archive([("a.jpg", b"a"), ("b.jpg", b"b"), ("c.jpg", b"c")]))
    data[1024 + 130] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    found = read(tmp_path / "a.tar")
    assert names(found) == ["a.tar/a.jpg"]
    assert refused(found) == [("a.tar", Reason.BROKEN_ARCHIVE)]


def test_tar__one_that_is_none_is_refused_among_others_and_an_error_alone(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"GIF89a" * 200)
    with pytest.raises(SourceNotFoundError, match=r"a\.tar' is no tar archive"):
        read(tmp_path / "a.tar")
    with pytest.raises(SourceNotFoundError, match=r"b\.tar' does not exist"):
        read(tmp_path / "b.tar")
    (tmp_path / "b.tar").write_bytes(archive([("x.jpg", b"x")]))
    (tmp_path / "c.tar").write_bytes(b"")
    found = read(tmp_path)
    assert names(found) == ["b.tar/x.jpg"]
    assert refused(found) == [("a.tar", Reason.BROKEN_ARCHIVE), ("c.tar", Reason.BROKEN_ARCHIVE)]


def test_tar__patterns_name_archives_in_order_and_what_is_missing(tmp_path: Path) -> None:
    for number in (8, 10, 11):
        (tmp_path / f"s-{number:02d}.tar").write_bytes(archive([("x.jpg", b"x")]))
    found = read(tmp_path / "s-{08..10}.tar")
    assert names(found) == ["s-08.tar/x.jpg", "s-10.tar/x.jpg"]
    assert refused(found) == [("s-09.tar", Reason.UNREADABLE)]
    assert names(read(tmp_path / "s-*.tar")) == ["s-08.tar/x.jpg", "s-10.tar/x.jpg", "s-11.tar/x.jpg"]


def test_tar__a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("in/a.tar", "out.tar"):
        (tmp_path / name).write_bytes(archive([("x.jpg", name.encode())]))
    (tmp_path / "in/b.tar").symlink_to(tmp_path / "out.tar")
    found = read(tmp_path / "in")
    assert names(found) == ["a.tar/x.jpg"]
    assert refused(found) == [("b.tar", Reason.LINK_LEAVES_SOURCE)]


def test_tar__a_plain_one_is_cut_between_samples(tmp_path: Path) -> None:
    members = [(f"{number:04d}.{kind}", f"{number}{kind}".encode()) for number in range(600) for kind in ("cls", "jpg")]
    (tmp_path / "a.tar").write_bytes(archive(members, format=tarfile.PAX_FORMAT))
    source = TarSource(str(tmp_path / "a.tar"))
    units = list(source.units())
    assert [unit.items for unit in units] == [256, 256, 88]
    assert [len(list(source.read(unit))) for unit in units] == [256, 256, 88]
    found = [item for item in read(tmp_path / "a.tar") if isinstance(item, Item)]
    assert [(item.source, item.label, item.data.decode()) for item in found] == [
        (f"a.tar/{number:04d}.jpg", f"{number}cls", f"{number}jpg") for number in range(600)
    ]


def test_tar__an_expanding_one_stops(tmp_path: Path) -> None:
    class Zeros(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Buffer) -> int:
            view = memoryview(buffer)
            view[:] = bytes(len(view))
            return len(view)

    with gzip.open(tmp_path / "a.tar.gz", "wb", 1) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name in ("a.jpg", "b.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 80 * 2**20
            tar.addfile(info, Zeros())
    found = read(tmp_path / "a.tar.gz")
    assert names(found) == []
    assert refused(found) == [("a.tar.gz/a.jpg", Reason.TOO_MANY_BYTES), ("a.tar.gz", Reason.TOO_MANY_BYTES)]


def test_tar__numbers_of_members_and_refusals_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_module, "MAX_MEMBERS", 50)
    monkeypatch.setattr(tar_module, "MAX_REFUSED", 20)
    for members, named in (([("/", b"")] * 100, 21), ([("x.txt", b"")] * 100, 0)):
        (tmp_path / "a.tar").write_bytes(gzip.compress(archive(members)))
        found = refused(read(tmp_path / "a.tar"))
        assert len(found) == named + 1
        assert found[-1] == ("a.tar", Reason.TOO_MANY_MEMBERS)


@given(st.data())
def test_tar__any_bytes_are_read_without_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    good = archive(SAMPLES, format=data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])))[:9000]
    good = data.draw(st.sampled_from(COMPRESSIONS))(good)
    spans = st.tuples(st.integers(0, len(good)), st.integers(0, 600), st.binary(max_size=600))
    for at, length, filler in data.draw(st.lists(spans, min_size=1, max_size=4)):
        good = good[:at] + filler + good[at + length :]
    folder = tmp_path_factory.mktemp("tar")
    (folder / "a.tar").write_bytes(good)
    (folder / "b.tar").write_bytes(archive([("x.jpg", b"x")]))
    found = read(folder)
    assert names(found)[-1] == "b.tar/x.jpg"
    for item in found:
        assert item.source.partition("/")[0] in ("a.tar", "b.tar")
        if isinstance(item, Item):
            assert ".." not in item.source.split("/") and "\\" not in item.source.replace("\\x", "")
            assert item.place is None or item.place.fetch() == item.data


@given(st.lists(st.tuples(st.text(min_size=1, max_size=200), st.binary(max_size=2000)), max_size=8))
def test_tar__reads_what_python_writes(tmp_path_factory: pytest.TempPathFactory, members: Members) -> None:
    members = [(f"{number}/{name}", data) for number, (name, data) in enumerate(members) if data]
    members = [(name, data) for name, data in members if "\0" not in name and name.isprintable()]
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    path.write_bytes(archive(members, format=tarfile.PAX_FORMAT, errors="surrogatepass"))
    with tarfile.open(path) as tar:
        expected = {info.name: file.read() for info in tar if (file := tar.extractfile(info))}
    found = {item.source.removeprefix("a.tar/"): item for item in read(path)}
    for name, item in found.items():
        if isinstance(item, Item):
            assert expected[name] == item.data
    plain = {name for name in expected if name.rpartition("/")[2].isalnum() and name.isascii()}
    assert plain - {"license", "readme"} <= found.keys()


@pytest.mark.s3
def test_tar__on_s3(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heliostat.data.sources.files._WINDOW_BYTES", 4096)  # so that members span requests
    store = open_store(s3_root)
    members = [(f"{number}.jpg", bytes([number]) * 3000) for number in range(10)]
    store.put("in/a-0.tar", archive(members))
    store.put("in/a-1.tar.gz", gzip.compress(archive(members[:2])))
    store.put("in/a-2.tar", b"no tar at all")
    found = read(f"{s3_root}/in")
    assert len(names(found)) == 12 and refused(found) == [("a-2.tar", Reason.BROKEN_ARCHIVE)]
    assert [item.data for item in found if isinstance(item, Item)] == [data for _, data in members + members[:2]]
    places = [item.place for item in found if isinstance(item, Item) and item.place]
    assert [place.fetch() for place in places] == [data for _, data in members]
    assert names(read(f"{s3_root}/in/a-?.tar")) == names(found)[:10]
    missing = read(f"{s3_root}/in/a-{{1..1}}.tar.g{{z,Z}}")
    assert len(names(missing)) == 2
