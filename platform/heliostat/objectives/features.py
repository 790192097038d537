"""Feature distillation: tokens of a student against the whitened tokens of a teacher.

Source: Wei et al. 2022, arXiv 2205.14141. Whitening is a layer norm without parameters, so that teachers whose features
are of any magnitude give targets of the same one.

Legend: M tokens, E width of the teacher.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def whitened(tokens_ME: Tensor) -> Tensor:
    """Each token with mean 0 and variance 1 over its features; at least fp32."""
    wide = torch.promote_types(tokens_ME.dtype, torch.float32)
    return F.layer_norm(tokens_ME.to(wide), tokens_ME.shape[-1:])


def feature_loss(projected_ME: Tensor, teacher_ME: Tensor, beta: float) -> Tensor:
    """Mean smooth L1 distance over all features of all tokens; a scalar, at least fp32.

    Args:
        projected_ME: the student's tokens, projected to the teacher's width.
        teacher_ME: the teacher's at the same places; no gradient flows to them.
        beta: difference up to which the distance is quadratic.
    """
    with torch.autocast(projected_ME.device.type, enabled=False):
        target_ME = whitened(teacher_ME.detach())
        return F.smooth_l1_loss(projected_ME.to(target_ME.dtype), target_ME, beta=beta)
