"""What backbones give.

Legend: B crops of a group, N patches of a crop, D width, R registers, M wanted patches of a group.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """Normalised output tokens of one group of crops."""

    cls_BD: Tensor
    registers_BRD: Tensor
    patches_BND: Tensor


@dataclass(frozen=True, slots=True)
class WantedTokens:
    """Normalised class tokens of one group of crops, and those of its patches that were asked for, in row order."""

    cls_BD: Tensor
    patches_MD: Tensor
    registers_BRD: Tensor | None = None
    """Where they were asked for."""
