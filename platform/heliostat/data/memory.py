"""What a process keeps of what it has read: bounded by bytes, the least recently used goes first."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

PieceT = TypeVar("PieceT")


class ByteLru(Generic[PieceT]):
    """Pieces by the hash that names their content; used from many threads at once.

    Args:
        max_bytes: Bound of the sum of all pieces. A single piece above it is not kept.
        size_of: Bytes of a piece.
    """

    def __init__(self, max_bytes: int, size_of: Callable[[PieceT], int]) -> None:
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._pieces: OrderedDict[str, PieceT] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """Sum of the pieces that are kept now."""
        return self._held_bytes

    def get(self, name: str) -> PieceT | None:
        """A piece, if it is still there."""
        with self._lock:
            if name in self._pieces:
                self._pieces.move_to_end(name)
            return self._pieces.get(name)

    def put(self, name: str, piece: PieceT) -> None:
        """Keep a piece, at the cost of those that were not used for longest."""
        size_bytes = self._size_of(piece)
        with self._lock:
            if name in self._pieces or size_bytes > self._max_bytes:
                return
            self._pieces[name] = piece
            self._held_bytes += size_bytes
            while self._held_bytes > self._max_bytes:
                self._held_bytes -= self._size_of(self._pieces.popitem(last=False)[1])
