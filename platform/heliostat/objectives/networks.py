"""Student and teacher: a backbone with its heads, and what each computes for a slot.

Legend: B images of a slot, L local crops per image, N patches of a global crop, M masked tokens, D width of the
backbone, Z bottleneck width.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from heliostat.config.objective import ObjectiveConfig
from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.draws import stream_key
from heliostat.models.block import DropPlan
from heliostat.models.heads import ProjectionHead
from heliostat.models.positions import RopeJitter
from heliostat.models.vit import VisionTransformer
from heliostat.objectives.cross_entropy import Layer, Targets, compute_dtype
from heliostat.objectives.gram import gram_loss, resize_features
from heliostat.objectives.koleo import koleo_loss
from heliostat.objectives.losses import GLOBAL_CROPS, dino_losses, ibot_loss

TERMS = ("loss", "dino", "dino_global", "dino_local", "ibot", "koleo", "gram")
"""What a slot's loss tells; ``dino`` is the sum of its two parts, and nothing but ``loss`` is weighted."""


@dataclass(frozen=True, slots=True)
class SlotBatch:
    """Everything a slot's losses depend on, drawn and decoded beforehand."""

    global_crops: Tensor
    """(2 B, C, H, W): crop 1 of every image, then crop 2 of every image."""
    local_crops: Tensor
    """(L B, C, H', W'), crop-major too."""
    masks: Tensor | None
    """(2 B, N) bool; None, in distillation, hides no patch from students and compares them all."""
    drops: DropPlan | None = None
    """Which crops the student's branches compute; None computes all."""
    jitters: tuple[RopeJitter | None, RopeJitter | None] | None = None
    """Of the student's rotary coordinates: global crops, local crops."""
    gram_crops: Tensor | None = None
    """(2 B, C, H'', W''): the global crops at the Gram teacher's resolution, colours as they are."""
    ids: tuple[str, ...] = ()
    """Sample ids of the B images, to name them in errors."""
    kept: Tensor | None = None
    """(B, 2, T, Z): what the teacher says of it, where that was kept from before (``kept_views.py``)."""

    def check(self, images: int, patch_px: int) -> None:
        """Refuse a slot that would broadcast into another objective.

        Args:
            images: B.
            patch_px: side of a patch.

        Raises:
            ValueError: numbers of crops, or shape or type of the masks, do not fit together.
        """
        crops, local = len(self.global_crops), len(self.local_crops)
        if crops != GLOBAL_CROPS * images or not local or local % images:
            raise ValueError(
                f"a slot of {images} images has {GLOBAL_CROPS * images} global crops and a multiple of {images} local "
                f"ones, these are {crops} and {local}"
            )
        shape = (crops, math.prod(self.grid(patch_px)))
        if self.masks is not None and (self.masks.dtype != torch.bool or self.masks.shape != shape):
            raise ValueError(
                f"masks are bool of shape {shape}, these are {self.masks.dtype} of {tuple(self.masks.shape)}"
            )

    def grid(self, patch_px: int) -> tuple[int, int]:
        """Rows and columns of patches of a global crop."""
        height, width = self.global_crops.shape[2:]
        return height // patch_px, width // patch_px

    def compared(self, patch_px: int) -> Tensor:
        """Flat indices (into 2 B * N) of the patches that are compared, in row order, (M,)."""
        if self.masks is not None:
            return self.masks.flatten().nonzero().squeeze(1)
        patches = len(self.global_crops) * math.prod(self.grid(patch_px))
        return torch.arange(patches, device=self.global_crops.device)


@dataclass(frozen=True, slots=True)
class TeacherView:
    """What the teacher says of a slot, as unit bottleneck vectors."""

    cls: Tensor
    """(2, B, Z)."""
    patches: tuple[Tensor, ...]
    """(M, Z), at the compared positions in row order; one for each of the students' sizes of patches."""


@dataclass(frozen=True, slots=True)
class SlotTargets:
    """What the student is compared with on a slot."""

    cls: Targets
    patches: Targets
    gram: Tensor | None = None
    """(2 B, N, D): the Gram teacher's patches on the student's grid."""


