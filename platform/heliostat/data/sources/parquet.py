"""Images in Parquet tables, as Hugging Face datasets keep them.

The column of images is one of Hugging Face's (a struct of ``bytes`` and ``path``) or any of plain bytes. Labels come
from a column ``label``, or from the first one that Hugging Face's metadata call a class label; its numbers become the
names that the metadata give. No other column is read. Cells are decoded one after the other, so that memory depends on
neither the size of row groups nor on what a dictionary expands to, but on the size of pages: some three of them.
One can have 2 GiB at worst; those of row groups of 100 images, as Hugging Face writes them, have about 10 MiB. Images
hardly shrink when they are compressed: a row group that says it expands enormously is refused before it is read.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice

import pyarrow as pa
import pyarrow.parquet as pq

from heliostat.config.base import Section
from heliostat.data.images import DEFAULT_LIMITS, ImageLimits, Reason, too_many_bytes
from heliostat.data.sources.files import SourceFile, find_files, open_file
from heliostat.data.sources.names import LINK_LEAVES, cause_of
from heliostat.data.sources.source import UNIT_BYTES, UNIT_ITEMS, Item, RefusedItem, Source, Unit
from heliostat.errors import ObjectNotFoundError, SourceNotFoundError

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "bytes")
_READ_BYTES = 8 * 2**20
_EXPANSIONS = ((64 * 2**20, 200), (2**30, 2))
"""Column chunks of more than so many bytes may be at most so many times as long as in the file."""


class _Columns(Section):
    """Which columns are read. ``names`` are those of a class label's numbers."""

    image: str
    in_struct: bool
    label: str | None
    names: tuple[str, ...] | None


class _Spec(Section):
    """Row groups of a file, from ``first_group`` to before ``end_group``; ``fault`` for a file that cannot be read."""

    file: SourceFile
    first_group: int = 0
    end_group: int = 0
    first_row: int = 0
    columns: _Columns | None = None
    fault: str | None = None


class _UnusableTable(Exception):
    """A file without images, or no Parquet file at all; the text says which."""


@dataclass(frozen=True)
class ParquetSource(Source):
    """A Parquet file, a folder of them, or those of a pattern; local or on S3."""

    name: str

    @property
    def description(self) -> str:
        """The files as they were named."""
        return self.name

    def units(self) -> Iterator[Unit]:
        """See ``Source.units``. Reads the footer of each file."""
        files = find_files(self.name)
        first = next(files)
        others = list(islice(files, 1))
        index = 0
        for file in chain([first], others, files):
            try:
                specs = list(_split(file))
            except _UnusableTable as error:
                if not others:
                    fact = f"the source {self.name!r} {error}"
                    raise SourceNotFoundError(fact, "Give Parquet files with a column of images") from error
                specs = [(_Spec(file=file, fault=f"the file {error}"), 1)]
            for spec, items in specs:
                yield Unit.of(index, spec, items)
                index += 1

    def read(self, unit: Unit, limits: ImageLimits = DEFAULT_LIMITS) -> Iterator[Item | RefusedItem]:
        """See ``Source.read``."""
        spec = _Spec.model_validate_json(unit.spec)
        if spec.file.is_outside:
            yield RefusedItem(spec.file.name, Reason.LINK_LEAVES_SOURCE, LINK_LEAVES)
            return
        if spec.columns is None:
            yield RefusedItem(spec.file.name, Reason.BROKEN_ARCHIVE, spec.fault or "")
            return
        try:
            with _opened(spec.file) as table:
                yield from _rows(table, spec, spec.columns, limits)
        except _UnusableTable as error:
            yield RefusedItem(spec.file.name, Reason.BROKEN_ARCHIVE, f"the file {error}")


def _rows(table: pq.ParquetFile, spec: _Spec, columns: _Columns, limits: ImageLimits) -> Iterator[Item | RefusedItem]:
    first_row = spec.first_row
    for group in range(spec.first_group, spec.end_group):
        try:
            _check_expansion(table.metadata.row_group(group), columns)
            for row, (value, label) in enumerate(_cells(table, group, columns), first_row):
                yield _item(f"{spec.file.name}/{row}", value, label, limits)
        except (pa.ArrowException, UnicodeDecodeError, OSError, _UnusableTable) as error:
            detail = f"row group {group} cannot be read on: {_cause(error)}"
            yield RefusedItem(spec.file.name, Reason.BROKEN_ARCHIVE, detail)
        first_row += table.metadata.row_group(group).num_rows


def _check_expansion(group: pq.RowGroupMetaData, columns: _Columns) -> None:
    """Refuse what a few kilobytes would fill the memory with.

    Raises:
        _UnusableTable: the column of images expands more than images do.
    """
    for index in range(group.num_columns):
        chunk = group.column(index)
        if chunk.path_in_schema != _leaf(columns):
            continue
        size, stored = chunk.total_uncompressed_size, chunk.total_compressed_size
        if any(size > free and size > most * stored for free, most in _EXPANSIONS):
            raise _UnusableTable(f"its images expand from {stored:,} to {size:,} bytes")


