"""What the training step is measured on: sizes, the slot of a step, and how many operations a step is.

Legend: X rows of a product, I inputs, O outputs.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.draws import Draws
from heliostat.models.normalise import normalise
from heliostat.objectives.masking import draw_drops, draw_masks
from heliostat.objectives.networks import SlotBatch

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


@dataclass(frozen=True, slots=True)
class Size:
    """A model, its crops and its objective; one slot per step."""

    arch: str
    embed_dim: int
    depth: int
    heads: int
    patch_px: int
    global_px: int
    local_px: int
    local_count: int
    images: int
    prototypes: int
    head_hidden: int = 2048
    head_bottleneck: int = 256
    ibot_head: str = "separate"
    centring: str = "sinkhorn_knopp"
    drop_path: float = 0.3
    activation_checkpointing: str = "none"
    """The default of a recipe; the reference keeps everything."""
    compile: bool = False
    steps_per_turn: int = 1

    def recipe(self, precision: Precision) -> PretrainRecipe:
        """The recipe of this size."""
        return PretrainRecipe.model_validate(
            {
                "kind": "pretrain",
                "name": "bench",
                "dataset": {"name": "bench"},
                "model": {name: getattr(self, name) for name in _MODEL_KEYS} | {"layer_scale": 1.0},
                "augmentation": {name: getattr(self, name) for name in _AUGMENTATION_KEYS},
                "objective": {name: getattr(self, name) for name in _OBJECTIVE_KEYS},
                "training": {
                    "steps": 1000,
                    "global_batch": self.images,
                    "slot_batch": self.images,
                    "warmup_steps": 0,
                    "freeze_prototypes_steps": 0,
                    "precision": precision,
                    "activation_checkpointing": self.activation_checkpointing,
                    "compile": self.compile,
                },
            }
        )


_MODEL_KEYS = ("arch", "embed_dim", "depth", "heads", "patch_px", "drop_path")
_AUGMENTATION_KEYS = ("global_px", "local_px", "local_count")
_OBJECTIVE_KEYS = ("prototypes", "head_hidden", "head_bottleneck", "ibot_head", "centring")

_S14_65K = Size("vit_s", 384, 12, 6, 14, 224, 98, 8, images=8, prototypes=65536, ibot_head="shared", centring="softmax")
SIZES = {
    "demo": Size("custom", 128, 4, 4, 8, 48, 24, 4, 32, 512, head_hidden=256, head_bottleneck=64, steps_per_turn=4),
    "vit_s14_65k": _S14_65K,
    # Where memory is what is asked about, blocks are recomputed; the speed at this size pays for it.
    "vit_s14_131k": replace(
        _S14_65K,
        prototypes=131072,
        ibot_head="separate",
        centring="sinkhorn_knopp",
        activation_checkpointing="full",
    ),
    "vit_s14_131k_selective": replace(
        _S14_65K,
        prototypes=131072,
        ibot_head="separate",
        centring="sinkhorn_knopp",
        activation_checkpointing="selective",
    ),
    "vit_l14": Size(
        *("vit_l", 1024, 24, 16, 14, 224, 98, 8),
        images=32,
        prototypes=131072,
        activation_checkpointing="none",
        steps_per_turn=4,
    ),
}


def prepared_slot(recipe: PretrainRecipe, device: str = "cpu", seed: int = 0) -> SlotBatch:
    """A slot of smooth noise, with the masks and drops of the recipe, all of it on the device."""
    rng = np.random.default_rng(seed)
    augmentation, images = recipe.augmentation, recipe.training.slot_batch

    def crops(count: int, px: int) -> Tensor:
        coarse = torch.from_numpy(rng.integers(0, 256, (count, 3, 6, 6)).astype(np.float32))
        smooth = torch.nn.functional.interpolate(coarse, size=(px, px), mode="bilinear")
        return normalise(smooth.byte().permute(0, 2, 3, 1).contiguous().numpy())

    objective = recipe.objective
    grid = augmentation.global_px // recipe.model.patch_px
    groups = (2 * images, augmentation.local_count * images)
    masks = draw_masks(Draws(seed, "mask", 0, 0), groups[0], grid, objective.mask_probability, objective.mask_ratio)
    drops = draw_drops(seed, 0, 0, recipe.model.depth, groups, recipe.model.drop_path)
    return SlotBatch(
        global_crops=crops(groups[0], augmentation.global_px).to(device),
        local_crops=crops(groups[1], augmentation.local_px).to(device),
        masks=masks.to(device),
        drops=drops
        and [([index.to(device) for index in attend], [index.to(device) for index in feed]) for attend, feed in drops],
    )


def step_flops(size: Size, slot: SlotBatch) -> int:
    """Floating-point operations of one plain step: matrix products and convolutions, forward and backward.

    What stochastic depth skips is not counted; what an implementation saves or repeats beyond that changes nothing.
    """
    crops = (len(slot.global_crops), len(slot.local_crops))
    assert slot.masks is not None
    masked = int(slot.masks.sum())
    kept = [crops] * (2 * size.depth)
    if slot.drops is not None:
        kept = [(len(branch[0]), len(branch[1])) for block in slot.drops for branch in block]
    sides = (size.global_px // size.patch_px, size.local_px // size.patch_px)
    patches = (sides[0] ** 2, sides[1] ** 2)
    # Three passes with a gradient (forward, to inputs, to weights), one without; pixels need no gradient.
    student = sum(_group_flops(size, [each[g] for each in kept], patches[g], 3) for g in (0, 1))
    student += sum(_embed_flops(size, crops[g], patches[g], 2) for g in (0, 1))
    student += _head_flops(size, sum(crops) + masked, 3) + 2 * size.images**2 * size.embed_dim
    teacher = _group_flops(size, [crops[0]] * (2 * size.depth), patches[0], 1)
    teacher += _embed_flops(size, crops[0], patches[0], 1) + _head_flops(size, crops[0] + masked, 1)
    return 2 * (student + teacher)


def _group_flops(size: Size, kept: list[int], patches: int, passes: int) -> int:
    """Multiplications of all blocks; ``kept`` has the crops of each branch, attention and feed-forward in turn."""
    width, tokens = size.embed_dim, patches + 1
    attention = tokens * 4 * width**2 + 2 * tokens**2 * width
    feed_forward = tokens * 8 * width**2
    return passes * (sum(kept[0::2]) * attention + sum(kept[1::2]) * feed_forward)


def _embed_flops(size: Size, crops: int, patches: int, passes: int) -> int:
    return passes * crops * patches * 3 * size.patch_px**2 * size.embed_dim


def _head_flops(size: Size, vectors: int, passes: int) -> int:
    width, hidden, bottleneck = size.embed_dim, size.head_hidden, size.head_bottleneck
    return passes * vectors * (width * hidden + hidden**2 + hidden * bottleneck + bottleneck * size.prototypes)


def step_product(size: Size) -> tuple[int, int, int]:
    """(X, I, O) of the step's most frequent large product: a block's first feed-forward layer on all kept crops."""
    share = 1 - size.drop_path
    rows = sum(
        int(count * size.images * share) * ((px // size.patch_px) ** 2 + 1)
        for count, px in ((2, size.global_px), (size.local_count, size.local_px))
    )
    return rows, size.embed_dim, 4 * size.embed_dim
