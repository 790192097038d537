"""A transformer block over groups of crops, whose branches may skip some of the crops and some of the outputs.

Legend: B crops of a group, N tokens of a crop, D width, T packed tokens of all groups.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from heliostat.config.model import ModelConfig
from heliostat.models.attention import Backend
from heliostat.models.layers import LAYER_NORM_EPS, Attention, LayerScale, RopeTables, feed_forward

BranchKeep = Sequence[Tensor]
"""Per group of crops: which of its crops a residual branch computes, shape (kept,)."""
DropPlan = Sequence[tuple[BranchKeep, BranchKeep]]
"""Per block: the crops that its attention and its feed-forward branch compute (batch-subset stochastic depth)."""


class Block(nn.Module):
    """Pre-norm transformer block.

    A branch of a group with kept crops adds ``B / kept`` times what it computed for them (the exact count, not
    1 / (1 - p): the branch's mean over the group stays what it was). Skipped crops cost nothing.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, config.heads)
        self.ls1 = LayerScale(dim, config.layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = feed_forward(config)
        self.ls2 = LayerScale(dim, config.layer_scale)

    def forward(
        self,
        groups: list[Tensor],
        keep: tuple[BranchKeep, BranchKeep] | None,
        rope: RopeTables | None,
        backend: Backend,
        wanted: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Groups of shape (B, N, D) to the same.

        Args:
            groups: the tokens.
            keep: the crops that each branch computes; None computes all.
            rope: rotary tables, or None.
            backend: of the attention.
            wanted: in the last block, per group the flat indices (into B * N) of the tokens that are used
                afterwards. Then only they are computed beyond attention, and the result is groups of shape (wanted, D).
        """
        attended = self._attend(groups, keep[0] if keep else None, rope, backend, wanted)
        return self._feed_forward(attended, keep[1] if keep else None, groups, wanted)

    def _attend(
        self,
        groups: list[Tensor],
        keep: BranchKeep | None,
        rope: RopeTables | None,
        backend: Backend,
        wanted: Sequence[Tensor] | None,
    ) -> list[Tensor]:
        kept = groups if keep is None else [x.index_select(0, index) for x, index in zip(groups, keep, strict=True)]
        layout = [(x.shape[0], x.shape[1]) for x in kept]
        mixed_TD = self.attn(self.norm1(_pack(kept)), layout, rope, backend)
        if wanted is None:
            return _add(groups, keep, self.ls1(mixed_TD, self.attn.proj))
        streams = [x.flatten(0, 1).index_select(0, index) for x, index in zip(groups, wanted, strict=True)]
        sources = [_among_kept(*each) for each in zip(groups, _or_all(keep, groups), wanted, strict=True)]
        starts = accumulate((sequences * tokens for sequences, tokens in layout), initial=0)
        chosen = torch.cat([rows + start for (_, rows), start in zip(sources, starts, strict=False)])
        residual = self.ls1(mixed_TD.index_select(0, chosen), self.attn.proj)
        return _add_at(streams, [where for where, _ in sources], residual, _scales(groups, keep))

    def _feed_forward(
        self, streams: list[Tensor], keep: BranchKeep | None, groups: list[Tensor], wanted: Sequence[Tensor] | None
    ) -> list[Tensor]:
        def branch(x_TD: Tensor) -> Tensor:
            out: Tensor = self.ls2(self.mlp(self.norm2(x_TD)), self.mlp.last)
            return out

        if wanted is None:
            kept = streams if keep is None else [x.index_select(0, i) for x, i in zip(streams, keep, strict=True)]
            return _add(streams, keep, branch(_pack(kept)))
        sources = [_among_kept(*each)[0] for each in zip(groups, _or_all(keep, groups), wanted, strict=True)]
        packed = torch.cat([x.index_select(0, rows) for x, rows in zip(streams, sources, strict=True)])
        return _add_at(streams, sources, branch(packed), _scales(groups, keep))


def _pack(groups: Sequence[Tensor]) -> Tensor:
    flat = [x.flatten(0, 1) for x in groups]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def _or_all(keep: BranchKeep | None, groups: Sequence[Tensor]) -> Sequence[Tensor | None]:
    return [None] * len(groups) if keep is None else keep


def _scales(groups: Sequence[Tensor], keep: BranchKeep | None) -> list[float]:
    return [1.0] * len(groups) if keep is None else [len(x) / len(i) for x, i in zip(groups, keep, strict=True)]


def _add(groups: Sequence[Tensor], keep: BranchKeep | None, residual_TD: Tensor) -> list[Tensor]:
    """Add a branch's packed output to the crops that it was computed for."""
    counts = [x.shape[0] for x in groups] if keep is None else [len(index) for index in keep]
    parts = residual_TD.split([count * x.shape[1] for count, x in zip(counts, groups, strict=True)])
    residuals = [part.view(-1, *x.shape[1:]).to(x.dtype) for part, x in zip(parts, groups, strict=True)]
    if keep is None:
        return [x + residual for x, residual in zip(groups, residuals, strict=True)]
    scales = _scales(groups, keep)
    return [
        x.index_add(0, index, residual, alpha=scale)
        for x, index, residual, scale in zip(groups, keep, residuals, scales, strict=True)
    ]


def _add_at(
    streams: Sequence[Tensor], rows: Sequence[Tensor], residual_TD: Tensor, scales: Sequence[float]
) -> list[Tensor]:
    """Add a branch's packed output to some rows of each stream."""
    parts = residual_TD.split([len(each) for each in rows])
    return [
        x.index_add(0, index, part.to(x.dtype), alpha=scale)
        for x, index, part, scale in zip(streams, rows, parts, scales, strict=True)
    ]


def _among_kept(x_BND: Tensor, kept: Tensor | None, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the wanted tokens lie in kept crops, and where these are in the packed tokens of the kept crops."""
    if kept is None:
        return torch.arange(len(wanted), device=wanted.device), wanted
    tokens = x_BND.shape[1]
    place_B = torch.full((len(x_BND),), -1, device=wanted.device)
    place_B[kept] = torch.arange(len(kept), device=wanted.device)
    place = place_B[wanted // tokens]
    where = (place >= 0).nonzero().squeeze(1)
    return where, place[where] * tokens + wanted[where] % tokens
