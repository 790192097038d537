"""Files of a source, local or on S3, addressed alike: found by pattern, opened as seekable streams.

A file is a ``Place`` that covers all of it, a name, and a stamp that changes when the file does.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING

from heliostat.config.base import Section
from heliostat.data.sources.names import LINK_LEAVES, is_companion, text_of
from heliostat.data.sources.source import FilePlace, ObjectPlace, Place, open_regular, patient_store_at, store_at
from heliostat.errors import ObjectNotFoundError, SourceNotFoundError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

S3 = "s3://"
MISSING = "missing"
_OUTSIDE = "outside"
_WINDOW_BYTES = 8 * 2**20
"""What one request to a store asks for: long against its latency, short against the memory of a task."""
_STAMP_BYTES = 4096
_MAX_EXPANDED = 1_000_000
_BRACES = re.compile(r"\{(?:(\d{1,9})\.\.(\d{1,9})|([^{}/]*,[^{}/]*))\}")
_MAGIC = re.compile(r"[*?\[]")


class SourceFile(Section):
    """A file of a source. ``name`` is how it is reported; ``stamp`` changes with its content, as far as can be told."""

    name: str
    place: Place
    stamp: str

    @property
    def is_outside(self) -> bool:
        """Whether it is a link that leads out of the folder that was named: it is never opened."""
        return self.stamp == _OUTSIDE

    @property
    def fault(self) -> str | None:
        """Why it must not or cannot be opened."""
        return LINK_LEAVES if self.is_outside else "does not exist" if self.stamp == MISSING else None


def find_files(text: str) -> Iterator[SourceFile]:
    """The files that a path or an ``s3://`` address stands for: one file, a folder's, or those of a pattern, in order.

    Patterns have wildcards (``*``, ``?``, ``[…]``) or braces (``{000..010}``, ``{a,b}``). Hidden files are left out of
    folders. What is named without wildcards but is not there comes with the stamp ``missing``. Links are followed, but
    for those in a folder that lead out of it: they come marked (``is_outside``).

    Raises:
        SourceNotFoundError: there is none, or too many.
        StorageError: the store does not cooperate.
    """
    found = _objects(text) if text.startswith(S3) else _local_files(text)
    first = next(found, None)
    if first is None:
        raise SourceNotFoundError(f"the source {text!r} holds no file", "Check the name")
    yield from chain([first], found)


def is_pattern(text: str) -> bool:
    """Whether a text may stand for several files: with braces or wildcards."""
    return bool(_MAGIC.search(text) or _BRACES.search(text))


def one_file(name: str) -> SourceFile:
    """A single file by its path or ``s3://`` address; stamped ``missing`` if it is not there.

    Raises:
        StorageError: the store does not cooperate.
    """
    if not name.startswith(S3):
        return _local_file(Path(name), name)
    store_url, key = split_address(name)
    size = _size(store_url, key)
    if size is None:
        return SourceFile(name=name, place=ObjectPlace(store=store_url, key=key, size=0), stamp=MISSING)
    return _object(store_url, key, size, name)


def expand_braces(pattern: str) -> list[str]:
    """``a-{08..10}.tar`` as ``a-08.tar``, ``a-09.tar``, ``a-10.tar``; ``{x,y}`` as either.

    Raises:
        SourceNotFoundError: that would be more than a million names.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    tails = expand_braces(pattern[match.end() :])
    first, last, words = match.groups()
    numbers = range(0) if words else range(int(first), int(last) + 1)
    if max(len(numbers), 1) * len(tails) > _MAX_EXPANDED:
        raise SourceNotFoundError(f"{pattern!r} stands for more than {_MAX_EXPANDED:,} files", "Give their folder")
    choices = words.split(",") if words else [f"{number:0{len(first)}}" for number in numbers]
    return [f"{pattern[: match.start()]}{choice}{tail}" for choice in choices for tail in tails]


