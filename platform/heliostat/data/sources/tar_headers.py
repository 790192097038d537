"""The headers of tar archives, read strictly and forwards.

Python's tarfile is made for archives that one trusts: it reads headers of any size into memory, expands sparse files,
and in supported versions of Python can be made to loop for ever (CVE-2025-8194). This reads what GNU tar, Python,
bsdtar and webdataset write (ustar, GNU long names, pax ``path`` and ``size``) and names everything else. Nothing is
extracted.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar Format".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from heliostat.data.rejection import Reason

BLOCK = 512
MAX_EXTRA_BYTES = 64 * 1024
"""Of a long name or a pax header. Linux allows paths of 4 KiB."""
_MAX_SIZE = 2**62
_PAX_RECORD = re.compile(rb"([0-9]{1,7}) ")


class Bytes(Protocol):
    """An archive, read forwards."""

    @property
    def at(self) -> int:
        """Bytes before the next one."""

    def take(self, size: int) -> bytes:
        """The next bytes, fewer at the end."""

    def skip_to(self, at: int) -> None:
        """Leave out what is before ``at``."""


class TarFault(Exception):
    """An archive that cannot be read on, with the reason."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Kind(Enum):
    """What a member is."""

    FILE = "a file"
    FOLDER = "a folder"
    LINK = "a link"
    DEVICE = "a device or a pipe"
    SPARSE = "a sparse file"
    OTHER = "of an unknown type"


@dataclass(frozen=True, slots=True)
class Member:
    """A member: where its first header is, where its bytes are, and what makes its name unusable."""

    name: bytes
    kind: Kind
    start: int
    offset: int
    size: int
    fault: str | None = None


