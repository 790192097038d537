"""Slots of pre-training, which have masks."""

from typing import Protocol

from torch import Tensor


class Masked(Protocol):
    """A slot, before or after it was moved to a device."""

    @property
    def masks(self) -> Tensor | None: ...


def masks_of(slot: Masked) -> Tensor:
    """(2 B, N) bool."""
    assert slot.masks is not None
    return slot.masks
