"""The bytes of an archive as a forward stream: of a plain tar, which can be skipped through, or of a compressed one."""

import bz2
import gzip
import io
import lzma
import zlib
from typing import IO

from heliostat.data.rejection import Reason
from heliostat.data.sources.tar_headers import Bytes, TarFault

MAGIC_BYTES = 6
MAX_RATIO = 100
"""Of expanded to compressed bytes. Images hardly compress at all."""
_FREE_BYTES = 64 * 2**20
"""Below this size the ratio is not looked at: an archive of a few icons may compress well."""
_XZ_BYTES = 256 * 2**20
"""Memory of an xz decoder; ``xz -9`` asks for 65 MiB."""
_CHUNK = 256 * 1024
_BROKEN = (zlib.error, lzma.LZMAError, OSError, ValueError)
"""What decompressors raise about their data."""


class PlainBytes:
    """A seekable file. Skipping costs nothing."""

    def __init__(self, file: IO[bytes], size: int, at: int = 0) -> None:
        self._file = file
        self._size = size
        self._at = at
        file.seek(min(at, size))

    @property
    def at(self) -> int:
        """See ``Bytes``."""
        return self._at

    def take(self, size: int) -> bytes:
        """See ``Bytes``."""
        data = self._file.read(size)
        self._at += len(data)
        return data

    def skip_to(self, at: int) -> None:
        """See ``Bytes``."""
        if at > self._at:
            self._file.seek(min(at, self._size))
            self._at = at


class ExpandedBytes:
    """A compressed file, expanded piece by piece. Skipping means expanding."""

    def __init__(self, file: IO[bytes], expanded: io.BufferedIOBase) -> None:
        self._file = file
        self._expanded = expanded
        self._at = 0

    @property
    def at(self) -> int:
        """See ``Bytes``."""
        return self._at

    def take(self, size: int) -> bytes:
        """See ``Bytes``."""
        try:
            data = self._expanded.read(size)
        except EOFError as error:
            raise TarFault(Reason.TRUNCATED, "the compressed archive ends before its end mark") from error
        except _BROKEN as error:
            detail = f"the archive cannot be expanded: {type(error).__name__}"
            raise TarFault(Reason.BROKEN_ARCHIVE, detail) from error
        self._at += len(data)
        if self._at > max(_FREE_BYTES, MAX_RATIO * self._file.tell()):
            detail = f"the archive expands to more than {MAX_RATIO} times its size, the rest is not read"
            raise TarFault(Reason.TOO_MANY_BYTES, detail)
        return data

    def skip_to(self, at: int) -> None:
        """See ``Bytes``."""
        while self._at < at and self.take(min(at - self._at, _CHUNK)):
            pass


def is_compressed(magic: bytes) -> bool:
    """Whether an archive that starts like this has to be expanded."""
    return magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"))


def open_bytes(file: IO[bytes], size: int, at: int = 0) -> Bytes:
    """The archive in a file of ``size`` bytes, which the first bytes tell to be plain or compressed.

    Raises:
        TarFault: decompressing it would take too much memory.
    """
    magic = file.read(MAGIC_BYTES)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return ExpandedBytes(file, gzip.GzipFile(fileobj=file))
    if magic.startswith(b"BZh"):
        return ExpandedBytes(file, bz2.BZ2File(file))
    if magic.startswith(b"\xfd7zXZ\0"):
        _check_xz(file)
        return ExpandedBytes(file, lzma.LZMAFile(file))
    return PlainBytes(file, size, at)


def _check_xz(file: IO[bytes]) -> None:
    """An xz file says how much memory it takes before any of it is needed."""
    try:
        lzma.LZMADecompressor(memlimit=_XZ_BYTES).decompress(file.read(_CHUNK), max_length=1)
    except lzma.LZMAError as error:
        detail = f"the archive cannot be expanded within {_XZ_BYTES} bytes of memory: {error}"
        raise TarFault(Reason.BROKEN_ARCHIVE, detail) from error
    file.seek(0)
