"""The manifest: what a dataset consists of, named by its own hash.

``datasets/<name>/manifests/<sha256>.json`` holds content only (shards, row groups, hashes, labels), so that two ingests
of the same images give the same name. When, from where and with what version that content was first written stands
beside it in ``manifests/<sha256>.provenance.json``. Both never change. ``datasets/<name>/manifest.json`` points to the
newest manifest; a run keeps the hash it started with and is not concerned when the pointer moves.

A dataset has either shards of its own, or a selection: references to rows of other datasets, which stay where they are.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from heliostat.config.base import Name, Section
from heliostat.errors import (
    CorruptManifestError,
    DatasetNotFoundError,
    InvalidValueError,
    ObjectExistsError,
    ObjectNotFoundError,
)
from heliostat.storage import Store
from heliostat.storage.layout import dataset_store

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ModelT = TypeVar("ModelT", bound=BaseModel)
_POINTER = "manifest.json"


class ByteRange(Section):
    """Bytes ``[offset, offset + size_bytes)`` of a shard and their hash."""

    offset: int = Field(ge=0)
    size_bytes: int = Field(gt=0)
    sha256: Sha256

    @property
    def end(self) -> int:
        """The first byte after the range."""
        return self.offset + self.size_bytes


class RowGroup(ByteRange):
    """A row group of a Parquet object: the unit that is read and verified as a whole."""

    rows: int = Field(gt=0)


class ShardRowGroup(RowGroup):
    """A row group of a shard, with the hash of its slice of the shard's index: either can be read without the other."""

    index_sha256: Sha256


class ParquetObject(Section):
    """Which bytes of a Parquet object hold what, and their hashes. Bytes outside of these ranges are never read."""

    size_bytes: int = Field(gt=0)
    rows: int = Field(gt=0)
    footer: ByteRange
    row_groups: tuple[RowGroup, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.rows != sum(group.rows for group in self.row_groups):
            raise ValueError("rows is not the sum over the row groups")
        starts = [group.offset for group in self.row_groups] + [self.footer.offset]
        if any(group.end > start for group, start in zip(self.row_groups, starts[1:], strict=True)):
            raise ValueError("row groups overlap")
        if self.footer.end != self.size_bytes:
            raise ValueError("the footer does not end the object")
        return self


class Shard(ParquetObject):
    """Images. The key holds the hash of the bytes: a shard never changes, and none overwrites another."""

    key: str = Field(pattern=r"^shards/part-[0-9a-f]{16}\.parquet$")
    row_groups: tuple[ShardRowGroup, ...] = Field(min_length=1)

    @property
    def index_key(self) -> str:
        """Key of the index: where each row's image lies in the shard, see ``heliostat.data.shard_index``."""
        return f"{self.key.removesuffix('.parquet')}.index"


class Part(Section):
    """A dataset that rows are selected from, as it was at one moment."""

    name: Name
    manifest_sha256: Sha256


class Selection(ParquetObject):
    """Rows of other datasets, sorted by part and row; ``heliostat.data.selection`` has the format of the object."""

    key: str = Field(pattern=r"^selections/[0-9a-f]{16}\.parquet$")
    parts: tuple[Part, ...] = Field(min_length=1)
    selected_bytes: int = Field(
        gt=0, description="what the rows take in the parts' shards, each as large as the mean of its row group"
    )
    group_rows: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        description="selected rows of each row group of the parts that has any, in their order"
    )

    @model_validator(mode="after")
    def _counts_all_rows(self) -> Self:
        if self.rows != sum(self.group_rows):
            raise ValueError("rows is not the sum of group_rows")
        return self


class QuarantinePart(Section):
    """A list of files that ingests refused; the key holds the hash of its bytes. See ``heliostat.data.quarantine``."""

    key: str = Field(pattern=r"^quarantine/[0-9a-f]{16}\.jsonl$")
    sha256: Sha256
    size_bytes: int = Field(gt=0)
    lines: int = Field(gt=0)


class DatasetManifest(Section):
    """The content of a dataset at one moment: shards, or a selection."""

    schema_version: Literal[2] = 2
    name: str
    labels: tuple[str, ...] = Field((), description="class names; a row's label is an index into them")
    shards: tuple[Shard, ...] = ()
    selection: Selection | None = Field(None, description="rows of other datasets; without shards and labels then")
    quarantine: tuple[QuarantinePart, ...] = Field((), description="lists of refused files, each file in one of them")

    @model_validator(mode="after")
    def _has_images_in_one_place(self) -> Self:
        if self.selection is not None and (self.shards or self.labels):
            raise ValueError("a selection has no shards or labels of its own")
        return self

    @property
    def quarantined(self) -> int:
        """Files that all ingests into the dataset have refused."""
        return sum(part.lines for part in self.quarantine)

    @property
    def group_rows(self) -> tuple[int, ...]:
        """Rows of each row group over all shards; of a selection, its rows in each row group that has any."""
        if self.selection is not None:
            return self.selection.group_rows
        return tuple(group.rows for shard in self.shards for group in shard.row_groups)

    @property
    def rows(self) -> int:
        """Images in the dataset."""
        if self.selection is not None:
            return self.selection.rows
        return sum(shard.rows for shard in self.shards)

    @property
    def size_bytes(self) -> int:
        """Bytes of all shards; of a selection, about what its rows take in the shards of its parts."""
        if self.selection is not None:
            return self.selection.selected_bytes
        return sum(shard.size_bytes for shard in self.shards)

    @property
    def sha256(self) -> str:
        """The name of this manifest."""
        return hashlib.sha256(_canonical_json(self)).hexdigest()


