"""A store in a local folder: one object, one file.

Every object is first written to a temporary file beside its place and synced; a hard link (which fails where something
is) creates it, a rename overwrites it. So readers see whole objects only, after a crash too. Writers that overwrite or
delete hold a lock on the folder itself, which serves as the lock file: no listing has to hide it, and it goes when the
folder goes. A version is the SHA-256 of the content.
"""

import builtins
import errno
import fcntl
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from uuid import uuid4

from heliostat.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StoreDeniedError,
    StoreFailedError,
    VersionConflictError,
)
from heliostat.storage.store import (
    RESERVED_NAME,
    Chunks,
    ObjectInfo,
    Store,
    check_range,
    is_key,
    normalise_key,
    normalise_prefix,
)

_PRUNE_RACES = 100
"""How often a writer makes its folder again when others, deleting the last object in it, keep removing it."""
_TEMPORARY = f"{RESERVED_NAME}tmp-"
_NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True, slots=True)
class LocalStore(Store):
    """Objects as files below ``root``, which need not exist before the first write."""

    root: Path

    @property
    def url(self) -> str:
        """The absolute path of the root."""
        return str(self.root)

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """See ``Store.get``."""
        check_range(start, end)
        path = self._path(key)
        with _reading(path), path.open("rb") as file:
            file.seek(start)
            return file.read(-1 if end is None else end - start)

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """See ``Store.get_versioned``."""
        data = self.get(key)
        return data, _version(data)

    def size(self, key: str) -> int:
        """See ``Store.size``."""
        path = self._path(key)
        with _reading(path):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder, not an object")
            return path.stat().st_size

    def exists(self, key: str) -> bool:
        """See ``Store.exists``."""
        try:
            self.size(key)
        except ObjectNotFoundError:
            return False
        return True

    def put(self, key: str, data: bytes) -> None:
        """See ``Store.put``."""
        self.put_chunks(key, lambda: [data])

    def put_chunks(self, key: str, chunks: Chunks) -> None:
        """See ``Store.put_chunks``."""
        path = self._path(key)
        with _staged(path, chunks()) as staged, _writing(path), _locked(path.parent):
            _publish(staged, path)

    def create(self, key: str, data: bytes) -> str:
        """See ``Store.create``."""
        path = self._path(key)
        with _staged(path, [data]) as staged, _writing(path):
            try:
                os.link(staged, path)
            except FileExistsError:
                if path.is_dir():
                    raise
                raise ObjectExistsError(f"{path} exists already", "Read it: another writer came first") from None
            _sync_folder(path.parent)
        return _version(data)

    def replace(self, key: str, data: bytes, version: str) -> str:
        """See ``Store.replace``."""
        path = self._path(key)
        with _staged(path, [data]) as staged, _writing(path), _locked(path.parent):
            try:
                current = _version(path.read_bytes())
            except FileNotFoundError:
                current = "none"
            if current != version:
                raise VersionConflictError(
                    f"{path} has version {current[:12]}, not {version[:12]}", "Read it again and decide anew"
                )
            _publish(staged, path)
        return _version(data)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See ``Store.list``."""
        prefix = normalise_prefix(prefix)
        folder = prefix.rpartition("/")[0]
        with _reading(self.root):
            for info in _walk(self.root / folder, f"{folder}/" if folder else ""):
                if info.key.startswith(prefix):
                    yield info

    def folders(self, prefix: str = "") -> builtins.list[str]:
        """See ``Store.folders``. What was left without a file in it is pruned, or soon will be."""
        folder = self.root / normalise_prefix(prefix).rstrip("/")
        with _reading(self.root):
            try:
                return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and is_key(entry.name))
            except _NOT_THERE:
                return []

    def delete(self, key: str) -> None:
        """See ``Store.delete``; folders left empty are removed."""
        path = self._path(key)
        with _writing(path):
            try:
                with _locked(path.parent):
                    path.unlink()
            except _NOT_THERE:
                return
        self._prune(path.parent)

    def unfinished(self, prefix: str) -> Iterator[str]:
        """See ``Store.unfinished``: temporary files, which a process that is killed cannot remove."""
        for folder, _, names in os.walk(self._path(prefix)):
            if any(name.startswith(_TEMPORARY) for name in names):
                yield Path(folder).relative_to(self.root).as_posix()

    def discard_unfinished(self, folder: str) -> int:
        """See ``Store.discard_unfinished``."""
        path = self._path(folder)
        with _writing(path):
            pieces = list(path.glob(f"{_TEMPORARY}*"))
            for piece in pieces:
                piece.unlink(missing_ok=True)
        self._prune(path)
        return len(pieces)

    def sub(self, prefix: str) -> Self:
        """See ``Store.sub``."""
        return type(self)(self._path(prefix))

    def _path(self, key: str) -> Path:
        return self.root / normalise_key(key)

    def _prune(self, folder: Path) -> None:
        while folder != self.root:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _staged(path: Path, chunks: Iterable[bytes | memoryview]) -> Iterator[Path]:
    """A synced temporary file beside ``path``; while it is there, nobody can prune the folder. Removed at the end."""
    staged = path.parent / f"{_TEMPORARY}{uuid4().hex}"
    with _writing(path):
        descriptor = _open_new(staged)
    try:
        # Without a buffer: on a full disk, closing the file would try to write what is left, and fail once more.
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            for chunk in chunks:  # outside of _writing: what the caller's source raises is not the store's failure
                with _writing(path):
                    _write_all(file, chunk)
            with _writing(path):
                os.fsync(file.fileno())
        yield staged
    finally:
        staged.unlink(missing_ok=True)


def _write_all(file: io.FileIO, chunk: bytes | memoryview) -> None:
    left = memoryview(chunk).cast("B")
    while left:
        left = left[file.write(left) :]


def _open_new(path: Path) -> int:
    for _ in range(_PRUNE_RACES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileNotFoundError:
            continue
    raise TimeoutError(errno.ETIMEDOUT, "the folder was removed again and again")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone among all threads and processes that lock this folder: a flock belongs to a descriptor, not a process."""
    while True:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # While this waited, the folder may have been pruned and made anew: then the lock is on a ghost.
            if os.fstat(descriptor).st_ino == folder.stat().st_ino:
                yield
                return
        finally:
            os.close(descriptor)


