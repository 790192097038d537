"""Images in tar archives, as webdataset writes them: ``0001.jpg``, with its class as text in ``0001.cls``.

A plain archive on a local disk is cut into units by reading its headers; one on S3, or a compressed one, is one unit,
as only reading it tells what is in it. Members of one sample have the same name up to the first dot and follow each
other. Nothing is extracted: bytes go from the archive to memory, names are only ever shown.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import IO

from heliostat.config.base import Section
from heliostat.data.images import DEFAULT_LIMITS, ImageLimits, Reason, too_many_bytes
from heliostat.data.sources.files import SourceFile, find_files, open_file
from heliostat.data.sources.names import LINK_LEAVES, cause_of, is_companion, text_of
from heliostat.data.sources.source import (
    UNIT_BYTES,
    UNIT_ITEMS,
    FilePlace,
    Item,
    ObjectPlace,
    RefusedItem,
    Source,
    Unit,
)
from heliostat.data.sources.tar_bytes import MAGIC_BYTES, PlainBytes, is_compressed, open_bytes
from heliostat.data.sources.tar_headers import BLOCK, Bytes, Kind, Member, TarFault, is_header, members
from heliostat.errors import ObjectNotFoundError, SourceNotFoundError

MAX_MEMBERS = 10_000_000
"""Of an archive; then the rest is refused."""
MAX_REFUSED = 10_000
"""Members of a unit that are refused one by one; then the rest is refused as one."""
_MAX_CLASS_BYTES = 4096
_SHOWN_NAME = 300


class _Spec(Section):
    """An archive, or the part of it between two headers; ``end`` is ``None`` for its end."""

    file: SourceFile
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class TarSource(Source):
    """A tar archive, a folder of them, or those of a pattern; local or on S3."""

    name: str

    @property
    def description(self) -> str:
        """The archives as they were named."""
        return self.name

    def units(self) -> Iterator[Unit]:
        """See ``Source.units``."""
        for index, (spec, items) in enumerate(self._parts()):
            yield Unit.of(index, spec, items)

    def read(self, unit: Unit, limits: ImageLimits = DEFAULT_LIMITS) -> Iterator[Item | RefusedItem]:
        """See ``Source.read``. Holds the images of one sample, together no more than ``limits.max_bytes``."""
        spec = _Spec.model_validate_json(unit.spec)
        if spec.file.is_outside:
            yield RefusedItem(spec.file.name, Reason.LINK_LEAVES_SOURCE, LINK_LEAVES)
            return
        try:
            with open_file(spec.file.place) as file:
                yield from _read(file, spec, limits)
        except OSError as error:
            yield RefusedItem(spec.file.name, Reason.UNREADABLE, cause_of(error))
        except ObjectNotFoundError as error:
            yield RefusedItem(spec.file.name, Reason.UNREADABLE, error.fact)

    def _parts(self) -> Iterator[tuple[_Spec, int | None]]:
        files = find_files(self.name)
        first = next(files)
        others = list(islice(files, 1))
        if not others and (fault := _archive_fault(first)):
            raise SourceNotFoundError(f"the source {self.name!r} {fault}", "Give a tar archive, or a folder of them")
        for file in chain([first], others, files):
            yield from _split(file)


class _Sample:
    """The images of one key, until the key changes: their class may come after them."""

    def __init__(self) -> None:
        self.key = b""
        self.label: str | None = None
        self.held_bytes = 0
        self._items: list[Item] = []

    def add(self, item: Item) -> None:
        self._items.append(item)
        self.held_bytes += len(item.data)

    def end(self, next_key: bytes = b"") -> list[Item]:
        """The images with their label; begins the next sample."""
        items = [replace(item, label=self.label) for item in self._items]
        self.key, self.label, self.held_bytes, self._items = next_key, None, 0, []
        return items


def _read(file: IO[bytes], spec: _Spec, limits: ImageLimits) -> Iterator[Item | RefusedItem]:
    sample = _Sample()
    seen = refused = 0
    try:
        archive = open_bytes(file, spec.file.place.size, spec.start)
        for member in members(archive, spec.end):
            if (key := _key(member.name)) != sample.key:
                yield from sample.end(key)
            if fault := _take(member, archive, sample, spec.file, limits):
                yield fault
                refused += 1
            seen += 1
            if seen > MAX_MEMBERS or refused > MAX_REFUSED:
                detail = f"the archive has over {seen - 1} members, {refused} of them refused, the rest is not read"
                raise TarFault(Reason.TOO_MANY_MEMBERS, detail)
        yield from sample.end()
    except TarFault as fault:
        yield from sample.end()
        yield RefusedItem(spec.file.name, fault.reason, fault.detail)


def _take(member: Member, archive: Bytes, sample: _Sample, file: SourceFile, limits: ImageLimits) -> RefusedItem | None:
    """Take a member into its sample, or refuse it."""
    name = f"{file.name}/{_shown(member.name)}"
    if member.fault:
        return RefusedItem(name, Reason.UNSAFE_NAME, member.fault)
    if member.kind not in (Kind.FILE, Kind.FOLDER):
        return RefusedItem(name, Reason.NOT_A_FILE, f"the member is {member.kind.value}")
    if _is_class(member):
        text = archive.take(min(member.size, _MAX_CLASS_BYTES)).decode("utf-8", "backslashreplace")
        sample.label = text.strip() or None
    if not _is_candidate(member):
        return None
    if not member.size:
        return RefusedItem(name, Reason.EMPTY, "the file has 0 bytes")
    if sample.held_bytes + member.size > limits.max_bytes:
        return RefusedItem(name, Reason.TOO_MANY_BYTES, _too_many(member.size, sample, limits))
    data = archive.take(member.size)
    if len(data) < member.size:
        raise TarFault(Reason.TRUNCATED, f"the archive ends in {_shown(member.name)!r}")
    sample.add(Item(name, None, data, _place(file.place, member) if isinstance(archive, PlainBytes) else None))
    return None


def _place(archive: FilePlace | ObjectPlace, member: Member) -> FilePlace | ObjectPlace:
    return archive.model_copy(update={"offset": member.offset, "size": member.size})


def _too_many(size: int, sample: _Sample, limits: ImageLimits) -> str:
    fact = too_many_bytes(size, limits).fact
    return f"{fact}, and {sample.held_bytes} are in its sample already" if sample.held_bytes else fact


def _key(name: bytes) -> bytes:
    """What the members of a sample have in common: the name up to the first dot that is in no folder's."""
    folder, slash, base = name.rpartition(b"/")
    return folder + slash + base.split(b".", 1)[0]