@dataclass(slots=True)
class _Extra:
    """What headers before a member say about it."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False
    fault: str | None = None


_KINDS = {b"0": Kind.FILE, b"\0": Kind.FILE, b"7": Kind.FILE, b"S": Kind.SPARSE, b"5": Kind.FOLDER}
_KINDS |= {b"1": Kind.LINK, b"2": Kind.LINK, b"3": Kind.DEVICE, b"4": Kind.DEVICE, b"6": Kind.DEVICE}
_WITHOUT_DATA = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})
_NOTES = frozenset({b"K", b"g", b"V"})
"""Long names of link targets, global pax headers, volume labels: nothing here depends on them."""


def members(archive: Bytes, end: int | None = None) -> Iterator[Member]:
    """The members of an archive from where it stands, in order; up to ``end``, or to the mark at its end.

    While a member is at hand, ``archive`` stands at its bytes, and up to ``size`` of them may be taken.

    Raises:
        TarFault: what follows is no header, or the archive ends before its end mark.
    """
    extra, start = _Extra(), archive.at
    while end is None or archive.at < end:
        at, block = archive.at, archive.take(BLOCK)
        if block == bytes(BLOCK):
            return
        kind, size = _checked(block, at)
        if kind == b"S":
            _skip_sparse_map(archive, block)
        if kind in (b"L", b"x"):
            _note(extra, kind, archive, size)
            continue
        member = _member(block, kind, size, extra, start, archive.at)
        if kind not in _NOTES:
            yield member
        archive.skip_to(member.offset + _padded(member.size))
        if kind not in _NOTES:
            extra, start = _Extra(), archive.at


def is_header(block: bytes) -> bool:
    """Whether these are 512 bytes that a tar archive can begin with."""
    try:
        _checked(block, 0)
    except TarFault:
        return block == bytes(BLOCK)
    return True


def name_fault(name: bytes) -> str | None:
    """Why no file may have this name."""
    if not name:
        return "the name is empty"
    if b"\0" in name:
        return "the name holds a NUL"
    if b"\\" in name:
        return "the name holds a backslash"
    if name.startswith(b"/"):
        return "the name is absolute"
    if b".." in name.split(b"/"):
        return "the name holds '..'"
    return None


def _member(block: bytes, kind: bytes, size: int, extra: _Extra, start: int, offset: int) -> Member:
    name = extra.name if extra.name is not None else _ustar_name(block)
    size = extra.size if extra.size is not None else size
    found = Kind.SPARSE if extra.sparse else _KINDS.get(kind, Kind.OTHER)
    if found is Kind.FILE and name.endswith(b"/"):  # how archives of the 1980s mark folders
        found = Kind.FOLDER
    return Member(name, found, start, offset, 0 if kind in _WITHOUT_DATA else size, extra.fault or name_fault(name))


def _checked(block: bytes, at: int) -> tuple[bytes, int]:
    """Type and size of a header whose checksum is right."""
    if len(block) < BLOCK and at:
        raise TarFault(Reason.TRUNCATED, "the archive ends before its end mark")
    checksum = _number(block[148:156]) if len(block) == BLOCK else None
    if checksum is None or checksum != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        detail = f"there is no header at byte {at}, the rest is not read" if at else "this is no tar archive"
        raise TarFault(Reason.BROKEN_ARCHIVE, detail)
    size = _number(block[124:136])
    if size is None:
        raise TarFault(Reason.BROKEN_ARCHIVE, f"the header at byte {at} gives no valid size, the rest is not read")
    return block[156:157], size


def _number(field: bytes) -> int | None:
    """A number of a header: octal digits, or base 256 after a first byte of 0x80."""
    if field[0] == 0x80:
        number = int.from_bytes(field[1:], "big")
        return number if number < _MAX_SIZE else None
    text = field.split(b"\0", 1)[0].strip(b" ")
    if not text:
        return 0
    return int(text, 8) if re.fullmatch(rb"[0-7]+", text) else None


def _ustar_name(block: bytes) -> bytes:
    name, prefix = block[:100].split(b"\0", 1)[0], block[345:500].split(b"\0", 1)[0]
    # GNU's own format keeps times where POSIX has the prefix.
    is_posix = block[257:263] == b"ustar\0"
    return prefix + b"/" + name if prefix and is_posix else name


def _note(extra: _Extra, kind: bytes, archive: Bytes, size: int) -> None:
    """Take in a header that is about the next member."""
    after = archive.at + _padded(size)
    if size > MAX_EXTRA_BYTES:
        extra.fault = f"a header of {size} bytes precedes it, the limit is {MAX_EXTRA_BYTES}"
    else:
        data = archive.take(size)
        if len(data) < size:
            raise TarFault(Reason.TRUNCATED, "the archive ends in a header")
        if kind == b"L":
            extra.name = data.removesuffix(b"\0")
        else:
            _take_pax(extra, data)
    archive.skip_to(after)


def _take_pax(extra: _Extra, data: bytes) -> None:
    at, end = 0, len(data.rstrip(b"\0"))
    while at < end:
        length = _PAX_RECORD.match(data, at)
        record = data[length.end() : at + int(length[1])] if length else b""
        key, equals, value = record.partition(b"=")
        if not record.endswith(b"\n") or not equals:
            extra.fault = "a pax header precedes it that cannot be read"
            return
        _take_record(extra, key, value[:-1])
        at += int(length[1]) if length else 0


def _take_record(extra: _Extra, key: bytes, value: bytes) -> None:
    if key == b"path":
        extra.name = value
    elif key == b"size":
        if not value.isdigit() or len(value) > 18:
            raise TarFault(Reason.BROKEN_ARCHIVE, "a pax header gives no valid size, the rest is not read")
        extra.size = int(value)
    elif key.startswith(b"GNU.sparse."):
        extra.sparse = True


def _skip_sparse_map(archive: Bytes, header: bytes) -> None:
    more = header[482]
    while more:
        block = archive.take(BLOCK)
        if len(block) < BLOCK:
            raise TarFault(Reason.TRUNCATED, "the archive ends in a header")
        more = block[504]


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
