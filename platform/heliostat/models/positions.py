"""Where a patch is: a learned table brought to the crop's grid, or rotations of queries and keys.

Legend: G side of the grid that a table is stored for, P patches of a crop, N tokens of a sequence (its patches come
last), D width of the model, S sequences, H heads, E width of a head, F frequencies per axis (E / 4).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat.config.model import RopeConfig

Resize = Literal["offset", "antialias", "size"]

_OFFSET = 0.1


def resize_positions(pos_embed_1ND: Tensor, rows: int, columns: int, mode: Resize) -> Tensor:
    """A position embedding stored for G x G patches, for another grid; bicubic, in fp32 at least.

    The modes differ in what they compute, also at equal sizes: released models without registers were trained with
    ``offset``, those with registers with ``antialias``; Hugging Face's code resizes to the ``size`` (dinov2,
    ``interpolate_offset`` and ``interpolate_antialias``).

    Args:
        pos_embed_1ND: (1, 1 + G * G, D), the class token's position first.
        rows: patches along the height of the crop.
        columns: patches along the width of the crop.
        mode: how the patches' part is resized.

    Returns:
        (1, 1 + rows * columns, D) of the same type; the table itself where the grid is its own.

    Raises:
        ValueError: the table holds no square grid, or no such grid can be made of it.
    """
    side = math.isqrt(pos_embed_1ND.shape[1] - 1)
    if side == 0 or pos_embed_1ND.shape[1] != 1 + side * side:
        raise ValueError(f"{pos_embed_1ND.shape[1]} positions are not one and those of a square grid")
    if min(rows, columns) < 1:
        raise ValueError(f"a grid of {rows} x {columns} patches has none")
    if rows == columns == side:
        return pos_embed_1ND
    wide = torch.promote_types(pos_embed_1ND.dtype, torch.float32)
    grid_1DGG = pos_embed_1ND[:, 1:].to(wide).unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if torch.are_deterministic_algorithms_enabled():
        grid_1DGG = grid_1DGG.cpu()  # the backward pass has no deterministic form on GPUs
    if mode == "offset":
        # The factor itself sets the distance between samples, so the offset moves every sample a little.
        factor = ((rows + _OFFSET) / side, (columns + _OFFSET) / side)
        grid = F.interpolate(grid_1DGG, scale_factor=factor, mode="bicubic", recompute_scale_factor=False)
    else:
        grid = F.interpolate(grid_1DGG, size=(rows, columns), mode="bicubic", antialias=mode == "antialias")
    if grid.shape[2:] != (rows, columns):
        raise ValueError(f"the resize gave {tuple(grid.shape[2:])} patches, not {(rows, columns)}")
    patches_1PD = grid.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed_1ND)
    return torch.cat([pos_embed_1ND[:, :1], patches_1PD], 1)


def at_grid(weights: Mapping[str, Tensor], grid: int, mode: Resize) -> dict[str, Tensor]:
    """A state dict whose position embeddings are stored for another grid; everything else is the same.

    The start of the high-resolution stage (DINOv2, section 3): networks trained at 224 px go on at 518 px. Student,
    teacher and their heads can be given together.

    Args:
        weights: of backbones or of whole networks; position embeddings are the tensors named ``pos_embed``.
        grid: patches along a side.
        mode: as of ``resize_positions``.
    """
    return {
        name: resize_positions(tensor, grid, grid, mode) if name.rpartition(".")[2] == "pos_embed" else tensor
        for name, tensor in weights.items()
    }


class Randomness(Protocol):
    """What a jitter needs of a stream of draws; ``random.Random`` has it too."""

    def uniform(self, low: float, high: float, /) -> float:
        """A uniform number."""


@dataclass(frozen=True, slots=True)
class RopeJitter:
    """A change of the coordinates for one training step; the defaults change nothing.

    A coordinate c becomes ``(c + shift) * stretch * rescale`` with its axis' shift and stretch.
    """

    shift_h: float = 0.0
    shift_w: float = 0.0
    stretch_h: float = 1.0
    stretch_w: float = 1.0
    rescale: float = 1.0


def draw_rope_jitter(config: RopeConfig, draws: Randomness) -> RopeJitter | None:
    """Draw a jitter; None, without a draw, where the config has none (DINOv3, arXiv 2508.10104).

    A jitter always takes five numbers, so that switching one part on or off leaves the draws of the others alone.
    """
    if config.shift is None and config.stretch is None and config.rescale is None:
        return None
    shift = config.shift or 0.0
    return RopeJitter(
        shift_h=draws.uniform(-shift, shift),
        shift_w=draws.uniform(-shift, shift),
        stretch_h=_draw_factor(draws, config.stretch),
        stretch_w=_draw_factor(draws, config.stretch),
        rescale=_draw_factor(draws, config.rescale),
    )


def _draw_factor(draws: Randomness, limit: float | None) -> float:
    """Log-uniform in [1 / limit, limit]."""
    bound = math.log(limit or 1.0)
    return math.exp(draws.uniform(-bound, bound))


def rope_table(
    config: RopeConfig, rows: int, columns: int, head_width: int, jitter: RopeJitter | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Sines and cosines of a grid's rotations, fp32, each (rows * columns, E), patches row by row.

    An angle is ``2 pi coordinate / period``; the periods of an axis are ``base ** (2 j / (E / 2))`` for j < E / 4. A
    row holds the frequencies of the height, then of the width, then both again (DINOv3, arXiv 2508.10104, its code).

    Args:
        config: base of the periods and how the sides are normalised.
        rows: patches along the height of the crop.
        columns: patches along the width of the crop.
        head_width: E, a multiple of 4.
        jitter: what this training step changes; None changes nothing.
        device: where the tables shall be.
    """
    jitter = jitter or RopeJitter()
    side_h, side_w = _normalising_sides(config, rows, columns)
    h = (_centres(rows, side_h, device) + jitter.shift_h) * jitter.stretch_h * jitter.rescale
    w = (_centres(columns, side_w, device) + jitter.shift_w) * jitter.stretch_w * jitter.rescale
    coordinates_P2 = torch.stack([h.repeat_interleave(columns), w.repeat(rows)], dim=1)
    exponents_F = 2 * torch.arange(head_width // 4, dtype=torch.float32, device=device) / (head_width / 2)
    angles_P2F = 2 * math.pi * coordinates_P2.unsqueeze(-1) / config.base**exponents_F
    angles_PE = angles_P2F.flatten(1).repeat(1, 2)
    return angles_PE.sin(), angles_PE.cos()


def _normalising_sides(config: RopeConfig, rows: int, columns: int) -> tuple[int, int]:
    if config.normalise == "separate":
        return rows, columns
    side = min(rows, columns) if config.normalise == "min" else max(rows, columns)
    return side, side


def _centres(patches: int, side: int, device: torch.device) -> Tensor:
    """Centres of patches along an axis on which ``side`` patches span [-1, 1]."""
    return (torch.arange(patches, dtype=torch.float32, device=device) + 0.5) / side * 2 - 1


def rotate(x_SHNE: Tensor, sin_PE: Tensor, cos_PE: Tensor) -> Tensor:
    """Queries or keys with their last P tokens rotated; class and register tokens stay as they are.

    Channel e and channel e + E / 2 are the two coordinates that an angle turns. Shape and type are those of the input.
    """
    patches = sin_PE.shape[0]
    others, x_SHPE = x_SHNE.split([x_SHNE.shape[-2] - patches, patches], dim=-2)
    first, second = x_SHPE.chunk(2, dim=-1)
    turned_SHPE = torch.cat([-second, first], dim=-1)
    rotated_SHPE = x_SHPE * cos_PE.to(x_SHNE.dtype) + turned_SHPE * sin_PE.to(x_SHNE.dtype)
    return torch.cat([others, rotated_SHPE], dim=-2)
