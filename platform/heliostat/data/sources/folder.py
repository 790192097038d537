"""Folder trees of images: which files are candidates, under which names, with which labels.

Labels come from the first folder level: ``photos/cat/2024/x.jpg`` below ``photos`` has the label ``cat``, and so has
``photos/cat/y.png``; images directly in the root have none. Or they come from a CSV file with the columns ``path``
(below the root) and ``label``; then files that it does not name have none.

Whether a file is an image is decided by its content, later. Only files that commonly accompany images are left out by
name. Nothing outside the root is ever read: links that lead out of it are refused, and so is everything that is no
regular file (opening a named pipe would wait for ever).
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import ConfigDict

from heliostat.config.base import Section
from heliostat.data.images import DEFAULT_LIMITS, ImageLimits, Reason, too_many_bytes
from heliostat.data.sources.lists import read_labels
from heliostat.data.sources.names import LINK_LEAVES, cause_of, first_level, is_companion, text_of
from heliostat.data.sources.source import (
    FilePlace,
    Item,
    RefusedItem,
    Source,
    Unit,
    cut,
    open_regular,
    read_range,
)
from heliostat.errors import NoImagesError, SourceNotFoundError


class _File(Section):
    """A candidate. ``path`` is its place below the root as the file system knows it."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    path: bytes
    source: str
    label: str | None
    size: int
    mtime_ns: int


class _Refused(Section):
    source: str
    reason: Reason
    detail: str


class _Spec(Section):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    root: bytes
    files: tuple[_File | _Refused, ...]


@dataclass(frozen=True)
class FolderSource(Source):
    """The images below a folder; ``labels`` is the path of a CSV file, which is held in memory while listing."""

    folder: str
    labels: str | None = None

    @property
    def description(self) -> str:
        """The folder as it was named."""
        return self.folder if self.labels is None else f"{self.folder} with labels of {self.labels}"

    def units(self) -> Iterator[Unit]:
        """See ``Source.units``. Holds the names of one folder at a time; sorted by their whole names."""
        root = _root(self.folder)
        walk = _Walk(root, None if self.labels is None else read_labels(self.labels))
        index = 0
        for files in cut(walk, lambda file: file.size if isinstance(file, _File) else 0):
            if walk.finished and not walk.candidates:
                break
            yield Unit.of(index, _Spec(root=root, files=files), len(files), walk.take_skipped())
            index += 1
        if not walk.candidates:
            fact = f"the source {self.folder!r} holds no image: {walk.instead()}"
            raise NoImagesError(fact, "Give a folder that holds JPEG, PNG or WebP files")
        if skipped := walk.take_skipped():
            yield Unit.of(index, _Spec(root=root, files=()), 0, skipped)

    def read(self, unit: Unit, limits: ImageLimits = DEFAULT_LIMITS) -> Iterator[Item | RefusedItem]:
        """See ``Source.read``."""
        spec = _Spec.model_validate_json(unit.spec)
        for file in spec.files:
            if isinstance(file, _Refused):
                yield RefusedItem(file.source, file.reason, file.detail)
            else:
                yield _read(file, spec.root + b"/" + file.path, limits)


def _root(folder: str) -> bytes:
    root = Path(folder)
    try:
        is_folder, exists = root.is_dir(), root.exists()
    except OSError as error:  # a name that is too long, say
        raise SourceNotFoundError(f"the source {folder!r} cannot be read: {error.strerror}", "Check it") from error
    if not is_folder:
        fact = "is not a folder" if exists else "does not exist"
        raise SourceNotFoundError(f"the source {folder!r} {fact}", "Give a folder that holds images")
    return os.fsencode(root.resolve())


