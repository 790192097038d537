import os
from pathlib import Path

import pytest

from heliostat.data.images import Reason
from heliostat.data.sources import RefusedFile, list_folder
from heliostat.errors import NoImagesError, SourceNotFoundError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_list_folder__labels_by_the_first_level_and_sorts_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "dog/a.png", "cat/2024/b.jpg", "cat/a.jpg", "loose.webp", "cat-2/z")
    listing = list_folder(tmp_path)
    assert [(item.source, item.label) for item in listing.items] == [
        ("cat-2/z", "cat-2"),
        ("cat/2024/b.jpg", "cat"),
        ("cat/a.jpg", "cat"),
        ("dog/a.png", "dog"),
        ("loose.webp", None),
    ]
    assert all(Path(os.fsdecode(item.path)).read_bytes() == b"x" for item in listing.items)
    assert listing.refused == ()


def test_list_folder__skips_and_counts_hidden_files_and_companions(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", ".DS_Store", "x/.hidden.png", "x/Thumbs.db", "labels.CSV", "LICENSE", "README.md")
    touch(tmp_path, ".git/objects/ab")
    listing = list_folder(tmp_path)
    assert [item.source for item in listing.items] == ["a.jpg"]
    assert listing.skipped == 6


def test_list_folder__leaves_files_with_odd_names_to_the_check_of_their_content(tmp_path: Path) -> None:
    touch(tmp_path, "a.exe", "b", "c.pdf")
    assert [item.source for item in list_folder(tmp_path).items] == ["a.exe", "b", "c.pdf"]


def test_list_folder__links_stay_inside_or_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "outside/secret.png", "root/a/x.png")
    root = tmp_path / "root"
    (root / "out.png").symlink_to(tmp_path / "outside" / "secret.png")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "in.png").symlink_to(root / "a" / "x.png")
    (root / "in").symlink_to(root / "a")
    (root / "loop").symlink_to(root)
    (root / "gone.png").symlink_to(root / "nothing.png")
    (root / "circle.png").symlink_to(root / "circle.png")
    listing = list_folder(root)
    assert [item.source for item in listing.items] == ["a/x.png", "in.png"]
    assert [(file.source, file.reason) for file in listing.refused] == [
        ("circle.png", Reason.UNREADABLE),
        ("gone.png", Reason.UNREADABLE),
        ("out", Reason.LINK_LEAVES_SOURCE),
        ("out.png", Reason.LINK_LEAVES_SOURCE),
    ]


def test_list_folder__may_be_reached_through_a_link_itself(tmp_path: Path) -> None:
    touch(tmp_path, "real/a/x.png")
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    assert [item.source for item in list_folder(tmp_path / "alias").items] == ["a/x.png"]


def test_list_folder__never_opens_a_pipe(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert list_folder(tmp_path).refused == (
        RefusedFile("pipe.jpg", Reason.NOT_A_FILE, "this is a device, a pipe or a socket"),
    )


def test_list_folder__takes_names_that_are_not_unicode(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    touch(tmp_path, f"{name}/a.jpg")
    (item,) = list_folder(tmp_path).items
    assert (item.source, item.label) == (r"caf\xe9/a.jpg", r"caf\xe9")
    assert Path(os.fsdecode(item.path)).read_bytes() == b"x"


def test_list_folder__a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"HS-DATA-001: the source '.*/photos' does not exist"):
        list_folder(tmp_path / "photos")


def test_list_folder__a_file_is_no_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    with pytest.raises(SourceNotFoundError, match=r"a\.jpg' is not a folder"):
        list_folder(tmp_path / "a.jpg")


def test_list_folder__an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoImagesError, match=r"HS-DATA-002: .* holds no image: it is empty"):
        list_folder(tmp_path)


def test_list_folder__a_folder_of_texts_says_what_it_holds(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "sub/b.TXT", "c.json")
    with pytest.raises(NoImagesError, match=r"holds no image: it holds 2 \.txt files, 1 \.json file\. "):
        list_folder(tmp_path)


def test_list_folder__a_folder_of_refused_files_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "outside.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "x.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(NoImagesError, match=r"all that it holds is refused, 'x\.png' as link-leaves-source"):
        list_folder(tmp_path / "root")
