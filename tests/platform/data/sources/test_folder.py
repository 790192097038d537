import os
import random
import subprocess
from pathlib import Path

import pytest

from heliostat.data.images import ImageLimits, Reason
from heliostat.data.sources.folder import FolderSource
from heliostat.data.sources.source import FilePlace, Item, RefusedItem, Unit
from heliostat.errors import InvalidValueError, NoImagesError, RejectedImageError, SourceNotFoundError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def read(folder: Path, labels: Path | None = None) -> list[Item | RefusedItem]:
    source = FolderSource(str(folder), None if labels is None else str(labels))
    return [item for unit in source.units() for item in source.read(unit)]


def items(found: list[Item | RefusedItem]) -> list[tuple[str, str | None]]:
    return [(item.source, item.label) for item in found if isinstance(item, Item)]


def refused(found: list[Item | RefusedItem]) -> list[tuple[str, Reason]]:
    return [(item.source, item.reason) for item in found if isinstance(item, RefusedItem)]


def test_folder__labels_by_the_first_level_and_sorts_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "dog/a.png", "cat/2024/b.jpg", "cat/a.jpg", "loose.webp", "cat-2/z")
    found = read(tmp_path)
    assert items(found) == [
        ("cat-2/z", "cat-2"),
        ("cat/2024/b.jpg", "cat"),
        ("cat/a.jpg", "cat"),
        ("dog/a.png", "dog"),
        ("loose.webp", None),
    ]
    assert all(isinstance(item, Item) and item.place and item.place.fetch() == item.data == b"x" for item in found)


def test_folder__is_sorted_by_whole_names_whatever_they_are(tmp_path: Path) -> None:
    draw = random.Random(5)
    words = ["a", "b", "a-", "a b", "a!", "B", "ä", "a.b", "a0"]
    names = ["/".join(draw.choices(words, k=draw.randint(1, 3))) + f"/{number}" for number in range(200)]
    touch(tmp_path, *names)
    assert [name for name, _ in items(read(tmp_path))] == sorted(names)


def test_folder__counts_hidden_files_and_companions_as_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", ".DS_Store", "x/.hidden.png", "x/Thumbs.db", "labels.CSV", "LICENSE", "README.md")
    touch(tmp_path, ".git/objects/ab")
    units = list(FolderSource(str(tmp_path)).units())
    assert items(read(tmp_path)) == [("a.jpg", None)]
    assert sum(unit.skipped for unit in units) == 6
    assert sum(unit.items or 0 for unit in units) == 1


def test_folder__leaves_files_with_odd_names_to_the_check_of_their_content(tmp_path: Path) -> None:
    touch(tmp_path, "a.exe", "b", "c.pdf")
    assert [name for name, _ in items(read(tmp_path))] == ["a.exe", "b", "c.pdf"]


def test_folder__links_stay_inside_or_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "outside/secret.png", "root/a/x.png")
    root = tmp_path / "root"
    (root / "out.png").symlink_to(tmp_path / "outside" / "secret.png")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "in.png").symlink_to(root / "a" / "x.png")
    (root / "in").symlink_to(root / "a")
    (root / "loop").symlink_to(root)
    (root / "gone.png").symlink_to(root / "nothing.png")
    (root / "circle.png").symlink_to(root / "circle.png")
    found = read(root)
    assert items(found) == [("a/x.png", "a"), ("in.png", None)]
    assert refused(found) == [
        ("circle.png", Reason.UNREADABLE),
        ("gone.png", Reason.UNREADABLE),
        ("out", Reason.LINK_LEAVES_SOURCE),
        ("out.png", Reason.LINK_LEAVES_SOURCE),
    ]


def test_folder__a_file_that_became_a_link_is_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "root/a.png", "secret.png")
    source = FolderSource(str(tmp_path / "root"))
    (unit,) = source.units()
    (tmp_path / "root" / "a.png").unlink()
    (tmp_path / "root" / "a.png").symlink_to(tmp_path / "secret.png")
    assert refused(list(source.read(unit))) == [("a.png", Reason.UNREADABLE)]


def test_folder__may_be_reached_through_a_link_itself(tmp_path: Path) -> None:
    touch(tmp_path, "real/a/x.png")
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    assert items(read(tmp_path / "alias")) == [("a/x.png", "a")]