def _base(member: Member) -> str:
    return text_of(member.name.rpartition(b"/")[2])


def _is_class(member: Member) -> bool:
    return member.kind is Kind.FILE and _base(member).partition(".")[2].lower() == "cls"


def _is_candidate(member: Member) -> bool:
    return member.kind is Kind.FILE and not _is_class(member) and not is_companion(_base(member))


def _shown(name: bytes) -> str:
    text = text_of(name.removeprefix(b"./"))
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return text if len(text) <= _SHOWN_NAME else f"{text[:_SHOWN_NAME]}…"


def _archive_fault(file: SourceFile) -> str | None:
    """Why a file cannot be an archive at all, by its first bytes."""
    if file.fault:
        return file.fault
    try:
        with open_file(file.place) as stream:
            block = stream.read(BLOCK)
    except OSError as error:
        return f"cannot be read: {cause_of(error)}"
    return None if is_compressed(block) or is_header(block) else "is no tar archive"


def _split(file: SourceFile) -> Iterator[tuple[_Spec, int | None]]:
    """The parts of an archive with the number of items in each."""
    if isinstance(file.place, FilePlace) and not file.fault:
        try:
            with open_file(file.place) as stream:
                if not is_compressed(stream.read(MAGIC_BYTES)):
                    yield from _cut(file, PlainBytes(stream, file.place.size))
                    return
        except OSError:  # reading the unit will name it
            pass
    yield _Spec(file=file), None


def _cut(file: SourceFile, archive: Bytes) -> Iterator[tuple[_Spec, int]]:
    """Parts of a plain archive that end between samples."""
    start = items = size_bytes = 0
    key = None
    try:
        for member in members(archive):
            full = items >= UNIT_ITEMS or size_bytes >= UNIT_BYTES
            if full and _key(member.name) != key:
                yield _Spec(file=file, start=start, end=member.start), items
                start, items, size_bytes = member.start, 0, 0
            key = _key(member.name)
            refused = bool(member.fault) or member.kind not in (Kind.FILE, Kind.FOLDER)
            items += refused or _is_candidate(member)
            size_bytes += member.size
    except TarFault:  # found again, and named, by who reads to the end
        items += 1
    yield _Spec(file=file, start=start), items
