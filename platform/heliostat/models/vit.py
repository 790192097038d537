"""The vision transformer of DINOv2, for packed batches of differently sized crops.

State-dict names and shapes are those of the released weights (``blocks.3.attn.qkv.weight`` …).

Legend: B crops of a group, C channels, N tokens of a crop, D width, T packed tokens of all groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat.config.model import ModelConfig
from heliostat.models.attention import Layout, packed_attention

LAYER_NORM_EPS = 1e-6
_OFFSET = 0.1

BranchKeep = Sequence[Tensor]
"""Per group of crops: which of its crops a residual branch computes, shape (kept,)."""
DropPlan = Sequence[tuple[BranchKeep, BranchKeep]]
"""Per block: the crops that its attention and its feed-forward branch compute (batch-subset stochastic depth)."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Normalised output tokens of one group of crops."""

    cls_BD: Tensor
    registers_BRD: Tensor
    patches_BND: Tensor


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens, row by row."""

    def __init__(self, channels: int, dim: int, patch_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch_px, patch_px)

    def forward(self, crops_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, D)."""
        out: Tensor = self.proj(crops_BCHW)
        return out.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention over a packed batch."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        """(T, D) to (T, D)."""
        qkv: Tensor = self.qkv(x_TD)
        out: Tensor = self.proj(packed_attention(qkv.unflatten(-1, (3, self.heads, -1)), layout))
        return out


class Mlp(nn.Module):
    """Two-layer feed-forward network with an exact GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x_TD: Tensor) -> Tensor:
        """(T, D) to (T, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x_TD)))
        return out


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x_TD: Tensor) -> Tensor:
        """(T, D) to (T, D)."""
        return x_TD * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block whose branches may skip some of the crops."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, config.heads)
        self.ls1 = LayerScale(dim, config.layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * config.ffn_ratio))
        self.ls2 = LayerScale(dim, config.layer_scale)

    def forward(self, groups: list[Tensor], keep: tuple[BranchKeep, BranchKeep] | None) -> list[Tensor]:
        """Groups of shape (B, N, D) to the same."""
        groups = self._branch(groups, keep[0] if keep else None, attends=True)
        return self._branch(groups, keep[1] if keep else None, attends=False)

    def _branch(self, groups: list[Tensor], keep: BranchKeep | None, attends: bool) -> list[Tensor]:
        kept = groups if keep is None else [x[index] for x, index in zip(groups, keep, strict=True)]
        layout = [(x.shape[0], x.shape[1]) for x in kept]
        packed = torch.cat([x.flatten(0, 1) for x in kept])
        if attends:
            residual_TD = self.ls1(self.attn(self.norm1(packed), layout))
        else:
            residual_TD = self.ls2(self.mlp(self.norm2(packed)))
        parts = residual_TD.split([sequences * tokens for sequences, tokens in layout])
        residuals = [part.view_as(x) for part, x in zip(parts, kept, strict=True)]
        if keep is None:
            return [x + residual for x, residual in zip(groups, residuals, strict=True)]
        # The exact count in the scale, not 1 / (1 - p): the branch's mean over the group stays what it was.
        return [
            x.index_add(0, index, residual.to(x.dtype), alpha=x.shape[0] / len(index))
            for x, residual, index in zip(groups, residuals, keep, strict=True)
        ]


class VisionTransformer(nn.Module):
    """DINOv2's backbone.

    Args:
        config: width, depth, patches and so on.
        grid: patches along a side for which the position embedding is stored (the global crop's).
        channels: colour channels of the input.
    """

    def __init__(self, config: ModelConfig, grid: int, channels: int = 3) -> None:
        super().__init__()
        dim = config.embed_dim
        self.config = config
        self.grid = grid
        self.patch_embed = PatchEmbed(channels, dim, config.patch_px)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid * grid, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.register_tokens = nn.Parameter(torch.empty(1, config.registers, dim)) if config.registers else None
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the initial weights of the training recipe."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02, generator=generator)
        nn.init.normal_(self.cls_token, std=1e-6, generator=generator)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=1e-6, generator=generator)
        conv = self.patch_embed.proj
        bound = (conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]) ** -0.5
        nn.init.uniform_(conv.weight, -bound, bound, generator=generator)
        assert conv.bias is not None  # noqa: S101 -- for the type checker: PatchEmbed always has a bias
        nn.init.uniform_(conv.bias, -bound, bound, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        groups: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        drops: DropPlan | None = None,
    ) -> list[Tokens]:
        """Encode groups of crops in one packed pass.

        Args:
            groups: tensors of shape (B, C, H, W), one per crop size; sides are multiples of the patch.
            masks: per group, (B, N) bool or None: patches replaced by the mask token.
            drops: which crops each branch computes; None computes all.
        """
        masks = masks if masks is not None else [None] * len(groups)
        tokens = [self._embed(crops, mask) for crops, mask in zip(groups, masks, strict=True)]
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, drops[index] if drops is not None else None)
        return [self._split(self.norm(x_BND)) for x_BND in tokens]

    def _embed(self, crops_BCHW: Tensor, mask_BN: Tensor | None) -> Tensor:
        patch_px = self.config.patch_px
        rows, columns = crops_BCHW.shape[2] // patch_px, crops_BCHW.shape[3] // patch_px
        x_BND = self.patch_embed(crops_BCHW)
        if mask_BN is not None:
            x_BND = torch.where(mask_BN.unsqueeze(-1), self.mask_token.to(x_BND.dtype), x_BND)
        count = x_BND.shape[0]
        x_BND = torch.cat([self.cls_token.expand(count, -1, -1), x_BND], 1) + self._positions(rows, columns)
        if self.register_tokens is None:
            return x_BND
        registers = self.register_tokens.expand(count, -1, -1)
        return torch.cat([x_BND[:, :1], registers, x_BND[:, 1:]], 1)

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Position embedding for a grid of patches, shape (1, 1 + rows * columns, D), interpolated in fp32.

        Models without registers were trained with a scale factor that carries an offset of 0.1, those with registers
        with an antialiased resize to the exact size (dinov2, ``interpolate_offset`` and ``interpolate_antialias``).
        """
        if rows == columns == self.grid:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].float().unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        if self.register_tokens is None:
            factor = ((rows + _OFFSET) / self.grid, (columns + _OFFSET) / self.grid)
            grid = F.interpolate(grid, scale_factor=factor, mode="bicubic")
        else:
            grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True)
        patches = grid.permute(0, 2, 3, 1).flatten(1, 2).to(self.pos_embed.dtype)
        return torch.cat([self.pos_embed[:, :1], patches], 1)

    def _split(self, x_BND: Tensor) -> Tokens:
        first_patch = 1 + self.config.registers
        return Tokens(x_BND[:, 0], x_BND[:, 1:first_patch], x_BND[:, first_patch:])
