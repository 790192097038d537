"""What a student of a distillation has besides the heads of pre-training: projections of its tokens, and classifiers.

Legend: M vectors, B crops, D width of the student, E width of the teacher, C classes.
"""

import torch
from torch import Tensor, nn

from heliostat.models.linear import Linear


class FeatureHead(nn.Module):
    """Linear projections of the student's tokens to the width of the teacher's (the 1 x 1 convolution of the paper)."""

    def __init__(self, dim: int, teacher_dim: int, *, has_cls: bool) -> None:
        super().__init__()
        self.patches = Linear(dim, teacher_dim)
        self.cls = Linear(dim, teacher_dim) if has_cls else None

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the initial weights."""
        draw_linears(self, generator)

    def forward(self, patches_MD: Tensor, cls_BD: Tensor) -> tuple[Tensor, Tensor | None]:
        """Projected patches, (M, E), and class tokens, (B, E), where these are compared too."""
        return self.patches(patches_MD), None if self.cls is None else self.cls(cls_BD)


class LabelHead(nn.Module):
    """Classifiers: of the student's class token, of its distillation token, and of the frozen teacher's class token.

    The last one is how the teacher learns the labels; it lies here to be cut, updated and saved like all that learns.
    """

    def __init__(self, dim: int, classes: int, teacher_dim: int | None) -> None:
        super().__init__()
        self.cls = Linear(dim, classes)
        self.token = None if teacher_dim is None else Linear(dim, classes)
        self.teacher = None if teacher_dim is None else Linear(teacher_dim, classes)

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the initial weights."""
        draw_linears(self, generator)

    def forward(
        self, cls_BD: Tensor, token_BD: Tensor | None, teacher_BE: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Logits (B, C) of each that there is."""
        of_token = None if self.token is None or token_BD is None else self.token(token_BD)
        of_teacher = None if self.teacher is None or teacher_BE is None else self.teacher(teacher_BE)
        return self.cls(cls_BD), of_token, of_teacher


def draw_linears(module: nn.Module, generator: torch.Generator) -> None:
    """Initial weights of all linear layers: a truncated normal of 0.02, biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
            nn.init.zeros_(layer.bias)
