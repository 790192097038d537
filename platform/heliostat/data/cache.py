"""A cache of verified row groups on a local disk, shared by all processes of a machine.

A file is named by the hash of its content and compared with it whenever it is read, so nothing has to be believed: a
flipped byte, a file cut short by a crash or a full disk is a miss, and the bytes come from the store again. Files are
written under one lock, which makes the bound on their sum exact, and appear by a rename.
"""

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_LOCK = "lock"
"""Locked by the process that writes or removes files; holds the sum of their sizes in decimal, or something larger."""
_UNFINISHED = "unfinished"
_SUFFIX = ".group"
_LOW_WATER = 0.9
"""Down to this part of the bound is made room at once, so that not every new file needs a look at all of them."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardCache:
    """Row groups in a folder of a local disk. Cheap to make, safe to pickle and to use from any number of processes.

    A disk that is full or cannot be written makes it a cache that holds less, or nothing: never an error.
    """

    folder: Path
    max_bytes: int
    """Bound of all files together, the one being written included."""

    def get(self, sha256: str) -> bytes | None:
        """The bytes with this hash, if they are there and whole; they count as used now."""
        path = self._path(sha256)
        try:
            with path.open("rb") as file:
                data = file.read()
                os.utime(file.fileno())
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
        _log.warning("a damaged file in the cache was dropped: %s", path)
        with suppress(OSError):
            path.unlink()  # its bytes stay in the sum until that is counted anew: the bound holds
        return None

    def put(self, sha256: str, data: bytes) -> None:
        """Keep bytes, which have this hash, at the cost of those that were not used for longest."""
        path = self._path(sha256)
        if len(data) > self.max_bytes or path.exists():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone() as ledger:
                if not path.exists():
                    self._write(ledger, path, data)
        except OSError as error:
            _log.warning("the cache %s does not take more: %s", self.folder, error.strerror or error)

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}{_SUFFIX}"

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """The only writer among all processes; the lock goes with the process that holds it, however it ends."""
        descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _write(self, ledger: int, path: Path, data: bytes) -> None:
        held = _noted(ledger)
        if held is None or held + len(data) > self.max_bytes:
            held = self._make_room(len(data))
        # Noted before it is written: a crash between the two makes the sum too large, and the next count corrects it.
        _note(ledger, held + len(data))
        unfinished = self.folder / _UNFINISHED
        try:
            unfinished.write_bytes(data)
            unfinished.replace(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise

    def _make_room(self, size_bytes: int) -> int:
        """Count all files, remove the least recently used until there is room, and return the sum of the rest."""
        (self.folder / _UNFINISHED).unlink(missing_ok=True)  # of a process that died: only one writes at a time
        with os.scandir(self.folder) as entries:
            known = [(entry.stat(), entry.path) for entry in entries if entry.name.endswith(_SUFFIX)]
        held = sum(stat.st_size for stat, _ in known)
        if held + size_bytes <= self.max_bytes:
            return held
        for stat, path in sorted(known, key=lambda one: one[0].st_mtime_ns):
            if held + size_bytes <= self.max_bytes * _LOW_WATER or not held:
                break
            Path(path).unlink(missing_ok=True)
            held -= stat.st_size
        return held


def _noted(ledger: int) -> int | None:
    text = os.pread(ledger, 32, 0)
    return int(text) if text.isdigit() else None


def _note(ledger: int, held: int) -> None:
    os.ftruncate(ledger, 0)
    os.pwrite(ledger, str(held).encode(), 0)
