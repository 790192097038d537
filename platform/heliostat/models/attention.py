"""Attention over packed sequences: one interface, exact on every device.

Crops of different sizes share one packed token tensor, so that everything token-wise runs once. Attention must not mix
sequences: the grouped backend runs one batched scaled-dot-product attention per group of equally long sequences. It
agrees with a loop over sequences to rounding and works everywhere; xFormers has no CPU operator.

Legend: T packed tokens of all groups, S sequences of a group, N tokens of a sequence, H heads, E width of a head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Layout = Sequence[tuple[int, int]]
"""(S, N) of each group, in packed order."""


def packed_attention(qkv_T3HE: Tensor, layout: Layout) -> Tensor:
    """Self-attention inside each sequence of the packed batch; returns (T, H * E)."""
    results: list[Tensor] = []
    start = 0
    for sequences, tokens in layout:
        stop = start + sequences * tokens
        qkv = qkv_T3HE[start:stop].unflatten(0, (sequences, tokens))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out_SHNE = F.scaled_dot_product_attention(q, k, v)
        results.append(out_SHNE.transpose(1, 2).reshape(sequences * tokens, -1))
        start = stop
    return torch.cat(results)
