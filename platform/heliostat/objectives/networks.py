"""Student and teacher: one backbone and two heads each, and what each computes for a slot.

Legend: B images of a slot, L local crops per image, N patches of a global crop, M masked tokens, Z bottleneck width,
K prototypes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heliostat.config.pretrain import ObjectiveConfig, PretrainRecipe
from heliostat.data.draws import stream_key
from heliostat.models.heads import ProjectionHead
from heliostat.models.vit import DropPlan, VisionTransformer
from heliostat.objectives.losses import dino_loss, ibot_loss, koleo_loss

SUB_MODULES = ("backbone", "dino_head", "ibot_head")
"""Gradients are clipped per sub-module."""


@dataclass(frozen=True, slots=True)
class SlotBatch:
    """Everything a slot's losses depend on, drawn and decoded beforehand."""

    global_crops: Tensor
    """(2 B, C, H, W): crop 1 of every image, then crop 2 of every image."""
    local_crops: Tensor
    """(L B, C, H', W'), crop-major too."""
    masks: Tensor
    """(2 B, N) bool."""
    drops: DropPlan | None


@dataclass(frozen=True, slots=True)
class TeacherView:
    """What the teacher says of a slot, as unit bottleneck vectors."""

    cls: Tensor
    """(2 B, Z)."""
    masked: Tensor
    """(M, Z), at the masked positions in row-major order."""


@dataclass(frozen=True, slots=True)
class SlotTargets:
    """The teacher's distributions of a slot."""

    cls: Tensor
    """(2 B, K)."""
    masked: Tensor
    """(M, K)."""


class Network(nn.Module):
    """A backbone with its DINO and iBOT heads. ``forward`` is the student's whole work on a slot.

    One ``forward`` rather than several methods: ZeRO-3 gathers parameters only around module calls.
    """

    def __init__(self, recipe: PretrainRecipe) -> None:
        super().__init__()
        model, objective = recipe.model, recipe.objective
        self.objective: ObjectiveConfig = objective
        self.backbone = VisionTransformer(model, recipe.augmentation.global_px // model.patch_px)

        def head() -> ProjectionHead:
            return ProjectionHead(
                model.embed_dim, objective.head_hidden, objective.head_bottleneck, objective.prototypes
            )

        self.dino_head = head()
        self.ibot_head = head()

    def init_weights(self, seed: int) -> None:
        """Draw the initial weights: a function of the run's seed alone."""
        for name in SUB_MODULES:
            generator = torch.Generator().manual_seed(stream_key(seed, f"weights:{name}") % 2**63)
            getattr(self, name).init_weights(generator)

    @torch.no_grad()
    def view(self, slot: SlotBatch) -> TeacherView:
        """The teacher's work on a slot: unmasked global crops, no drops."""
        (tokens,) = self.backbone([slot.global_crops])
        return TeacherView(
            cls=self.dino_head.bottleneck(tokens.cls_BD),
            masked=self.ibot_head.bottleneck(tokens.patches_BND[slot.masks]),
        )

    def forward(self, slot: SlotBatch, targets: SlotTargets) -> dict[str, Tensor]:
        """The student's losses on a slot: ``dino``, ``ibot``, ``koleo`` (unweighted) and the weighted ``loss``."""
        objective = self.objective
        whole, local = self.backbone([slot.global_crops, slot.local_crops], [slot.masks, None], slot.drops)
        crops = slot.global_crops.shape[0]
        images = crops // 2
        dino_logits = self.dino_head(torch.cat([whole.cls_BD, local.cls_BD]))
        dino = dino_loss(
            targets.cls.unflatten(0, (2, images)),
            dino_logits[:crops].unflatten(0, (2, images)),
            dino_logits[crops:].unflatten(0, (-1, images)),
            objective.student_temperature,
        )
        ibot = ibot_loss(
            targets.masked,
            self.ibot_head(whole.patches_BND[slot.masks]),
            mask_weights(slot.masks),
            crops,
            objective.student_temperature,
        )
        koleo = koleo_loss(whole.cls_BD[:images]) + koleo_loss(whole.cls_BD[images:])
        loss = objective.dino_weight * dino + objective.ibot_weight * ibot + objective.koleo_weight * koleo
        return {"loss": loss, "dino": dino, "ibot": ibot, "koleo": koleo}


def mask_weights(masks_BN: Tensor) -> Tensor:
    """1 / (masked tokens of the crop), for each masked token in row-major order, shape (M,)."""
    per_crop = masks_BN.sum(1, keepdim=True).clamp(min=1)
    return (1.0 / per_crop).expand_as(masks_BN)[masks_BN]


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Exponential moving average over all parameters, heads included: t ← m t + (1 - m) s."""
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        mine.lerp_(theirs.to(mine.dtype), 1 - momentum)
