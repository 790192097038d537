"""What a file of weights is, by its first bytes and not by its name; and reading safetensors."""

import os
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from heliostat.errors import UnreadableWeightsError

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_LENGTH_BYTES = 8


class FileKind(Enum):
    """How a file holds tensors."""

    SAFETENSORS = auto()
    PICKLE = auto()
    """``torch.save``: a zip archive with a pickle in it, or the older bare pickle."""


@dataclass(frozen=True, slots=True)
class TensorFile:
    """Content of a safetensors file."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def file_kind(path: Path) -> FileKind:
    """What the first bytes say.

    Raises:
        UnreadableWeightsError: it is neither kind, or cannot be read at all.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_LENGTH_BYTES + 1)
            size_bytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UnreadableWeightsError(f"{path} cannot be read: {error.strerror}", "Give another file") from error
    header_bytes = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if start[_LENGTH_BYTES:] == b"{" and header_bytes <= size_bytes - _LENGTH_BYTES:
        return FileKind.SAFETENSORS  # asked first: its length may begin with any byte
    if start.startswith((_ZIP, _PICKLE)):
        return FileKind.PICKLE
    raise UnreadableWeightsError(
        f"{path} ({size_bytes} bytes) is neither safetensors nor a file of torch.save, or it is cut off",
        "Give a whole file of weights: .safetensors, .pth or .bin",
    )


def read_safetensors(path: Path) -> TensorFile:
    """All tensors of a file; they may stay on disk until they are used.

    Raises:
        UnreadableWeightsError: the header or the length is wrong.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return TensorFile({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(". ")
        raise UnreadableWeightsError(f"{path} is broken: {reason}", "Copy or download it again") from error