def _publish(staged: Path, path: Path) -> None:
    staged.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk(folder: Path, prefix: str) -> Iterator[ObjectInfo]:
    try:
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if not entry.name.startswith(RESERVED_NAME)]
    except (FileNotFoundError, NotADirectoryError):
        return  # pruned since its parent was read, or never there
    # A folder sorts as its keys do, by its name and a slash: "a-b" comes before "a/b".
    for name in sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries):
        if name.endswith("/"):
            yield from _walk(folder / name, prefix + name)
        else:
            yield from _info(folder / name, prefix + name)


def _info(path: Path, key: str) -> Iterator[ObjectInfo]:
    try:
        yield ObjectInfo(key, path.stat().st_size)
    except FileNotFoundError:
        return  # deleted since the folder was read


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except _NOT_THERE as error:
        raise ObjectNotFoundError(f"there is no object {path}", "Check the name") from error
    except OSError as error:
        raise _failure(path, error) from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise StoreFailedError(
            f"{path} cannot be an object: a file or folder of the same name is in its way", "Choose another name"
        ) from error
    except OSError as error:
        raise _failure(path, error) from error


def _failure(path: Path, error: OSError) -> StorageError:
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    if isinstance(error, PermissionError):
        return StoreDeniedError(f"{path}: {reason}", "Check who owns the folder and its permissions")
    next_step = "Free space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Check the file system"
    return StoreFailedError(f"{path}: {reason}", next_step)
