"""What is evaluated: backbones of runs, as functions from images to features."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heliostat.config.network import NetworkRecipe
from heliostat.config.training import TrainingRecipe
from heliostat.models.backbones import Backbone
from heliostat.models.tokens import Tokens
from heliostat.models.weights.backbone import build
from heliostat.models.weights.runs import read_teacher
from heliostat.objectives.networks import Network
from heliostat.storage import Store


@dataclass(frozen=True, slots=True)
class TrainedTeacher:
    """The teacher's backbone of a committed checkpoint."""

    backbone: Backbone
    step: int


class ClassToken(nn.Module):
    """The normalised class token as the feature of an image, (B, C, H, W) to (B, D)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, D)."""
        return _tokens(self.backbone, images_BCHW).cls_BD


def untrained_backbone(recipe: NetworkRecipe) -> Backbone:
    """The backbone with which the run started: a function of its seed."""
    network = Network(recipe)
    network.init_weights(recipe.seed)
    return network.backbone.eval()


def trained_teacher(
    run: Store, recipe: TrainingRecipe, step: int | None = None, student: str | None = None
) -> TrainedTeacher:
    """The teacher of a run's checkpoint, or a student's average; of the newest good one if no step is named.

    Raises:
        NoCheckpointError: nothing was committed yet, or nothing of this step.
    """
    weights, step = read_teacher(run, recipe, step, student)
    return TrainedTeacher(build(weights), step)


@torch.inference_mode()
def patch_features(backbone: Backbone, images_BCHW: Tensor) -> Tensor:
    """Normalised patch tokens, (B, N, D)."""
    return _tokens(backbone, images_BCHW).patches_BND


def _tokens(backbone: Backbone, images_BCHW: Tensor) -> Tokens:
    groups: list[Tokens] = backbone([images_BCHW])
    return groups[0]
