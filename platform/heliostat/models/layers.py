"""What a block is made of.

Legend: B crops of a group, C channels, N tokens of a crop, D width, F hidden width, T packed tokens of all groups,
H heads, E width of a head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat.config.model import ModelConfig
from heliostat.models.attention import Backend, Layout, packed_attention
from heliostat.models.linear import Linear, linear

LAYER_NORM_EPS = 1e-6

RopeTables = Sequence[tuple[Tensor, Tensor]]
"""Per group of crops: sine and cosine of the angles of its patches, each (patches, E)."""


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens, row by row."""

    def __init__(self, channels: int, dim: int, patch_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch_px, patch_px)

    def forward(self, crops_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, D)."""
        out: Tensor = self.proj(crops_BCHW)
        return out.flatten(2).transpose(1, 2)


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch, folded into the branch's last linear layer.

    ``γ (W x + b) = (γ W) x + γ b``: the branch's output is then needed by no gradient and is not kept, and a pass over
    all tokens becomes one over a weight.
    """

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """``layer`` of ``x``, scaled."""
        return linear(x, self.gamma.unsqueeze(1) * layer.weight, self.gamma * layer.bias)


class Attention(nn.Module):
    """Multi-head self-attention over a packed batch."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x_TD: Tensor, layout: Layout, rope: RopeTables | None, backend: Backend) -> Tensor:
        """(T, D) to (T, D), without the output projection, which the block joins with LayerScale."""
        qkv: Tensor = self.qkv(x_TD)
        return packed_attention(qkv.unflatten(-1, (3, self.heads, -1)), layout, backend, rope)


class Mlp(nn.Module):
    """Two-layer feed-forward network with an exact GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x_TD: Tensor) -> Tensor:
        """(T, D) to (T, F), without the last layer."""
        return F.gelu(self.fc1(x_TD))

    @property
    def last(self) -> nn.Linear:
        """The layer back to (T, D)."""
        return self.fc2


class SwiGlu(nn.Module):
    """Gated feed-forward network: silu of one half of ``w12`` times the other half (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w12 = Linear(dim, 2 * hidden)
        self.w3 = Linear(hidden, dim)

    def forward(self, x_TD: Tensor) -> Tensor:
        """(T, D) to (T, F), without the last layer."""
        gate_TF, value_TF = self.w12(x_TD).chunk(2, dim=-1)
        gated: Tensor = F.silu(gate_TF) * value_TF
        return gated

    @property
    def last(self) -> nn.Linear:
        """The layer back to (T, D)."""
        return self.w3


def feed_forward(config: ModelConfig) -> Mlp | SwiGlu:
    """The feed-forward network of a model."""
    return (Mlp if config.ffn == "mlp" else SwiGlu)(config.embed_dim, config.ffn_hidden)