@contextmanager
def open_file(place: FilePlace | ObjectPlace) -> Iterator[IO[bytes]]:
    """A whole file as a seekable stream; of an object, some 8 MiB are in memory.

    Raises:
        OSError: it is no regular file or cannot be read.
        StorageError: the object is gone, or the store does not cooperate. Also while reading.
    """
    if isinstance(place, FilePlace):
        with open_regular(place.path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
            yield file
    else:
        with io.BufferedReader(_ObjectReader(place), _WINDOW_BYTES) as stream:
            yield stream


def split_address(address: str) -> tuple[str, str]:
    """``s3://bucket/a/b`` as the URL of the bucket's store and the key in it."""
    bucket, _, key = address.removeprefix(S3).partition("/")
    return S3 + bucket, key


class _ObjectReader(io.RawIOBase):
    """Ranges of an object, as a file."""

    def __init__(self, place: ObjectPlace) -> None:
        self._place = place
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._place.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._at + len(view), self._place.size)
        if end <= self._at:
            return 0
        data = patient_store_at(self._place.store).get(self._place.key, self._at, end)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def _base(pattern: str) -> str:
    """The part of a pattern that is a folder without wildcards, with its last slash."""
    magic = re.search(r"[*?\[{]", pattern)
    return pattern[: pattern.rfind("/", 0, magic.start() if magic else None) + 1]


def _local_files(text: str) -> Iterator[SourceFile]:
    path = Path(text)
    if path.is_dir():
        root = path.resolve()
        yield from (_local_file(file, file.relative_to(path).as_posix(), root) for file in _below(path))
        return
    base = _base(text)
    names = [text] if path.exists() else expand_braces(text)
    for name in names:
        if path.exists() or not _MAGIC.search(name):
            yield _local_file(Path(name), name[len(base) :])
        else:
            below = name[len(base) :]
            for file in sorted(Path(base or ".").glob(below)):
                yield _local_file(file, file.relative_to(base or ".").as_posix())


def _below(folder: Path) -> Iterator[Path]:
    """Files below a folder, those of each folder before those of its folders, without hidden ones and companions."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here) / name for name in sorted(files) if not is_companion(name))


def _local_file(path: Path, name: str, root: Path | None = None) -> SourceFile:
    shown = text_of(os.fsencode(name))
    try:
        real = path.resolve(strict=True)  # tables and archives are often kept elsewhere and linked
        status = real.stat()
    except (OSError, RuntimeError):
        return SourceFile(name=shown, place=FilePlace(path=os.fsencode(path), size=0), stamp=MISSING)
    if root is not None and not real.is_relative_to(root):
        return SourceFile(name=shown, place=FilePlace(path=os.fsencode(path), size=0), stamp=_OUTSIDE)
    return SourceFile(
        name=shown, place=FilePlace(path=os.fsencode(real), size=status.st_size), stamp=str(status.st_mtime_ns)
    )


def _objects(text: str) -> Iterator[SourceFile]:
    for address in expand_braces(text):
        store_url, key = split_address(address)
        base = _base(split_address(text)[1])
        if _MAGIC.search(key):
            listed = store_at(store_url).list(_base(key))
            found = [(info.key, info.size_bytes) for info in listed if _matches(info.key, key)]
        elif (size := _size(store_url, key)) is not None:
            found = [(key, size)]
        else:
            base = key = f"{key.rstrip('/')}/" if key else ""
            found = [(info.key, info.size_bytes) for info in store_at(store_url).list(key) if _is_shown(info.key)]
        yield from (_object(store_url, key, size, key[len(base) :]) for key, size in found)


def _size(store_url: str, key: str) -> int | None:
    if not key or key.endswith("/"):
        return None
    try:
        return store_at(store_url).size(key)
    except ObjectNotFoundError:
        return None


def _object(store_url: str, key: str, size: int, name: str) -> SourceFile:
    """An object, stamped with a hash of its first bytes: a store tells no time of change."""
    head = store_at(store_url).get(key, 0, min(size, _STAMP_BYTES))
    stamp = hashlib.sha256(head).hexdigest()[:16]
    return SourceFile(name=name, place=ObjectPlace(store=store_url, key=key, size=size), stamp=stamp)


def _matches(key: str, pattern: str) -> bool:
    """As a shell would: a star stays inside a folder."""
    names, patterns = key.split("/"), pattern.split("/")
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))


def _is_shown(key: str) -> bool:
    name = key.rpartition("/")[2]
    return not is_companion(name)