class Provenance(Section):
    """Where a manifest's content came from. No part of its hash."""

    source: str
    created_utc: str
    heliostat_version: str
    parent_sha256: Sha256 | None = Field(description="the manifest that this one added to")
    images_added: int = Field(ge=0)
    duplicates: int = Field(ge=0)


class _Pointer(Section):
    manifest_sha256: Sha256


@dataclass(frozen=True, slots=True)
class Head:
    """The newest manifest as it was read: to publish the next one, nobody may have published in between."""

    manifest: DatasetManifest
    version: str


def check_dataset_name(name: str) -> None:
    """Refuse a name that no dataset can have.

    Raises:
        InvalidValueError: the rule is named.
    """
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise InvalidValueError(
            f"the dataset name {name!r} is not 1 to 63 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit",
            "Choose another name",
        ) from error


def load_manifest(root: Store, name: str, sha256: str | None = None) -> DatasetManifest:
    """The newest manifest of a dataset, or the one that a run has pinned.

    Raises:
        DatasetNotFoundError: no dataset of this name, or it never had this manifest.
        CorruptManifestError: the bytes are not those that the hash names, or of an unknown format.
    """
    if sha256 is None:
        head = read_head(root, name)
        if head is None:
            raise DatasetNotFoundError(f"there is no dataset {name!r} under {root.url}", _existing(root))
        return head.manifest
    return _read(dataset_store(root, name), sha256)


def read_head(root: Store, name: str) -> Head | None:
    """The newest manifest with the version of the pointer, or ``None`` where the dataset does not exist yet."""
    store = dataset_store(root, name)
    try:
        data, version = store.get_versioned(_POINTER)
    except ObjectNotFoundError:
        return None
    pointer = _parse(_Pointer, data, _POINTER)
    return Head(_read(store, pointer.manifest_sha256), version)


def write_manifest(root: Store, manifest: DatasetManifest, provenance: Provenance, base: Head | None = None) -> str:
    """Publish a manifest as the successor of ``base``; its shards must be in place already. Returns its hash.

    Raises:
        VersionConflictError, ObjectExistsError: another manifest was published since ``base`` was read. Nothing points
            to this one then; read the head again, and publish what is still missing from it.
    """
    store = dataset_store(root, manifest.name)
    # The same content may have been written before: by an ingest that stopped here, or by one that runs beside this.
    with suppress(ObjectExistsError):
        store.create(_provenance_key(manifest.sha256), _canonical_json(provenance))
    with suppress(ObjectExistsError):
        store.create(_manifest_key(manifest.sha256), _canonical_json(manifest))
    pointer = _canonical_json(_Pointer(manifest_sha256=manifest.sha256))
    if base is None:
        store.create(_POINTER, pointer)
    else:
        store.replace(_POINTER, pointer, base.version)
    return manifest.sha256


def load_provenance(root: Store, name: str, sha256: str) -> Provenance:
    """Where a manifest came from, when it was written first.

    Raises:
        CorruptManifestError: the record is missing or not in a known format.
    """
    key = _provenance_key(sha256)
    try:
        return _parse(Provenance, dataset_store(root, name).get(key), key)
    except ObjectNotFoundError as error:
        raise CorruptManifestError(f"{key} of dataset {name!r} is missing", "Ingest the dataset again") from error


def _manifest_key(sha256: str) -> str:
    return f"manifests/{sha256}.json"


def _provenance_key(sha256: str) -> str:
    return f"manifests/{sha256}.provenance.json"


def _canonical_json(model: BaseModel) -> bytes:
    return json.dumps(model.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()


def _read(store: Store, sha256: str) -> DatasetManifest:
    key = _manifest_key(sha256)
    try:
        data = store.get(key)
    except ObjectNotFoundError as error:
        raise DatasetNotFoundError(
            f"there is no manifest {sha256} under {store.url}", "Use one that `heliostat dataset ingest` has printed"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise CorruptManifestError(
            f"{key} under {store.url} has the hash {found[:16]}, its name says {sha256[:16]}",
            "Restore the object from a backup, or ingest the dataset again under another name",
        )
    return _parse(DatasetManifest, data, key)


def _parse(model: type[ModelT], data: bytes, key: str) -> ModelT:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CorruptManifestError(
            f"{key} is in no known format: {where}: {first['msg']}",
            "Use the version of heliostat that wrote it, or ingest the dataset again under another name",
        ) from error


def _existing(root: Store) -> str:
    parts = [info.key.split("/") for info in root.list("datasets/")]
    names = [part[1] for part in parts if len(part) == 3 and part[2] == _POINTER]
    known = f"Datasets there: {', '.join(names)}" if names else "There are no datasets there yet"
    return f"{known}; `heliostat dataset ingest SRC DST` makes one"
