"""What a checkpoint looks like at rest. No I/O here, and no torch at import: clients list checkpoints without it.

The state of a training run is a set of flat tensors, each named by a kind (``fp32``, ``exp_avg``, ``teacher``) and a
parameter. A rank writes the slices it owns, whatever they are, into one safetensors file under the names
``kind|parameter|offset``. The manifest says which slices lie where, so any number of ranks can read any slices back.

    checkpoints/step-00001000/attempt-3/rank-00000.safetensors   one per rank that wrote
    checkpoints/step-00001000/attempt-3/rank-00000.json          what the rank wrote, beside its file once that is whole
    checkpoints/step-00001000/attempt-3/manifest.json            what makes them one checkpoint
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from heliostat.storage.fenced_log import Record as Record

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_BYTES = 16 * 1024 * 1024
"""Unit of verification: who reads one byte reads and hashes this much."""

_FOLDER = re.compile(r"checkpoints/step-(\d{8,})/attempt-(\d+)(?=/|$)")
_SEPARATOR = "|"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, eq=False)
class StateSlice:
    """Elements [offset, offset + len(values)) of one flat tensor of the training state.

    Raises:
        ValueError: ``values`` is not one-dimensional, the offset is negative, or a name is empty or holds ``|``.
    """

    kind: str
    parameter: str
    offset: int
    values: "Tensor"

    def __post_init__(self) -> None:
        if self.values.dim() != 1 or self.offset < 0:
            raise ValueError(f"{self.name}: a slice is one-dimensional, from an offset >= 0; shape {self.values.shape}")
        if any(not name or _SEPARATOR in name for name in (self.kind, self.parameter)):
            raise ValueError(f"{self.name}: kind and parameter are names without {_SEPARATOR!r}")

    @property
    def tensor(self) -> str:
        """``kind|parameter``."""
        return tensor_name(self.kind, self.parameter)

    @property
    def name(self) -> str:
        """``kind|parameter|offset``, the key in the safetensors file."""
        return f"{self.tensor}{_SEPARATOR}{self.offset}"


class SliceRecord(Record):
    """Where a shard holds elements [offset, offset + numel) of a tensor."""

    tensor: str
    """``kind|parameter``."""
    offset: Count
    numel: Count
    dtype: str
    """As safetensors spells it: F32, BF16, I64."""
    start_byte: Count
    """Position in the file."""

    @property
    def end(self) -> int:
        """First element behind the slice."""
        return self.offset + self.numel


class ShardRecord(Record):
    """One rank's file: its size, the hash of each chunk, and what lies in it."""

    key: str
    size_bytes: Count
    chunk_bytes: Annotated[int, Field(gt=0, le=CHUNK_BYTES)]
    chunk_sha256: tuple[Sha256, ...]
    slices: tuple[SliceRecord, ...]

    @model_validator(mode="after")
    def _chunks_cover_the_file(self) -> Self:
        if len(self.chunk_sha256) != -(-self.size_bytes // self.chunk_bytes):
            raise ValueError(f"{len(self.chunk_sha256)} hashes are not one per chunk of {self.size_bytes} bytes")
        return self

    def chunk_range(self, index: int) -> tuple[int, int]:
        """Bytes [start, end) of a chunk."""
        start = index * self.chunk_bytes
        return start, min(start + self.chunk_bytes, self.size_bytes)


class CheckpointManifest(Record):
    """One checkpoint: which files, which tensors, and the small state that is no tensor."""

    schema_version: Literal[1] = 1
    step: Count
    attempt: Annotated[int, Field(ge=1)]
    world_size: Annotated[int, Field(ge=1)]
    shards: tuple[ShardRecord, ...]
    tensors: dict[str, Count]
    """``kind|parameter`` -> number of elements."""
    counters: dict[str, int | FiniteFloat | str]
    """Scalars: the optimizer's step, the loss scale, seeds."""
    digest_of_ids: str
    """Digest of the ids of all samples that the loss consumed up to this step."""

    @property
    def folder(self) -> str:
        """The prefix below which every file of this checkpoint lies."""
        return checkpoint_folder(self.step, self.attempt)

    @property
    def key(self) -> str:
        """Where the manifest itself lies."""
        return manifest_key(self.folder)

    @property
    def size_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.size_bytes for shard in self.shards)


def tensor_name(kind: str, parameter: str) -> str:
    """``kind|parameter``."""
    return f"{kind}{_SEPARATOR}{parameter}"


def checkpoint_folder(step: int, attempt: int) -> str:
    """The prefix of a checkpoint; no two attempts ever write below the same one."""
    return f"checkpoints/step-{step:08d}/attempt-{attempt}"


def manifest_key(folder: str) -> str:
    """Where the manifest of the checkpoint in this folder lies."""
    return f"{folder}/manifest.json"


def shard_key(folder: str, rank: int) -> str:
    """Where a rank writes."""
    return f"{folder}/rank-{rank:05d}.safetensors"


def record_key(folder: str, rank: int) -> str:
    """Where a rank says what it wrote."""
    return f"{folder}/rank-{rank:05d}.json"


def folder_of(key: str) -> tuple[str, int] | None:
    """The checkpoint folder that a key lies in, and its attempt; None for a key that is no part of a checkpoint."""
    match = _FOLDER.match(key)
    return (match.group(0), int(match.group(2))) if match else None


def manifest_fault(manifest: CheckpointManifest) -> str | None:
    """Why this manifest does not describe one whole checkpoint, or None: the decision before every commit."""
    strays = [shard.key for shard in manifest.shards if not shard.key.startswith(f"{manifest.folder}/")]
    if strays:
        return f"shard {strays[0]} lies outside of {manifest.folder}"
    found: dict[str, list[SliceRecord]] = {name: [] for name in manifest.tensors}
    for shard in manifest.shards:
        for record in shard.slices:
            if record.tensor not in found:
                return f"{record.tensor} is in {shard.key} but not among the tensors"
            found[record.tensor].append(record)
    return next((fault for name, numel in manifest.tensors.items() if (fault := _gap(name, numel, found[name]))), None)


def _gap(name: str, numel: int, slices: Iterable[SliceRecord]) -> str | None:
    covered = 0
    for record in sorted(slices, key=lambda record: record.offset):
        if record.end > numel:
            return f"{name} has {numel} elements, but a slice ends at {record.end}"
        if record.offset > covered:
            break
        covered = max(covered, record.end)
    return None if covered == numel else f"elements from {covered} on of {name} ({numel} elements) are in no shard"