class _Walk:
    """One pass over a tree; counts what it leaves out."""

    def __init__(self, root: bytes, labels: dict[str, str] | None) -> None:
        self._root = root
        self._labels = labels
        self._skipped = 0
        self._kinds: Counter[str] = Counter()
        self._first_refused: _Refused | None = None
        self.candidates = 0
        self.finished = False

    def __iter__(self) -> Iterator[_File | _Refused]:
        folders = [self._entries(b"")]
        while folders:
            path, entry = next(folders[-1], (b"", None))
            if entry is None:
                folders.pop()
            elif isinstance(entry, _Refused):
                yield self._counted(entry)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(self._entries(path + b"/"))
            elif (file := self._sort_out(path, entry)) is not None:
                yield self._counted(file)
        for name in self._labels or ():  # those of files have been taken out
            yield self._counted(
                _Refused(source=name, reason=Reason.UNREADABLE, detail="only the file of labels has it")
            )
        self.finished = True

    def take_skipped(self) -> int:
        """Files left out since the last call."""
        skipped, self._skipped = self._skipped, 0
        return skipped

    def instead(self) -> str:
        """What a tree without candidates holds, for people."""
        if self._first_refused:
            return f"all that it holds is refused, {self._first_refused.source!r} as {self._first_refused.reason}"
        if not self._kinds:
            return "it is empty"
        kinds = self._kinds.most_common(5)
        return "it holds " + ", ".join(f"{count} {kind} file{'s'[: count > 1]}" for kind, count in kinds)

    def _counted(self, file: _File | _Refused) -> _File | _Refused:
        if isinstance(file, _File):
            self.candidates += 1
        else:
            self._first_refused = self._first_refused or file
        return file

    def _entries(self, folder: bytes) -> Iterator[tuple[bytes, "os.DirEntry[bytes] | _Refused"]]:
        """What lies directly in a folder. A folder sorts as the names of its files do: by its name and a slash."""
        try:
            with os.scandir(self._root + b"/" + folder) as scan:
                entries = list(scan)
        except OSError as error:
            yield folder, _Refused(source=text_of(folder).rstrip("/"), reason=Reason.UNREADABLE, detail=cause_of(error))
            return
        folders = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        entries.sort(key=lambda entry: text_of(entry.name) + "/" * (entry.name in folders))
        for entry in entries:
            if not (entry.name.startswith(b".") and entry.name in folders):
                yield folder + entry.name, entry

    def _sort_out(self, path: bytes, entry: "os.DirEntry[bytes]") -> _File | _Refused | None:
        if is_companion(text_of(entry.name)):
            self._skip(entry.name)
            return None
        source = text_of(path)
        label = first_level(source) if self._labels is None else self._labels.pop(source, None)
        try:
            real, status = self._followed(path) if entry.is_symlink() else (path, entry.stat(follow_symlinks=False))
        except (OSError, RuntimeError) as error:  # dangling, forbidden, or a circle of links
            return _Refused(source=source, reason=Reason.UNREADABLE, detail=cause_of(error))
        if real is None:
            return _Refused(source=source, reason=Reason.LINK_LEAVES_SOURCE, detail=LINK_LEAVES)
        if stat.S_ISDIR(status.st_mode):  # a link inside the tree: its files are met at their own place
            self._skip(entry.name)
            return None
        if not stat.S_ISREG(status.st_mode):
            return _Refused(source=source, reason=Reason.NOT_A_FILE, detail="this is a device, a pipe or a socket")
        return _File(path=real, source=source, label=label, size=status.st_size, mtime_ns=status.st_mtime_ns)

    def _followed(self, path: bytes) -> tuple[bytes | None, os.stat_result]:
        """Where a link leads, below the root; ``None`` if it is elsewhere."""
        root = Path(os.fsdecode(self._root))
        real = (root / os.fsdecode(path)).resolve(strict=True)
        below = os.fsencode(real.relative_to(root)) if real.is_relative_to(root) else None
        return below, real.stat()

    def _skip(self, name: bytes) -> None:
        self._skipped += 1
        self._kinds[PurePosixPath(text_of(name).lower()).suffix or "other"] += 1


def _read(file: _File, path: bytes, limits: ImageLimits) -> Item | RefusedItem:
    try:
        with open_regular(path) as descriptor:
            size = os.fstat(descriptor).st_size
            if size > limits.max_bytes:
                return RefusedItem(file.source, Reason.TOO_MANY_BYTES, too_many_bytes(size, limits).fact)
            data = read_range(descriptor, 0, size)
    except OSError as error:
        return RefusedItem(file.source, Reason.UNREADABLE, cause_of(error))
    return Item(file.source, file.label, data, FilePlace(path=path, size=len(data)))
