"""Folder trees of images: which files are candidates, under which names, with which labels.

Labels come from the first folder level: ``photos/cat/2024/x.jpg`` below ``photos`` has the label ``cat``, and so has
``photos/cat/y.png``. Images directly in the root have none. For a tree with splits (``train/cat``, ``test/cat``),
ingest each split as a dataset of its own.

Whether a file is an image is decided by its content, later. Only files that commonly accompany images are left out by
name. Nothing outside the root is ever read: links that lead out of it are refused, and so is everything that is no
regular file (opening a named pipe would wait for ever).
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from heliostat.data.images import Reason
from heliostat.errors import NoImagesError, SourceNotFoundError

_COMPANION_SUFFIXES = frozenset({".csv", ".json", ".md", ".txt"})
_COMPANION_NAMES = frozenset({"desktop.ini", "license", "readme", "thumbs.db"})


@dataclass(frozen=True, slots=True)
class SourceItem:
    """A file that may be an image.

    ``source`` is its path below the root as text, the name under which it is reported; ``path`` its place as the file
    system knows it, which need not be valid in any encoding.
    """

    path: bytes
    source: str
    label: str | None


@dataclass(frozen=True, slots=True)
class RefusedFile:
    """A file that is not even opened, with the reason."""

    source: str
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class FolderListing:
    """What a folder holds, sorted by ``source``; ``skipped`` counts hidden files and companions of images."""

    folder: str
    items: tuple[SourceItem, ...]
    refused: tuple[RefusedFile, ...]
    skipped: int


def list_folder(folder: str | Path) -> FolderListing:
    """All candidates below a folder.

    Raises:
        SourceNotFoundError: the folder does not exist or is something else.
        NoImagesError: there is no candidate in it.
    """
    root = Path(folder)
    try:
        is_folder, exists = root.is_dir(), root.exists()
    except OSError as error:  # a name that is too long, say
        raise SourceNotFoundError(f"the source {str(folder)!r} cannot be read: {error.strerror}", "Check it") from error
    if not is_folder:
        fact = "is not a folder" if exists else "does not exist"
        raise SourceNotFoundError(f"the source {str(folder)!r} {fact}", "Give a folder that holds images")
    root = root.resolve()
    listing = _Walk(root).listing(str(folder))
    if not listing.items:
        fact = f"the source {str(folder)!r} holds no image: {_found(root, listing)}"
        raise NoImagesError(fact, "Give a folder that holds JPEG, PNG or WebP files")
    return listing


class _Walk:
    """One pass over a tree."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._items: list[SourceItem] = []
        self._refused: list[RefusedFile] = []
        self._skipped = 0

    def listing(self, folder: str) -> FolderListing:
        for path in _files(self._root, self._refuse_folder):
            if _is_companion(path.name):
                self._skipped += 1
            else:
                self._sort_out(path)
        items = sorted(self._items, key=lambda item: item.source)
        refused = sorted(self._refused, key=lambda file: file.source)
        return FolderListing(folder, tuple(items), tuple(refused), self._skipped)

    def _sort_out(self, path: Path) -> None:
        source = self._name(path)
        try:
            real = path.resolve(strict=True)
            mode = real.stat().st_mode
        except (OSError, RuntimeError) as error:  # dangling, forbidden, or a circle of links
            self._refuse(source, Reason.UNREADABLE, _cause(error))
            return
        if not real.is_relative_to(self._root):
            self._refuse(source, Reason.LINK_LEAVES_SOURCE, "the link leads out of the source folder")
        elif stat.S_ISDIR(mode):  # a link inside the tree: its files are met at their own place
            self._skipped += 1
        elif not stat.S_ISREG(mode):
            self._refuse(source, Reason.NOT_A_FILE, "this is a device, a pipe or a socket")
        else:
            self._items.append(SourceItem(os.fsencode(real), source, _label(source)))

    def _refuse(self, source: str, reason: Reason, detail: str) -> None:
        self._refused.append(RefusedFile(source, reason, detail))

    def _refuse_folder(self, error: OSError) -> None:
        self._refuse(self._name(Path(error.filename)), Reason.UNREADABLE, _cause(error))

    def _name(self, path: Path) -> str:
        """The path below the root as text that any file can hold: file names need not be valid UTF-8."""
        return os.fsencode(path.relative_to(self._root).as_posix()).decode("utf-8", "backslashreplace")


def _files(root: Path, on_error: Callable[[OSError], None]) -> Iterator[Path]:
    """Everything below ``root`` that is no folder, and links to folders, without hidden folders."""
    for folder, folders, files in os.walk(root, onerror=on_error):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(folder)
        yield from (here / name for name in files)
        yield from (here / name for name in folders if (here / name).is_symlink())


def _is_companion(name: str) -> bool:
    lowered = name.lower()
    return name.startswith(".") or lowered in _COMPANION_NAMES or PurePosixPath(lowered).suffix in _COMPANION_SUFFIXES


def _label(source: str) -> str | None:
    parts = source.split("/")
    return parts[0] if len(parts) > 1 else None


def _cause(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _found(root: Path, listing: FolderListing) -> str:
    """What a folder without candidates holds instead, for people."""
    if listing.refused:
        return f"all that it holds is refused, {listing.refused[0].source!r} as {listing.refused[0].reason}"
    kinds = Counter(path.suffix.lower() or "other" for path in _files(root, lambda error: None))
    if not kinds:
        return "it is empty"
    return "it holds " + ", ".join(f"{count} {kind} file{'s'[: count > 1]}" for kind, count in kinds.most_common(5))
