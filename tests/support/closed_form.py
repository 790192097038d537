"""Inputs and parameters by a formula, so that numbers computed elsewhere with it can be compared with ours.

Expected numbers in tests that use it were computed with the published code of DINOv2 (facebookresearch/dinov2).
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def det(shape: Sequence[int], seed: int) -> Tensor:
    """sin(0.7391 i + 1.3 seed) in float64, rounded to float32."""
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.7391 * index + 1.3 * seed).float().reshape(tuple(shape))


def det_parameters(shapes: Mapping[str, Sequence[int]], base: int = 0) -> dict[str, Tensor]:
    """A state dict; the seed of a parameter is ``base`` and its place in ``shapes``."""
    return {name: _parameter(name, det(shape, base + place)) for place, (name, shape) in enumerate(shapes.items())}


def _parameter(name: str, values: Tensor) -> Tensor:
    if "gamma" in name:
        return 0.5 + 0.25 * values
    if "weight_g" in name:
        return 1 + 0.05 * values
    return 1 + 0.1 * values if "norm" in name and name.endswith("weight") else 0.08 * values
