"""ConvNeXt (arXiv 2201.03545) as a student of a vision transformer: its last map gives the tokens.

As in DINOv3 (arXiv 2508.10104, section 5): the mean over the map plays the class token, and the map is resized to the
grid of a patch size, so that it is compared as the patches of any other student. State-dict names and shapes are those
of the published implementation (``stages.2.5.dwconv.weight`` …), without its classifier.

Legend: B crops of a group, C channels, H, W sides, N patches of a crop, D width, M wanted patches of a group.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat.config.convnext import STEM_PX, ConvNextConfig
from heliostat.models.layers import LAYER_NORM_EPS
from heliostat.models.linear import Linear
from heliostat.models.recompute import Recompute, recomputed
from heliostat.models.tokens import Tokens, WantedTokens

_KERNEL, _RATIO = 7, 4


class MapNorm(nn.LayerNorm):
    """Normalises the channels of every position of a map, (B, D, H, W) to the same."""

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """(B, D, H, W)."""
        return super().forward(x_BDHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Halving(nn.Conv2d):
    """Squares of two by two positions to one; a side of a single position stays one, beside zeros."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__(dim, out, 2, 2)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """(B, D, H, W) to half of the sides, rounded down."""
        height, width = x_BDHW.shape[2:]
        if height < 2 or width < 2:
            x_BDHW = F.pad(x_BDHW, (0, max(0, 2 - width), 0, max(0, 2 - height)))
        halved_BDHW: Tensor = super().forward(x_BDHW)
        return halved_BDHW


class ConvBlock(nn.Module):
    """A depthwise convolution over 7 x 7 positions, then two layers over the channels of each."""

    def __init__(self, dim: int, layer_scale: float) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, _KERNEL, padding=_KERNEL // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.pwconv1 = Linear(dim, _RATIO * dim)
        self.pwconv2 = Linear(_RATIO * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """(B, D, H, W) to the same."""
        normed_BHWD: Tensor = self.norm(self.dwconv(x_BDHW).permute(0, 2, 3, 1))
        branch_BHWD: Tensor = self.gamma * self.pwconv2(F.gelu(self.pwconv1(normed_BHWD)))
        return x_BDHW + branch_BHWD.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """The convolutional backbone.

    Args:
        config: depths, dims and so on.
        grid: patches along a side of the global crop; no parameter depends on it.
    """

    def __init__(self, config: ConvNextConfig, grid: int) -> None:
        super().__init__()
        dims = config.dims
        self.config = config
        self.grid = grid
        self.recompute: Recompute = "none"
        stem = nn.Sequential(
            nn.Conv2d(config.channels, dims[0], STEM_PX, STEM_PX), MapNorm(dims[0], eps=LAYER_NORM_EPS)
        )
        halvings = [nn.Sequential(MapNorm(dim, eps=LAYER_NORM_EPS), Halving(dim, out)) for dim, out in pairwise(dims)]
        self.downsample_layers = nn.ModuleList([stem, *halvings])
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvBlock(dim, config.layer_scale) for _ in range(depth)))
            for depth, dim in zip(config.depths, dims, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=LAYER_NORM_EPS)

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the initial weights, as the paper's code does."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                assert module.bias is not None  # noqa: S101 -- for the type checker: all have one
                nn.init.zeros_(module.bias)

    def prepare(self, recompute: Recompute, compiles: bool) -> None:
        """Choose how blocks are computed; as ``VisionTransformer.prepare``."""
        self.recompute = "none" if compiles and recompute == "selective" else recompute
        if compiles:
            for block in self.blocks():
                block.compile()

    def blocks(self) -> list[nn.Module]:
        """Those of all stages."""
        return [block for stage in self.stages for block in stage.children()]

    @overload
    def forward(
        self,
        groups: Sequence[Tensor],
        masks: Sequence[None] | None = None,
        drops: None = None,
        jitters: None = None,
        wanted: None = None,
    ) -> list[Tokens]: ...

    @overload
    def forward(
        self,
        groups: Sequence[Tensor],
        masks: Sequence[None] | None = None,
        drops: None = None,
        jitters: None = None,
        *,
        wanted: Sequence[Tensor],
        registers: bool = False,
    ) -> list[WantedTokens]: ...

    def forward(
        self,
        groups: Sequence[Tensor],
        masks: Sequence[None] | None = None,
        drops: None = None,
        jitters: None = None,
        wanted: Sequence[Tensor] | None = None,
        registers: bool = False,
    ) -> list[Tokens] | list[WantedTokens]:
        """Encode groups of crops.

        Args:
            groups: tensors of shape (B, C, H, W), one per crop size, of at least 4 pixels a side; sides are multiples
                of ``patch_px`` where patches are wanted.
            masks: none: there is no mask token.
            drops: none.
            jitters: none: there are no positions.
            wanted: per group, the flat indices (into B * N) of the patches that are used. Then the result is
                ``WantedTokens``.
            registers: whether register tokens are used as well: there are none, and none are given.

        Raises:
            TypeError: groups is no list.
            ValueError: patches are masked, crops dropped or positions moved, or a side does not fit.
        """
        if isinstance(groups, Tensor):
            raise TypeError("groups is a list of tensors, one per size of crop: model([images]) for one")
        if any(mask is not None for mask in masks or ()) or drops is not None or jitters is not None:
            raise ValueError("a convolutional backbone takes no masks, drops or jitters")
        maps = [self._map(crops) for crops in groups]
        if wanted is None:
            return [
                Tokens(self._cls(x), x.new_empty(len(x), 0, self.config.embed_dim), self._patches(x, crops))
                for x, crops in zip(maps, groups, strict=True)
            ]
        return [
            WantedTokens(self._cls(x), self._wanted(x, crops, wanted_M))
            for x, crops, wanted_M in zip(maps, groups, wanted, strict=True)
        ]

    def _map(self, crops_BCHW: Tensor) -> Tensor:
        if min(crops_BCHW.shape[2:]) < STEM_PX:
            raise ValueError(f"images of {_sides(crops_BCHW)} pixels are less than the {STEM_PX} pixels of the stem")
        x_BDHW = crops_BCHW.contiguous(memory_format=torch.channels_last)
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x_BDHW = downsample(x_BDHW)
            for block in stage.children():
                x_BDHW = recomputed(block, self.recompute)(x_BDHW)
        return x_BDHW

    def _cls(self, x_BDHW: Tensor) -> Tensor:
        cls_BD: Tensor = self.norm(x_BDHW.mean((2, 3)))
        return cls_BD

    def _patches(self, x_BDHW: Tensor, crops_BCHW: Tensor) -> Tensor:
        height, width = crops_BCHW.shape[2:]
        patch_px = self.config.patch_px
        if height % patch_px or width % patch_px:
            raise ValueError(
                f"images of {_sides(crops_BCHW)} pixels are not made of whole patches of {patch_px} pixels"
            )
        resized_BDHW = resize_map(x_BDHW, height // patch_px, width // patch_px)
        patches_BND: Tensor = self.norm(resized_BDHW.flatten(2).mT)
        return patches_BND

    def _wanted(self, x_BDHW: Tensor, crops_BCHW: Tensor, wanted_M: Tensor) -> Tensor:
        if not len(wanted_M):
            return x_BDHW.new_empty(0, self.config.embed_dim)
        return self._patches(x_BDHW, crops_BCHW).flatten(0, 1).index_select(0, wanted_M)


def resize_map(x_BDHW: Tensor, rows: int, columns: int) -> Tensor:
    """A map on another grid: bilinear, antialiased where it shrinks, in fp32 at least.

    As products with the weights of each side: their gradient adds up in one order, on every device.
    """
    height, width = x_BDHW.shape[2:]
    if (height, width) == (rows, columns):
        return x_BDHW
    with torch.autocast(x_BDHW.device.type, enabled=False):
        x_BDHW = x_BDHW.float() if x_BDHW.dtype in (torch.float16, torch.bfloat16) else x_BDHW
        tall, wide = (_weights(of, to, x_BDHW) for of, to in ((height, rows), (width, columns)))
        return tall @ x_BDHW @ wide.mT


def _weights(size: int, to: int, like: Tensor) -> Tensor:
    """What each of ``to`` positions takes of ``size`` ones, (to, size): triangles around its place among them."""
    stride = size / to
    reach = max(1.0, stride)
    rows = []
    for index in range(to):
        centre = (index + 0.5) * stride
        row = [max(0.0, 1 - abs(position + 0.5 - centre) / reach) for position in range(size)]
        whole = math.fsum(row)
        rows.append([weight / whole for weight in row])
    return torch.tensor(rows, dtype=like.dtype, device=like.device)


def _sides(crops_BCHW: Tensor) -> str:
    height, width = crops_BCHW.shape[2:]
    return f"{height} x {width}"
