import gzip
from pathlib import Path

import pytest

from heliostat.data.images import ImageLimits, Reason
from heliostat.data.sources.keys import KeysSource, PrefixSource
from heliostat.data.sources.lists import read_list
from heliostat.data.sources.source import Item, RefusedItem, Source
from heliostat.errors import (
    InvalidValueError,
    NoImagesError,
    ObjectNotFoundError,
    SourceNotFoundError,
    StoreDeniedError,
    StoreFailedError,
    StoreUnreachableError,
)
from heliostat.storage import open_store
from heliostat.storage.s3 import S3Store
from heliostat.storage.store import normalise_key


def read(source: Source, limits: ImageLimits | None = None) -> list[Item | RefusedItem]:
    return [item for unit in source.units() for item in source.read(unit, limits or ImageLimits())]


@pytest.mark.s3
def test_keys__a_list_of_objects(s3_root: str, tmp_path: Path) -> None:
    store = open_store(s3_root)
    for number in range(20):
        store.put(f"a/{number}.jpg", bytes([number]) * (number + 1))
    good = [f"{s3_root}/a/{number}.jpg" for number in range(20)]
    bucket = s3_root.rpartition("/")[0]
    bad = {
        f"{s3_root}/a/gone.jpg": Reason.UNREADABLE,
        f"{bucket}/../other/x": Reason.UNSAFE_NAME,
        "s3://NO/x": Reason.UNSAFE_NAME,
        "s3://user:password@bucket/x": Reason.UNSAFE_NAME,
        "https://a.org/x": Reason.FORBIDDEN_ADDRESS,
        "/etc/passwd": Reason.FORBIDDEN_ADDRESS,
    }
    (tmp_path / "keys.txt").write_text("\ufeff" + "\r\n".join(["# images", *good, "", *bad]))
    source = KeysSource(str(tmp_path / "keys.txt"))
    found = read(source)
    items = [item for item in found if isinstance(item, Item)]
    assert [(item.source, item.data) for item in items] == [
        (key, bytes([number]) * (number + 1)) for number, key in enumerate(good)
    ]
    assert all(item.place is not None and item.place.fetch() == item.data for item in items)
    assert [item.reason for item in found if isinstance(item, RefusedItem)] == list(bad.values())
    assert "password" not in repr(found)
    small = read(source, ImageLimits(max_bytes=10))
    assert [item.source for item in small if isinstance(item, Item)] == good[:10]
    refusals = [item for item in small if isinstance(item, RefusedItem)][:10]
    assert {item.reason for item in refusals} == {Reason.TOO_MANY_BYTES}
    assert "11 bytes, the limit is 10" in refusals[0].detail


@pytest.mark.s3
def test_keys__a_bucket_that_is_not_there_costs_its_lines_but_not_a_whole_unit(s3_root: str, tmp_path: Path) -> None:
    open_store(s3_root).put("a.jpg", b"1")
    lost = "s3://heliostat-no-such-bucket/x.jpg"
    for name, lines in {"some": [lost, f"{s3_root}/a.jpg", lost], "gone": [lost, f"{s3_root}/b.jpg"]}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    some, gone = (read(KeysSource(str(tmp_path / f"{name}.txt"))) for name in ("some", "gone"))
    assert [item.data for item in some if isinstance(item, Item)] == [b"1"]
    refused = [item for item in some if isinstance(item, RefusedItem)]
    assert [(item.source, item.reason) for item in refused] == [(lost, Reason.UNREADABLE)] * 2
    assert "there is no such bucket" in refused[0].detail
    assert {item.source for item in gone} == {lost, f"{s3_root}/b.jpg"}
    (tmp_path / "all.txt").write_text(f"s3://NO/x\n{lost}\n{lost}\n")
    with pytest.raises(StoreFailedError, match="there is no such bucket"):
        read(KeysSource(str(tmp_path / "all.txt")))


class DenyingStore:
    """A store that gives out nothing but the object ``open``."""

    def get(self, key: str, start: int, end: int) -> bytes:
        if key != "open":
            raise StoreDeniedError(f"{key} does not accept the credentials (AccessDenied)", "Check them")
        return b"1"


@pytest.mark.parametrize("at", [0, 99])
def test_keys__denied_objects_are_refused_unless_all_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr("heliostat.data.sources.keys.patient_store_at", lambda url: DenyingStore())
    lines = [f"s3://bucket/{number}" for number in range(99)]
    (tmp_path / "all.txt").write_text("\n".join([*lines, "/etc/passwd"]))
    with pytest.raises(StoreDeniedError):
        read(KeysSource(str(tmp_path / "all.txt")))
    lines.insert(at, "s3://bucket/open")
    (tmp_path / "some.txt").write_text("\n".join(lines))
    found = read(KeysSource(str(tmp_path / "some.txt")))
    assert sorted(item.source for item in found) == sorted(lines)
    assert sum(isinstance(item, Item) for item in found) == 1


