"""Lists of images: a text file with one address per line, or a CSV file with addresses and labels.

A text file may hold blank lines and comments (``#``). A CSV file names its columns in its first line. Lists are read as
streams, locally or from S3: they may have a hundred million lines.
"""

import csv
import io
import re
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from heliostat.config.base import Section
from heliostat.data.images import DEFAULT_LIMITS, ImageLimits, Reason
from heliostat.data.sources.files import MISSING, one_file, open_file
from heliostat.data.sources.source import Item, RefusedItem, Source, Unit, cut
from heliostat.errors import InvalidValueError, NoImagesError, SourceNotFoundError

KEY_COLUMNS = ("key", "url", "path")
"""Names of the column of addresses, whichever comes first."""
_THREADS = 8
"""Images that a task fetches at once: hides the latency of a store, and is no attack on a host."""
_MAX_LINE = 65_536
"""Characters of a line that are held: a key has 1,024 bytes at most, a URL hardly ever more than some thousand."""
_PLAIN_NAME = re.compile(r"[\w .-]{1,40}")


class Entry(Section):
    """A line of a list. ``size`` is that of the image where it is known, ``fault`` what is wrong with the line."""

    line: int
    address: str
    label: str | None = None
    size: int = 0
    fault: str | None = None


class _Spec(Section):
    entries: tuple[Entry, ...]


def read_list(name: str) -> Iterator[Entry]:
    """The lines of a list, in its order.

    Raises:
        SourceNotFoundError: the list cannot be opened.
        InvalidValueError: a CSV file without a column of addresses.
        StorageError: the store that holds it does not cooperate.
    """
    with _opened(name) as stream:
        yield from _csv_entries(name, stream) if name.lower().endswith(".csv") else _text_entries(stream)


def read_labels(name: str) -> dict[str, str]:
    """A CSV file with the columns ``path`` and ``label``, in memory: some 200 bytes per line.

    Raises:
        SourceNotFoundError: the file cannot be opened.
        InvalidValueError: a column is missing, a line cannot be read, or a path has two labels.
    """
    labels: dict[str, str] = {}
    with _opened(name) as stream:
        for entry in _csv_entries(name, stream, ("path",)):
            path = entry.address.removeprefix("./")
            if entry.fault or entry.label is None:
                fault = entry.fault or "has no label"
                raise InvalidValueError(f"line {entry.line} of {name} {fault}", "Give the columns path and label")
            if labels.setdefault(path, entry.label) != entry.label:
                fact = f"line {entry.line} of {name} gives {path!r} a second label, {entry.label!r}"
                raise InvalidValueError(fact, f"Keep one; the other is {labels[path]!r}")
    return labels


@dataclass(frozen=True)
class ListSource(Source):
    """Images whose addresses are in a list; some are fetched at once, and come in the order of the list."""

    name: str

    @property
    def description(self) -> str:
        """The list as it was named."""
        return self.name

    @abstractmethod
    def fetch(self, entry: Entry, limits: ImageLimits) -> Item | RefusedItem:
        """The image of a line. Called by several threads."""

    def entries(self) -> Iterator[Entry]:
        """The lines."""
        return read_list(self.name)

    def units(self) -> Iterator[Unit]:
        """See ``Source.units``."""
        index = -1
        for index, entries in enumerate(cut(self.entries(), lambda entry: entry.size)):
            yield Unit.of(index, _Spec(entries=entries), len(entries))
        if index < 0:
            raise NoImagesError(f"the source {self.name!r} names no image", "Give one address per line")

    def read(self, unit: Unit, limits: ImageLimits = DEFAULT_LIMITS) -> Iterator[Item | RefusedItem]:
        """See ``Source.read``. Holds up to 8 images."""
        waiting: deque[Future[Item | RefusedItem]] = deque()
        with ThreadPoolExecutor(_THREADS) as pool:
            try:
                for entry in _Spec.model_validate_json(unit.spec).entries:
                    waiting.append(pool.submit(self._checked, entry, limits))
                    if len(waiting) == _THREADS:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _checked(self, entry: Entry, limits: ImageLimits) -> Item | RefusedItem:
        if entry.fault:
            return RefusedItem(f"{self.name}:{entry.line}", Reason.UNREADABLE, entry.fault)
        return self.fetch(entry, limits)


@contextmanager
def _opened(name: str) -> Iterator[io.TextIOWrapper]:
    file = one_file(name)
    if file.stamp == MISSING:
        raise SourceNotFoundError(f"the list {name!r} does not exist", "Check the name")
    try:
        with open_file(file.place) as stream:
            yield io.TextIOWrapper(stream, "utf-8-sig", "backslashreplace", newline="")
    except OSError as error:
        raise SourceNotFoundError(f"the list {name!r} cannot be read: {error.strerror}", "Check it") from error


class _Lines(Iterator[str]):
    """The lines of a list; one that is longer than can be meant is an error, after which the next line follows."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream
        self.number = 0

    def __next__(self) -> str:
        line = self._stream.readline(_MAX_LINE)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) < _MAX_LINE or line.endswith(("\n", "\r")):
            return line
        while line and not line.endswith(("\n", "\r")):
            line = self._stream.readline(_MAX_LINE)
        raise csv.Error(f"is longer than {_MAX_LINE:,} characters")


def _text_entries(stream: io.TextIOWrapper) -> Iterator[Entry]:
    lines = _Lines(stream)
    while True:
        try:
            text = next(lines).strip()
        except csv.Error as error:
            yield Entry(line=lines.number, address="", fault=str(error))
            continue
        except StopIteration:
            return
        if text and not text.startswith("#"):
            yield Entry(line=lines.number, address=text)


def _csv_entries(name: str, stream: io.TextIOWrapper, columns: Sequence[str] = KEY_COLUMNS) -> Iterator[Entry]:
    lines = _Lines(stream)
    reader = csv.reader(lines)
    try:
        header = [column.strip().lower() for column in next(reader, [])]
    except csv.Error as error:
        raise InvalidValueError(
            f"the first line of {name} {error}", f"Begin with the line {columns[0]},label"
        ) from error
    column = next((column for column in columns if column in header), None)
    if column is None:
        shown = ", ".join(text if _PLAIN_NAME.fullmatch(text) else "…" for text in header)[:200]  # it may be an address
        fact = f"the first line of {name} names the columns {shown!r}, none is {' or '.join(columns)}"
        raise InvalidValueError(fact, f"Begin the file with the line {columns[0]},label")
    at, label_at = header.index(column), header.index("label") if "label" in header else None
    while True:
        try:
            row = next(reader)
        except csv.Error as error:
            yield Entry(line=lines.number, address="", fault=f"cannot be read: {error}")
            continue
        except StopIteration:
            return
        if len(row) > max(at, label_at or 0):
            label = row[label_at].strip() if label_at is not None else ""
            yield Entry(line=lines.number, address=row[at].strip(), label=label or None)
        elif row:
            yield Entry(line=lines.number, address="", fault=f"has {len(row)} columns, the first line {len(header)}")
