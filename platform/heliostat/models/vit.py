"""The vision transformer of DINOv2, with DINOv3's options, for packed batches of differently sized crops.

State-dict names and shapes are those of the released weights (``blocks.3.attn.qkv.weight`` …).

Legend: B crops of a group, C channels, N tokens of a crop, D width, R registers, M wanted patches of a group.
"""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor, nn

from heliostat.config.model import ModelConfig
from heliostat.models.attention import choose_backend
from heliostat.models.block import Block, DropPlan
from heliostat.models.layers import LAYER_NORM_EPS, PatchEmbed, RopeTables
from heliostat.models.positions import RopeJitter, resize_positions, rope_table
from heliostat.models.recompute import Recompute, recomputed
from heliostat.models.tokens import Tokens, WantedTokens

TOKENS = ("cls_token", "pos_embed", "mask_token", "register_tokens")
"""Parameters of the backbone itself."""


class VisionTransformer(nn.Module):
    """DINOv2's backbone.

    Args:
        config: width, depth, patches and so on.
        grid: patches along a side for which the position embedding is stored (the global crop's).
    """

    def __init__(self, config: ModelConfig, grid: int) -> None:
        super().__init__()
        dim = config.embed_dim
        self.config = config
        self.grid = grid
        self.recompute: Recompute = "none"
        self.patch_embed = PatchEmbed(config.channels, dim, config.patch_px)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid * grid, dim)) if config.rotary is None else None
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.register_tokens = nn.Parameter(torch.empty(1, config.registers, dim)) if config.registers else None
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.cls_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS) if config.untied_norms in ("cls", "both") else None
        self.local_cls_norm = (
            nn.LayerNorm(dim, eps=LAYER_NORM_EPS) if config.untied_norms in ("local_cls", "both") else None
        )

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the initial weights of the training recipe."""
        if self.pos_embed is not None:
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

    def prepare(self, recompute: Recompute, compiles: bool) -> None:
        """Choose how blocks are computed; no part of the mathematics.

        Args:
            recompute: what the backward pass computes again. A compiled block decides for itself what is cheap to
                recompute, so ``selective`` adds nothing to it.
            compiles: compile every block with ``torch.compile`` when it first runs.
        """
        self.recompute = "none" if compiles and recompute == "selective" else recompute
        if compiles:
            for block in self.blocks:
                block.compile()

    @overload
    def forward(
        self,
        groups: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        drops: DropPlan | None = None,
        jitters: Sequence[RopeJitter | None] | None = None,
        wanted: None = None,
    ) -> list[Tokens]: ...

    @overload
    def forward(
        self,
        groups: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        drops: DropPlan | None = None,
        jitters: Sequence[RopeJitter | None] | None = None,
        *,
        wanted: Sequence[Tensor],
        registers: bool = False,
    ) -> list[WantedTokens]: ...

    def forward(
        self,
        groups: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        drops: DropPlan | None = None,
        jitters: Sequence[RopeJitter | None] | None = None,
        wanted: Sequence[Tensor] | None = None,
        registers: bool = False,
    ) -> list[Tokens] | list[WantedTokens]:
        """Encode groups of crops in one packed pass.

        Args:
            groups: tensors of shape (B, C, H, W), one per crop size; sides are multiples of the patch.
            masks: per group, (B, N) bool or None: patches replaced by the mask token.
            drops: which crops each branch computes; None computes all.
            jitters: per group, the jitter of rotary coordinates; None has none.
            wanted: per group, the sorted flat indices (into B * N) of the patches that are used. Then the last block
                computes no more than these and the class tokens, and the result is ``WantedTokens``.
            registers: whether register tokens are used as well then.
        """
        if isinstance(groups, Tensor):
            raise TypeError("groups is a list of tensors, one per size of crop: model([images]) for one")
        tokens, rope = self._embed_groups(groups, masks, jitters)
        backend = choose_backend(tokens[0].device)
        rows = None
        first = 1 + self.config.registers if registers else 1
        if wanted is not None:
            rows = [self._rows(x.shape[0], x.shape[1], first, index) for x, index in zip(tokens, wanted, strict=True)]
        for index, block in enumerate(self.blocks):
            call = recomputed(block, self.recompute)
            last = index + 1 == len(self.blocks)
            tokens = call(tokens, drops[index] if drops is not None else None, rope, backend, rows if last else None)
        if wanted is None:
            return [self._split(x_BND, group) for group, x_BND in enumerate(tokens)]
        counts = [len(crops) for crops in groups]
        return [
            self._chosen(x, count, first, group) for group, (x, count) in enumerate(zip(tokens, counts, strict=True))
        ]

    def get_intermediate_layers(
        self,
        images_BCHW: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor, ...] | tuple[tuple[Tensor, Tensor], ...]:
        """Patch tokens after some blocks, registers left out; the arguments of the published code.

        Args:
            images_BCHW: images, sides multiples of the patch.
            n: how many of the last blocks, or the indices of blocks from 0.
            reshape: give maps (B, D, rows, columns) instead of (B, N, D).
            return_class_token: pair each with the class token (B, D) after the same block.
            norm: apply the final norm.

        Returns:
            In the order of ``n``.

        Raises:
            IndexError: there is no block of an index.
        """
        depth = len(self.blocks)
        chosen = range(depth - n, depth) if isinstance(n, int) else list(n)
        if any(not 0 <= index < depth for index in chosen):
            raise IndexError(f"blocks {list(chosen)} were asked for, the model has blocks 0 to {depth - 1}")
        tokens, rope = self._embed_groups([images_BCHW], None, None)
        found: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, None, rope, choose_backend(images_BCHW.device))
            if index in chosen:
                found[index] = tokens[0]
        outputs: list[tuple[Tensor, Tensor]] = []
        for index in chosen:
            layer = self._split(found[index], 0) if norm else self._cut(found[index])
            patches = layer.patches_BND
            if reshape:
                sides = [side // self.config.patch_px for side in images_BCHW.shape[2:]]
                patches = patches.transpose(1, 2).unflatten(2, sides)
            outputs.append((patches, layer.cls_BD))
        return tuple(outputs) if return_class_token else tuple(patches for patches, _ in outputs)

    def _embed_groups(
        self,
        groups: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None,
        jitters: Sequence[RopeJitter | None] | None,
    ) -> tuple[list[Tensor], RopeTables | None]:
        masks = masks if masks is not None else [None] * len(groups)
        tokens = [self._embed(crops, mask) for crops, mask in zip(groups, masks, strict=True)]
        rope = self.config.rotary
        if rope is None:
            return tokens, None
        jitters = jitters if jitters is not None else [None] * len(groups)
        head_width = self.config.embed_dim // self.config.heads
        tables = [
            rope_table(rope, *self._grid_of(crops), head_width, jitter, crops.device)
            for crops, jitter in zip(groups, jitters, strict=True)
        ]
        return tokens, tables

    def _grid_of(self, crops_BCHW: Tensor) -> tuple[int, int]:
        patch_px = self.config.patch_px
        height, width = crops_BCHW.shape[2:]
        if height % patch_px or width % patch_px:
            raise ValueError(f"images of {height} x {width} pixels are not made of whole patches of {patch_px} pixels")
        return height // patch_px, width // patch_px

    def _embed(self, crops_BCHW: Tensor, mask_BN: Tensor | None) -> Tensor:
        rows, columns = self._grid_of(crops_BCHW)
        x_BND = self.patch_embed(crops_BCHW)
        if mask_BN is not None:
            x_BND = torch.where(mask_BN.unsqueeze(-1), self.mask_token.to(x_BND.dtype), x_BND)
        count = x_BND.shape[0]
        x_BND = torch.cat([self.cls_token.expand(count, -1, -1), x_BND], 1)
        if self.pos_embed is not None:
            x_BND = x_BND + resize_positions(self.pos_embed, rows, columns, self.config.resize)
        if self.register_tokens is None:
            return x_BND
        registers = self.register_tokens.expand(count, -1, -1)
        return torch.cat([x_BND[:, :1], registers, x_BND[:, 1:]], 1)

    def _rows(self, crops: int, tokens: int, first: int, wanted_M: Tensor) -> Tensor:
        """Rows of each crop's ``first`` tokens, one by one, then of the wanted patches, in a group's flat tokens."""
        first_patch = 1 + self.config.registers
        patches = tokens - first_patch
        crops_B = torch.arange(crops, device=wanted_M.device) * tokens
        firsts = [crops_B + index for index in range(first)]
        return torch.cat([*firsts, wanted_M // patches * tokens + first_patch + wanted_M % patches])

    def _chosen(self, x_XD: Tensor, crops: int, first: int, group: int) -> WantedTokens:
        cls_norm = self._cls_norm(group)
        firsts_XD, patches_MD = x_XD[: first * crops], x_XD[first * crops :]
        registers_BRD = None
        if first > 1:
            registers_BRD = cls_norm(firsts_XD[crops:]).unflatten(0, (first - 1, crops)).transpose(0, 1)
        return WantedTokens(cls_norm(firsts_XD[:crops]), self.norm(patches_MD), registers_BRD)

    def _split(self, x_BND: Tensor, group: int) -> Tokens:
        cls_norm = self._cls_norm(group)
        if cls_norm is self.norm:
            return self._cut(self.norm(x_BND))
        raw = self._cut(x_BND)
        return Tokens(cls_norm(raw.cls_BD), cls_norm(raw.registers_BRD), self.norm(raw.patches_BND))

    def _cut(self, x_BND: Tensor) -> Tokens:
        first_patch = 1 + self.config.registers
        return Tokens(x_BND[:, 0], x_BND[:, 1:first_patch], x_BND[:, first_patch:])

    def _cls_norm(self, group: int) -> nn.LayerNorm:
        """The final norm of class and register tokens; in training, groups after the first are local crops."""
        if self.local_cls_norm is not None and self.training and group > 0:
            return self.local_cls_norm
        return self.cls_norm if self.cls_norm is not None else self.norm
