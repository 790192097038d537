"""The losses of DINOv2 on one slot (arXiv 2304.07193, section 4, and its code), from unit bottleneck vectors.

Legend: B images of a slot, L local crops per image, M masked tokens, Z bottleneck width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from heliostat.objectives.cross_entropy import AnyPrototypes, Layer, Targets, soft_cross_entropy

GLOBAL_CROPS = 2


@dataclass(frozen=True, slots=True)
class DinoLosses:
    """The image-level loss and its two parts."""

    total: Tensor
    """With gradient."""
    of_global: Tensor
    """Share of the pairs with a global crop of the student; no gradient."""
    of_local: Tensor


def dino_losses(
    z_VBZ: Tensor, prototypes: AnyPrototypes, targets: Targets, temperature: float, layer: Layer | None = None
) -> DinoLosses:
    """Image-level loss: the mean over the 2 L + 2 pairs of a teacher's crop and another crop of the student.

    Args:
        z_VBZ: the student's vectors: the two (masked) global crops, then the L local crops.
        prototypes: the student's last layer.
        targets: the teacher's, of the two global crops of the same images.
        temperature: of the student.
        layer: ``prototypes``, prepared, where that was done already.
    """
    views, images, _ = z_VBZ.shape
    pairing_VU = torch.ones(views, GLOBAL_CROPS, device=z_VBZ.device)
    pairing_VU[:GLOBAL_CROPS] -= torch.eye(GLOBAL_CROPS, device=z_VBZ.device)  # never a crop with itself
    weight = 1 / ((2 * (views - GLOBAL_CROPS) + 2) * images)
    weights_VB = torch.full((views, images), weight, device=z_VBZ.device)
    total, rows_VB = soft_cross_entropy(z_VBZ, prototypes, targets, pairing_VU, weights_VB, temperature, layer)
    return DinoLosses(total, rows_VB[:GLOBAL_CROPS].sum() * weight, rows_VB[GLOBAL_CROPS:].sum() * weight)


def ibot_loss(
    z_MZ: Tensor,
    prototypes: AnyPrototypes,
    targets: Targets,
    weights_M: Tensor,
    crops: int,
    temperature: float,
    layer: Layer | None = None,
) -> Tensor:
    """Masked-patch loss: the mean over all global crops of the mean over a crop's masked tokens.

    Args:
        z_MZ: the student's vectors at the masked positions.
        prototypes: the student's last layer.
        targets: the teacher's at the same positions, one view.
        weights_M: 1 / (masked tokens of the token's crop).
        crops: global crops of the slot; those without a mask count, with a loss of 0.
        temperature: of the student.
        layer: ``prototypes``, prepared, where that was done already.
    """
    weights_VM = (weights_M / crops).unsqueeze(0)
    loss, _ = soft_cross_entropy(z_MZ.unsqueeze(0), prototypes, targets, None, weights_VM, temperature, layer)
    return loss