@pytest.mark.parametrize("scheme", ["https://", "s3://", "S3://", "", "s3://bucket/../", "s3://bucket/"])
def test_keys__no_secret_of_an_address_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    class Empty:
        def get(self, key: str, start: int, end: int) -> bytes:
            normalise_key(key)
            raise ObjectNotFoundError(f"there is no object {key}", "Check the name")

    monkeypatch.setattr(
        "heliostat.data.sources.keys.patient_store_at",
        lambda url: Empty() if url == "s3://bucket" else open_store(url).patient(1),
    )
    user = "" if scheme.startswith("s3://bucket") else "user:canary@"
    (tmp_path / "k.txt").write_text(f"{scheme}{user}host/x.jpg?X-Amz-Signature=canary\n")
    (refused,) = read(KeysSource(str(tmp_path / "k.txt")))
    assert isinstance(refused, RefusedItem)
    assert "canary" not in repr(refused)


@pytest.mark.parametrize("first", ["https://user:canary@a.org/x?X-Amz-Signature=canary", "canary" * 20_000])
def test_read_list__a_table_without_names_does_not_show_its_first_line(tmp_path: Path, first: str) -> None:
    (tmp_path / "k.csv").write_text(f"{first},cat\n")
    with pytest.raises(InvalidValueError, match="first line of") as caught:
        list(read_list(str(tmp_path / "k.csv")))
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_read_list__a_line_without_end_is_named_and_not_held(tmp_path: Path, ending: str) -> None:
    long = "x" * 300_000
    (tmp_path / "k.txt").write_bytes(ending.join(["s3://b/1", long, "s3://b/2", long]).encode())
    entries = list(read_list(str(tmp_path / "k.txt")))
    assert [(entry.line, entry.address) for entry in entries] == [(1, "s3://b/1"), (2, ""), (3, "s3://b/2"), (4, "")]
    assert entries[1].fault == "is longer than 65,536 characters"


@pytest.mark.s3
def test_keys__a_table_on_s3_gives_labels(s3_root: str) -> None:
    store = open_store(s3_root)
    store.put("x, y.jpg", b"1")
    store.put("keys.csv", f'KEY,Label\n"{s3_root}/x, y.jpg",cat\n{s3_root}/x\n'.encode())
    found = read(KeysSource(f"{s3_root}/keys.csv"))
    assert [(item.label, item.data) for item in found if isinstance(item, Item)] == [("cat", b"1")]
    assert [(item.source, item.reason) for item in found if isinstance(item, RefusedItem)] == [
        (f"{s3_root}/keys.csv:3", Reason.UNREADABLE)
    ]


@pytest.mark.s3
def test_keys__all_below_a_prefix_as_in_a_folder(s3_root: str) -> None:
    store = open_store(s3_root)
    for key in ("in/cat/a.jpg", "in/b.jpg", "in/.hidden/c.jpg", "in/cat/notes.txt", "in/cat/README", "inside/d.jpg"):
        store.put(key, key.encode())
    found = [item for item in read(PrefixSource(f"{s3_root}/in/")) if isinstance(item, Item)]
    assert [(item.source, item.label) for item in found] == [
        (f"{s3_root}/in/b.jpg", None),
        (f"{s3_root}/in/cat/a.jpg", "cat"),
    ]


def test_keys__a_store_that_does_not_answer_is_no_fault_of_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    impatient = S3Store("bucket", retry_budget_s=0.1)
    monkeypatch.setattr("heliostat.data.sources.keys.patient_store_at", lambda url: impatient)
    (tmp_path / "keys.txt").write_text("s3://bucket/x\ns3://bucket/y\n")
    with pytest.raises(StoreUnreachableError):
        read(KeysSource(str(tmp_path / "keys.txt")))


def test_read_list__is_a_stream(tmp_path: Path) -> None:
    lines = "".join(f"s3://bucket/{number}\n" for number in range(100_000))
    (tmp_path / "keys.txt").write_text(lines)
    entries = read_list(str(tmp_path / "keys.txt"))
    assert [next(entries).address for _ in range(3)] == ["s3://bucket/0", "s3://bucket/1", "s3://bucket/2"]
    source = KeysSource(str(tmp_path / "keys.txt"))
    units = source.units()
    assert (next(units).items, next(units).index) == (256, 1)


def test_read_list__faulty_lines_of_a_table_are_named_and_skipped(tmp_path: Path) -> None:
    wide = "x" * 200_000
    (tmp_path / "k.csv").write_text(f"label,key\ncat,s3://b/1\nx\n\ncat,{wide}\n,s3://b/2\n")
    entries = list(read_list(str(tmp_path / "k.csv")))
    assert [(entry.address, entry.label) for entry in entries if not entry.fault] == [
        ("s3://b/1", "cat"),
        ("s3://b/2", None),
    ]
    assert [entry.line for entry in entries if entry.fault] == [3, 5]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("k.txt", None, SourceNotFoundError, "does not exist"),
        ("k.csv", b"a,b\n1,2\n", InvalidValueError, "names the columns 'a, b', none is key or url or path"),
        ("k.txt", b"# nothing\n\n", NoImagesError, "names no image"),
        ("k.txt", gzip.compress(b"s3://b/x", mtime=0), None, ""),
    ],
)
def test_keys__a_wrong_list_is_named(
    tmp_path: Path, name: str, content: bytes | None, error: type[Exception] | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    source = KeysSource(str(tmp_path / name))
    if error is None:
        assert {item.reason for item in read(source) if isinstance(item, RefusedItem)} == {Reason.FORBIDDEN_ADDRESS}
    else:
        with pytest.raises(error, match=message):
            read(source)
