"""A copy of a rank's state in host memory, so that training can go on while the copy is written."""

import logging
import weakref
from collections.abc import Callable, Iterable

import torch

from heliostat.checkpoint.format import StateSlice

_log = logging.getLogger(__name__)

_ALIGNMENT_BYTES = 16
"""No element type is wider."""
_PORTABLE = 1
"""CUDA's flag for memory that is pinned for every device."""


class Snapshot:
    """One flat buffer, made at the first copy and used again for every later one.

    It takes as many bytes as the state, and no copy needs more. Of a state on a GPU it is pinned, which makes copying
    several times as fast.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._unpin: Callable[[], object] = lambda: None

    @property
    def size_bytes(self) -> int:
        """Size of the buffer."""
        return self._buffer.numel()

    def _grow(self, size_bytes: int, on_gpu: bool) -> None:
        self._unpin()
        self._buffer = torch.empty(0, dtype=torch.uint8)  # the old one goes first: there is room for one only
        self._buffer = torch.empty(size_bytes, dtype=torch.uint8)
        if on_gpu and _pin(self._buffer):
            self._unpin = weakref.finalize(self, _unpin, self._buffer)

    def take(self, slices: Iterable[StateSlice]) -> list[StateSlice]:
        """Copy slices, whatever device they are on; the copies, which the next call overwrites.

        What is done to the originals after this returns is not seen in the copies.
        """
        sources = list(slices)
        starts, size_bytes = _layout(sources)
        on_gpu = any(each.values.is_cuda for each in sources)
        if size_bytes > self._buffer.numel():
            self._grow(size_bytes, on_gpu)
        copies = []
        for each, start in zip(sources, starts, strict=True):
            values = each.values.detach()
            room = self._buffer[start : start + values.numel() * values.element_size()].view(values.dtype)
            room.copy_(values, non_blocking=True)
            copies.append(StateSlice(each.kind, each.parameter, each.offset, room))
        for device in {each.values.device for each in sources if each.values.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return copies


def _layout(slices: Iterable[StateSlice]) -> tuple[list[int], int]:
    """Where each slice begins, and the size of all, in bytes."""
    starts, position = [], 0
    for each in slices:
        starts.append(position)
        size_bytes = each.values.numel() * each.values.element_size()
        position += -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return starts, position


def _pin(buffer: torch.Tensor) -> bool:
    """Pin memory where it is; torch's own pinned memory is rounded up to a power of two, up to twice the state."""
    error = int(torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), buffer.numel(), _PORTABLE))
    if error:
        _log.warning("CUDA cannot pin %d bytes (error %d): copies of the state are slower", buffer.numel(), error)
    return not error


def _unpin(buffer: torch.Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(buffer.data_ptr())