class Network(nn.Module):
    """A backbone with its heads. ``forward`` is the student's whole work on a slot.

    One ``forward`` rather than several methods: ZeRO-3 gathers parameters only around module calls. With a shared head
    there is no ``ibot_head``.
    """

    def __init__(self, recipe: PretrainRecipe) -> None:
        super().__init__()
        model, objective = recipe.model, recipe.objective
        self.objective: ObjectiveConfig = objective
        self.backbone = VisionTransformer(model, recipe.augmentation.global_px // model.patch_px)
        self.backbone.prepare(recipe.training.activation_checkpointing, recipe.training.compile)
        self.dino_head = ProjectionHead(model.embed_dim, objective.dino_head_sizes, objective.prototype_layer)
        self.shown_px: tuple[int, ...] = (model.patch_px,)
        """As a teacher: sizes of its students' patches."""
        if objective.ibot_head != "shared":
            self.ibot_head = ProjectionHead(model.embed_dim, objective.ibot_head_sizes, objective.prototype_layer)

    @property
    def sub_modules(self) -> tuple[str, ...]:
        """Gradients are clipped per sub-module."""
        return tuple(name for name, _ in self.named_children())

    @property
    def patch_head(self) -> ProjectionHead:
        """The head of the masked patches."""
        return self.dino_head if self.objective.ibot_head == "shared" else self.ibot_head

    def init_weights(self, seed: int) -> None:
        """Draw the initial weights: a function of the run's seed alone."""
        for name in self.sub_modules:
            generator = torch.Generator().manual_seed(stream_key(seed, f"weights:{name}") % 2**63)
            getattr(self, name).init_weights(generator)

    @torch.no_grad()
    def view(self, slot: SlotBatch) -> TeacherView:
        """The teacher's work on a slot: unmasked global crops, no drops."""
        patch_px = self.backbone.config.patch_px
        (tokens,) = self.backbone([slot.global_crops], wanted=[slot.compared(patch_px)])
        cls, first = self._bottlenecks(tokens.cls_BD, self._as_seen(tokens.patches_MD, slot, self.shown_px[0]))
        others = [self._as_seen(tokens.patches_MD, slot, each) for each in self.shown_px[1:]]
        patches = (first, *(self.patch_head.bottleneck(each) for each in others))
        return TeacherView(cls.unflatten(0, (GLOBAL_CROPS, -1)), patches)

    def _as_seen(self, patches_MD: Tensor, slot: SlotBatch, patch_px: int) -> Tensor:
        """All of a slot's patch tokens on the grid of a student whose patches have another size."""
        own_px = self.backbone.config.patch_px
        if patch_px == own_px:
            return patches_MD
        grid, wanted = slot.grid(own_px), slot.grid(patch_px)
        patches_BND = patches_MD.unflatten(0, (len(slot.global_crops), -1))
        return resize_features(patches_BND, *grid, *wanted).flatten(0, 1).to(patches_MD)

    def forward(self, slot: SlotBatch, targets: SlotTargets) -> dict[str, Tensor]:
        """The student's losses on a slot, by the names of ``TERMS``; the optimised one is ``loss``."""
        objective = self.objective
        patch_px = self.backbone.config.patch_px
        compared = slot.compared(patch_px)
        needs_all = targets.gram is not None
        wanted = replace(slot, masks=None).compared(patch_px) if needs_all else compared
        whole, local = self.backbone(
            [slot.global_crops, slot.local_crops],
            [slot.masks, None],
            slot.drops,
            slot.jitters,
            wanted=[wanted, compared.new_empty(0)],
        )
        patches_MD = whole.patches_MD.index_select(0, compared) if needs_all else whole.patches_MD
        images = len(slot.global_crops) // GLOBAL_CROPS
        cls_z, patches_z = self._bottlenecks(torch.cat([whole.cls_BD, local.cls_BD]), patches_MD)
        temperature = objective.student_temperature
        cls_layer, patch_layer = self.dino_head.last_layer, self.patch_head.last_layer
        shared = Layer.of(cls_layer, compute_dtype(cls_z)) if patch_layer is cls_layer else None
        dino = dino_losses(cls_z.unflatten(0, (-1, images)), cls_layer, targets.cls, temperature, shared)
        ibot = ibot_loss(
            patches_z,
            patch_layer,
            targets.patches,
            self._patch_weights(slot),
            len(slot.global_crops),
            temperature,
            shared,
        )
        koleo = _koleo(whole.cls_BD, objective)
        loss = objective.dino_weight * dino.total + objective.ibot_weight * ibot + objective.koleo_weight * koleo
        gram = loss.new_zeros(())
        if targets.gram is not None:
            student_BND = whole.patches_MD.view(targets.gram.shape)
            gram = gram_loss(student_BND, targets.gram, objective.gram.clip_negative)
            loss = loss + objective.gram.weight * gram
        values = (loss, dino.total, dino.of_global, dino.of_local, ibot, koleo, gram)
        return dict(zip(TERMS, values, strict=True))

    def _patch_weights(self, slot: SlotBatch) -> Tensor:
        """1 / (compared patches of the crop), for each of them in row order, (M,)."""
        if slot.masks is not None:
            return mask_weights(slot.masks)
        patches = math.prod(slot.grid(self.backbone.config.patch_px))
        return torch.full((len(slot.global_crops) * patches,), 1 / patches, device=slot.global_crops.device)

    def _bottlenecks(self, cls_BD: Tensor, patches_MD: Tensor) -> tuple[Tensor, Tensor]:
        if self.patch_head is not self.dino_head:
            return self.dino_head.bottleneck(cls_BD), self.patch_head.bottleneck(patches_MD)
        cls_z, masked_z = self.dino_head.bottleneck(torch.cat([cls_BD, patches_MD])).split(
            [len(cls_BD), len(patches_MD)]
        )
        return cls_z, masked_z


def _koleo(cls_BD: Tensor, objective: ObjectiveConfig) -> Tensor:
    """The two global crops' values are summed (the code does so; the paper speaks of the first crop only)."""
    crops = cls_BD.chunk(GLOBAL_CROPS)
    return sum(
        (koleo_loss(crop, objective.koleo_group, objective.koleo_neighbours) for crop in crops),
        start=cls_BD.new_zeros((), dtype=torch.float32),
    )


@torch.no_grad()
def gram_anchor(backbone: VisionTransformer, slot: SlotBatch) -> Tensor:
    """The Gram teacher's work on a slot: patch features of its crops on the student's grid, (2 B, N, D)."""
    if slot.gram_crops is None:
        raise ValueError("the slot was made without Gram crops")
    (tokens,) = backbone([slot.gram_crops])
    patch_px = backbone.config.patch_px
    rows, columns, to_rows, to_columns = (
        side // patch_px for crops in (slot.gram_crops, slot.global_crops) for side in crops.shape[2:]
    )
    return resize_features(tokens.patches_BND, rows, columns, to_rows, to_columns)


def mask_weights(masks_BN: Tensor) -> Tensor:
    """1 / (masked tokens of the crop), for each masked token in row-major order, shape (M,)."""
    per_crop = masks_BN.sum(1, keepdim=True).clamp(min=1)
    return (1.0 / per_crop).expand_as(masks_BN)[masks_BN]
