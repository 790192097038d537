"""The losses against the published code, whose numbers are of logits: prototypes are the unit vectors here."""

import torch
from support.closed_form import det
from support.golden import GOLDEN, close
from torch import Tensor

from heliostat.models.heads import Prototypes
from heliostat.objectives.cross_entropy import Layer, Targets, soft_cross_entropy
from heliostat.objectives.koleo import koleo_loss
from heliostat.objectives.losses import ibot_loss
from heliostat.objectives.sinkhorn import OneWorker, sinkhorn_offset

STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.07


def unit_prototypes() -> Prototypes:
    """Vectors are their own logits."""
    prototypes = Prototypes(24, 24)
    torch.nn.init.eye_(prototypes.weight_v)
    return prototypes


def balanced(views: list[Tensor]) -> Targets:
    """Targets by Sinkhorn-Knopp over each view alone: its offset is added to its logits beforehand."""

    def shifted(view: Tensor) -> Tensor:
        return view + TEACHER_TEMPERATURE * sinkhorn_offset(lambda: [view], TEACHER_TEMPERATURE, 3, OneWorker())

    return Targets(
        torch.stack([*map(shifted, views)]),
        Layer.of(unit_prototypes(), torch.float32),
        torch.zeros(24),
        TEACHER_TEMPERATURE,
    )


def test_soft_cross_entropy__over_pairs_of_crops_equals_the_published_dino_loss() -> None:
    student = torch.stack([det((8, 24), seed) for seed in (20, 21, 22)])
    targets = balanced([det((8, 24), seed) for seed in (30, 31)])
    every_pair, mean_over_images = torch.ones(3, 2), torch.full((3, 8), 1 / 8)
    loss, _ = soft_cross_entropy(student, unit_prototypes(), targets, every_pair, mean_over_images, STUDENT_TEMPERATURE)
    close([loss.item()], [GOLDEN["dino_loss"]["sum_over_3x2"]])


def test_ibot_loss__equals_the_published_one() -> None:
    masked = GOLDEN["ibot"]["mask_rows"]  # masked tokens of each of four crops
    weights = torch.tensor([1 / count for count in masked for _ in range(count)])
    targets = balanced([det((15, 24), 41)])
    loss = ibot_loss(det((15, 24), 40), unit_prototypes(), targets, weights, len(masked), STUDENT_TEMPERATURE)
    close([loss.item()], [GOLDEN["ibot"]["loss_masked"]])


def test_koleo_loss__equals_the_published_one() -> None:
    close([koleo_loss(det((8, 16), 7)).item()], [GOLDEN["koleo"]["n8d16"]])
