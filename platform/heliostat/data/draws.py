"""Random draws as a function of a key, never of what was drawn before elsewhere.

Every draw of a run belongs to a stream named by (run seed, purpose, indices), for example the crop parameters of
(position in the run, view) or the masks of (step, slot). So a draw is the same on any worker, in any attempt, at any
time. Values are made from raw Philox words by arithmetic written here: NumPy promises the words of a bit generator for
ever, but not what its ``Generator`` methods make of them.
"""

import hashlib
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
_BLOCK_WORDS = 64
_UNIT = 2.0**-53


def stream_key(seed: int, purpose: str, *indices: int) -> int:
    """The 128-bit key of a stream."""
    text = ":".join([purpose, str(seed), *map(str, indices)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def permutation(size: int, seed: int, purpose: str, *indices: int) -> NDArray[np.int64]:
    """A permutation of ``range(size)``, shape (size,)."""
    words = np.random.Philox(key=stream_key(seed, purpose, *indices)).random_raw(size)
    return np.argsort(words, kind="stable")


def units(size: int, seed: int, purpose: str, *indices: int) -> NDArray[np.float64]:
    """The first ``size`` numbers of a stream, uniform in [0, 1) with 53 random bits: those of ``Draws.unit``."""
    return _units(np.random.Philox(key=stream_key(seed, purpose, *indices)), size)


def _units(words: np.random.Philox, size: int) -> NDArray[np.float64]:
    return (words.random_raw(size) >> np.uint64(11)).astype(np.float64) * _UNIT


class Draws:
    """One stream, read from its start."""

    def __init__(self, seed: int, purpose: str, *indices: int) -> None:
        self._words = np.random.Philox(key=stream_key(seed, purpose, *indices))
        self._block: list[float] = []

    def unit(self) -> float:
        """A uniform number in [0, 1) with 53 random bits."""
        if not self._block:
            self._block = _units(self._words, _BLOCK_WORDS)[::-1].tolist()
        return self._block.pop()

    def uniform(self, low: float, high: float) -> float:
        """A uniform number between ``low`` and ``high``."""
        return low + (high - low) * self.unit()

    def randint(self, low: int, high: int) -> int:
        """A uniform integer, both ends included."""
        return low + int(self.unit() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with the given probability; draws a number whatever the probability."""
        return self.unit() < probability

    def shuffle(self, items: list[T]) -> None:
        """Shuffle in place (Fisher-Yates)."""
        for last in range(len(items) - 1, 0, -1):
            other = self.randint(0, last)
            items[last], items[other] = items[other], items[last]
