"""Gram anchoring: similarities among an image's patches stay those of an earlier teacher.

Source: DINOv3, arXiv 2508.10104, section 4. The paper writes a squared Frobenius norm, its code takes the mean over the
entries; here the mean, to which the published weight of 2 belongs.

Legend: B images, N patches of an image, D width, H, W rows and columns of patches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat.config.objective import GramConfig


def gram_loss(student_BND: Tensor, anchor_BND: Tensor, clip_negative: bool) -> Tensor:
    """Mean squared difference of the patches' cosines, per image, over all entries; a scalar, fp32.

    Args:
        student_BND: the student's patch tokens.
        anchor_BND: the Gram teacher's on the same grid, see ``resize_features``; no gradient flows to them.
        clip_negative: negative cosines count as 0, on both sides.
    """
    with torch.autocast(student_BND.device.type, enabled=False):
        student_BNN = _cosines(student_BND, clip_negative)
        anchor_BNN = _cosines(anchor_BND.detach(), clip_negative)
        return (student_BNN - anchor_BNN).square().mean()


def _cosines(x_BND: Tensor, clip_negative: bool) -> Tensor:
    unit_BND = F.normalize(x_BND.float(), dim=-1)
    cosines_BNN = unit_BND @ unit_BND.mT
    return cosines_BNN.clamp(min=0) if clip_negative else cosines_BNN


def resize_features(x_BND: Tensor, rows: int, columns: int, to_rows: int, to_columns: int) -> Tensor:
    """Patch tokens of a grid brought to another: bicubic, as the code of DINOv3 without antialiasing, in fp32.

    The Gram teacher sees its crops at a higher resolution than the student, and its feature map is brought down.

    Args:
        x_BND: tokens of ``rows`` times ``columns`` patches, row by row.
        rows: of the tokens' grid.
        columns: of the tokens' grid.
        to_rows: of the result's.
        to_columns: of the result's.
    """
    map_BDHW = x_BND.float().unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
    resized_BDHW = F.interpolate(map_BDHW, size=(to_rows, to_columns), mode="bicubic", align_corners=False)
    return resized_BDHW.flatten(2).mT


def gram_teacher_refreshes(step: int, config: GramConfig) -> bool:
    """Whether the EMA teacher becomes the Gram teacher before this step.

    At ``from_step``, then every ``refresh_every_steps``, ``max_refreshes`` more times.
    """
    refresh, steps_since = divmod(step - config.from_step, config.refresh_every_steps)
    return steps_since == 0 and 0 <= refresh <= config.max_refreshes