def _leaf(columns: _Columns) -> str:
    return f"{columns.image}.bytes" if columns.in_struct else columns.image


def _cells(table: pq.ParquetFile, group: int, columns: _Columns) -> Iterator[tuple[pa.Scalar, str | None]]:
    """Image and label of each row of a row group."""
    wanted = [_leaf(columns)]
    wanted += [columns.label] if columns.label is not None else []
    for batch in table.iter_batches(1, row_groups=[group], columns=wanted, use_threads=False):
        cell = batch.column(columns.image)
        image = cell.field("bytes")[0] if columns.in_struct else cell[0]
        yield image, _label(batch.column(columns.label)[0].as_py(), columns) if columns.label is not None else None


def _item(source: str, value: pa.Scalar, label: str | None, limits: ImageLimits) -> Item | RefusedItem:
    if not value.is_valid:
        return RefusedItem(source, Reason.EMPTY, "the row holds no bytes of an image")
    buffer = value.as_buffer()
    if buffer.size > limits.max_bytes:
        return RefusedItem(source, Reason.TOO_MANY_BYTES, too_many_bytes(buffer.size, limits).fact)
    return Item(source, label, buffer.to_pybytes(), None)


def _label(value: object, columns: _Columns) -> str | None:
    """A cell as a label; Hugging Face writes -1 where a test set hides its classes."""
    if isinstance(value, int) and columns.names is not None:
        return columns.names[value] if 0 <= value < len(columns.names) else None
    return None if value is None or value == "" else str(value)


def _split(file: SourceFile) -> Iterator[tuple[_Spec, int]]:
    """Runs of row groups with the number of rows in each.

    Raises:
        _UnusableTable: it is no Parquet file with images.
    """
    with _opened(file) as table:
        columns = _columns(table.schema_arrow)
        metadata = table.metadata
        first = first_row = rows = size_bytes = 0
        for group in range(metadata.num_row_groups):
            rows += metadata.row_group(group).num_rows
            size_bytes += metadata.row_group(group).total_byte_size
            if rows >= UNIT_ITEMS or size_bytes >= UNIT_BYTES or group + 1 == metadata.num_row_groups:
                spec = _Spec(file=file, first_group=first, end_group=group + 1, first_row=first_row, columns=columns)
                yield spec, rows
                first, first_row, rows, size_bytes = group + 1, first_row + rows, 0, 0


@contextmanager
def _opened(file: SourceFile) -> Iterator[pq.ParquetFile]:
    if fault := file.fault:
        raise _UnusableTable(fault)
    try:
        with (
            open_file(file.place) as stream,
            pq.ParquetFile(stream, buffer_size=_READ_BYTES, pre_buffer=False) as table,
        ):
            yield table
    except (pa.ArrowException, UnicodeDecodeError) as error:  # the latter of names in the footer
        raise _UnusableTable(f"is no Parquet file, or broken: {_cause(error)}") from error
    except ObjectNotFoundError as error:
        raise _UnusableTable("is gone") from error
    except OSError as error:
        raise _UnusableTable(f"cannot be read: {cause_of(error)}") from error


def _cause(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _columns(schema: pa.Schema) -> _Columns:
    features = _features(schema)
    images = [field for field in schema if _holds_images(field.type) and schema.names.count(field.name) == 1]
    marked = [field for field in images if features.get(field.name, {}).get("_type") == "Image"]
    named = [field for name in _IMAGE_NAMES for field in images if field.name.lower() == name]
    found = (marked or named or images)[:1]
    if not found or (len(images) > 1 and not marked and not named):
        shown = ", ".join(f"{field.name} ({field.type})" for field in schema)[:300]
        raise _UnusableTable(f"has no column that is clearly the one of images: it has {shown or 'none'}")
    label = _label_column(schema, features)
    names = features.get(label, {}).get("names") if label is not None else None
    return _Columns(
        image=found[0].name,
        in_struct=pa.types.is_struct(found[0].type),
        label=label,
        names=tuple(map(str, names)) if isinstance(names, list) else None,
    )


def _label_column(schema: pa.Schema, features: dict[str, dict[str, object]]) -> str | None:
    usable = [field.name for field in schema if _holds_labels(field.type) and schema.names.count(field.name) == 1]
    classes = [name for name in usable if features.get(name, {}).get("_type") == "ClassLabel"]
    return "label" if "label" in usable else next(iter(classes), None)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(kind.field(index).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_labels(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _features(schema: pa.Schema) -> dict[str, dict[str, object]]:
    """What Hugging Face says about the columns; nothing where it says nothing that can be read."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info["info"]["features"]
        return {str(name): feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