def test_folder__never_opens_a_pipe(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (refusal,) = (item for item in read(tmp_path) if isinstance(item, RefusedItem))
    assert refusal == RefusedItem("pipe.jpg", Reason.NOT_A_FILE, "this is a device, a pipe or a socket")


def test_folder__takes_names_that_are_not_unicode(tmp_path: Path) -> None:
    touch(tmp_path, f"{os.fsdecode(b'caf' + bytes([0xE9]))}/a.jpg")
    assert items(read(tmp_path)) == [(r"caf\xe9/a.jpg", r"caf\xe9")]


def test_folder__is_deep_without_recursion(tmp_path: Path) -> None:
    deep = "/".join(["d"] * 1500)
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(1500):  # a path of this length can only be made step by step
            os.mkdir("d", dir_fd=here)
            here, before = os.open("d", os.O_RDONLY, dir_fd=here), here
            os.close(before)
        os.close(os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        assert [name for name, _ in items(read(tmp_path))] == [f"{deep}/x"]
    finally:
        os.close(here)
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # too deep for the clean-up of pytest


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"HS-DATA-002: .* holds no image: it is empty"),
        (["a.txt", "sub/b.TXT", "c.json"], r"holds no image: it holds 2 \.txt files, 1 \.json file\. "),
    ],
)
def test_folder__without_images_says_what_it_holds(tmp_path: Path, names: list[str], message: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(NoImagesError, match=message):
        next(FolderSource(str(tmp_path)).units())


def test_folder__of_refused_files_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "outside.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "x.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(NoImagesError, match=r"all that it holds is refused, 'x\.png' as link-leaves-source"):
        next(FolderSource(str(tmp_path / "root")).units())


def test_folder__a_missing_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"HS-DATA-001: the source '.*/photos' does not exist"):
        next(FolderSource(str(tmp_path / "photos")).units())
    touch(tmp_path, "a.jpg")
    with pytest.raises(SourceNotFoundError, match=r"a\.jpg' is not a folder"):
        next(FolderSource(str(tmp_path / "a.jpg")).units())


def test_folder__byte_limit_applies_before_reading(tmp_path: Path) -> None:
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(2**40)
    touch(tmp_path, "small.jpg")
    assert refused(read(tmp_path)) == [("huge.jpg", Reason.TOO_MANY_BYTES)]


def test_folder__place_is_checked_against_the_limit(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    place = FilePlace(path=bytes(tmp_path / "a.jpg"), size=10)
    with pytest.raises(RejectedImageError, match="10 bytes"):
        place.fetch(ImageLimits(max_bytes=9))


def test_folder__units_are_bounded_stable_and_go_through_json(tmp_path: Path) -> None:
    touch(tmp_path, *(f"c{number % 3}/{number:04d}.png" for number in range(600)))
    source = FolderSource(str(tmp_path))
    units = list(source.units())
    assert [unit.index for unit in units] == list(range(len(units)))
    assert [unit.items for unit in units] == [256, 256, 88]
    assert list(source.units()) == units
    again = [Unit.model_validate_json(unit.model_dump_json()) for unit in units]
    assert [item for unit in again for item in source.read(unit)] == read(tmp_path)


def test_folder__units_are_listed_while_they_are_used(tmp_path: Path) -> None:
    touch(tmp_path, *(f"a/{number:04d}.png" for number in range(300)), "b/x.png")
    units = FolderSource(str(tmp_path)).units()
    next(units)
    touch(tmp_path, "b/y.png")  # not seen yet: its folder has not been opened
    assert [unit.items for unit in units] == [46]


def test_folder__fingerprint_changes_with_content_and_labels_only(tmp_path: Path) -> None:
    root, labels = tmp_path / "root", tmp_path / "labels.csv"
    touch(root, "a.png", "b.png")
    labels.write_text("path,label\na.png,x\n")

    def fingerprint() -> str:
        (unit,) = FolderSource(str(root), str(labels)).units()
        return unit.fingerprint

    before = fingerprint()
    labels.write_text("label,path\nx,./a.png\n")
    assert fingerprint() == before
    labels.write_text("path,label\na.png,y\n")
    relabelled = fingerprint()
    (root / "b.png").write_bytes(b"y!")
    assert len({before, relabelled, fingerprint()}) == 3


def test_folder__labels_of_a_file(tmp_path: Path) -> None:
    root, labels = tmp_path / "root", tmp_path / "labels.csv"
    touch(root, "cat/a.png", "cat/b, c.png", "d.png")
    labels.write_text('path,label,split\ncat/a.png,tabby,train\n"cat/b, c.png",lynx,test\ngone.png,lynx,test\n')
    found = read(root, labels)
    assert items(found) == [("cat/a.png", "tabby"), ("cat/b, c.png", "lynx"), ("d.png", None)]
    assert refused(found) == [("gone.png", Reason.UNREADABLE)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,cat\n", r"names the columns 'a\.png, cat', none is path"),
        ("path,label\na.png\n", "line 2 of .* has 1 columns"),
        ("path\na.png\n", "line 2 of .* has no label"),
        ("path,label\na.png,x\n./a.png,y\n", "line 3 of .* gives 'a.png' a second label, 'y'"),
        ("", "names the columns ''"),
    ],
)
def test_folder__a_wrong_file_of_labels_is_named(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, "root/a.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InvalidValueError, match=message):
        read(tmp_path / "root", tmp_path / "labels.csv")
