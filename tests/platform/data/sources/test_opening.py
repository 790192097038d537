import pickle
from pathlib import Path

import pytest

from heliostat.data.sources import Source, open_source
from heliostat.data.sources.files import expand_braces
from heliostat.data.sources.folder import FolderSource
from heliostat.data.sources.keys import KeysSource, PrefixSource
from heliostat.data.sources.parquet import ParquetSource
from heliostat.data.sources.tar import TarSource
from heliostat.data.sources.urls import UrlSource
from heliostat.errors import HeliostatError, InvalidValueError, NoImagesError, SourceNotFoundError
from heliostat.storage import open_store


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        "photos/a/x.jpg",
        "tars/README.md",
        "tars/a/1.tar",
        "tables/data/t.parquet",
        "empty/.git/x.tar",
        "x.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "keys.txt").write_text("\n# x\ns3://bucket/x\n")
    (tmp_path / "keys.csv").write_text("key,label\ns3://bucket/x,a\n")
    (tmp_path / "urls.txt").write_text("https://a.org/x\n")
    (tmp_path / "odd.txt").write_text("/etc/passwd\n")
    (tmp_path / "none.txt").write_text("\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("photos", FolderSource),
        ("photos/", FolderSource),
        ("empty", FolderSource),
        ("tars", TarSource),
        ("tars/a/1.tar", TarSource),
        ("x-{00..10}.tar.gz", TarSource),
        ("x-*.TGZ", TarSource),
        ("s3://bucket/x.tar", TarSource),
        ("tables", ParquetSource),
        ("tables/data/*.parquet", ParquetSource),
        ("s3://bucket/*/x.parquet", ParquetSource),
        ("keys.txt", KeysSource),
        ("keys.csv", KeysSource),
        ("urls.txt", UrlSource),
    ],
)
def test_open_source__chooses_by_what_lies_there(here: Path, text: str, kind: type[Source]) -> None:
    source = open_source(text, allow_urls=True)
    assert type(source) is kind
    assert source.description == text
    assert pickle.loads(pickle.dumps(source)) == source


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("gone", SourceNotFoundError, "HS-DATA-001: the source 'gone' does not exist"),
        ("x.jpg", SourceNotFoundError, "is a file of no known kind"),
        ("gone.txt", SourceNotFoundError, "does not exist"),
        ("none.txt", NoImagesError, "names no image"),
        ("odd.txt", SourceNotFoundError, "neither s3://bucket/key nor https://host/path"),
        ("https://user:secret@a.org/list.txt", SourceNotFoundError, "the source https://… is neither"),
        ("urls.txt", InvalidValueError, r"lists https addresses, which are fetched only on request. Add --allow-urls"),
        ("a\0b", SourceNotFoundError, "does not exist"),
        ("x" * 5000, SourceNotFoundError, "cannot be read"),
        ("s3://bucket/x-*", SourceNotFoundError, "ends in no known kind"),
        ("", SourceNotFoundError, "the source '' does not exist"),
    ],
)
def test_open_source__says_what_is_wrong(here: Path, text: str, error: type[HeliostatError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        open_source(text)
    assert "secret" not in str(caught.value)


def test_open_source__labels_go_with_folders_only(here: Path) -> None:
    assert open_source("photos", labels=here / "l.csv") == FolderSource("photos", str(here / "l.csv"))
    with pytest.raises(InvalidValueError, match="goes with a folder of images, and 'tars' is none"):
        open_source("tars", labels=here / "l.csv")


def test_open_source__one_archive_makes_no_archives_of_photographs(here: Path) -> None:
    for name in ("a.tar", "b.jpg", "c.parquet"):
        (here / "photos/a" / name).write_bytes(b"x")
    for name in ("1.idx", "1.tar"):
        (here / "tars" / name).write_bytes(b"x")
    source = open_source("photos")
    assert source == FolderSource("photos")
    found = [item for unit in source.units() for item in source.read(unit)]
    assert [item.source for item in found] == [
        "a/a.tar",
        "a/b.jpg",
        "a/c.parquet",
        "a/x.jpg",
    ]  # the decoder refuses them
    assert isinstance(open_source("tars"), TarSource)  # an index is no photograph
    (here / "tars/2.parquet").write_bytes(b"x")
    with pytest.raises(InvalidValueError, match="holds both tar archives and Parquet files"):
        open_source("tars")


@pytest.mark.s3
def test_open_source__on_s3_by_the_first_object(s3_root: str) -> None:
    store = open_store(s3_root)
    for key in ("a/README.md", "a/x/1.tar", "b/x.parquet", "c/x.jpg", "e/a.tar", "e/b.png", "f/a/1.tar", "f/b/1.jpg"):
        store.put(key, b"")
    kinds = {key: type(open_source(f"{s3_root}/{key}")) for key in "abcef"}
    assert kinds == {"a": TarSource, "b": ParquetSource, "c": PrefixSource, "e": PrefixSource, "f": TarSource}
    with pytest.raises(SourceNotFoundError, match="does not exist"):
        open_source(f"{s3_root}/d")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{008..011}.tar", ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("{x,}.tar", ["x.tar", ".tar"]),
        ("{3..1}", []),
        ("a{b}c{", ["a{b}c{"]),
    ],
)
def test_expand_braces__as_a_shell_does(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["{0..999999999}", "{0..999}{0..999}{0..999}", "{a,b}" * 30])
def test_expand_braces__is_bounded(pattern: str) -> None:
    with pytest.raises(SourceNotFoundError, match="more than 1,000,000 files"):
        expand_braces(pattern)
