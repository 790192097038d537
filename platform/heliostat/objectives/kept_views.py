"""What a teacher says of images as one array for each, to be kept and used again.

Legend: B images, T class token and patches of a crop on the grids of all students, Z bottleneck width.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from heliostat.config.distill import DistillRecipe
from heliostat.data.crop_plan import GLOBAL_CROPS
from heliostat.objectives.networks import TeacherView

Kept = NDArray[np.floating[Any]]
"""(B, 2, T, Z)."""


def kept_dtype(recipe: DistillRecipe) -> np.dtype[np.floating[Any]]:
    """That of the computation, and otherwise fp16: of vectors of unit length it keeps more than bf16 does."""
    return np.dtype(np.float32 if recipe.training.precision == "fp32" else np.float16)


def kept_tokens(recipe: DistillRecipe) -> int:
    """T."""
    return 1 + sum((recipe.augmentation.global_px // patch_px) ** 2 for patch_px in recipe.patch_sizes)


def pack(view: TeacherView, dtype: np.dtype[np.floating[Any]]) -> Kept:
    """What a teacher says of a slot, image by image; vectors of the narrower head end in zeros."""
    crops = GLOBAL_CROPS * view.cls.shape[1]
    parts = [view.cls.flatten(0, 1).unsqueeze(1), *(each.unflatten(0, (crops, -1)) for each in view.patches)]
    width = max(part.shape[-1] for part in parts)
    whole_CTZ = torch.cat([F.pad(part, (0, width - part.shape[-1])) for part in parts], 1)
    by_image_B2TZ = whole_CTZ.unflatten(0, (GLOBAL_CROPS, -1)).transpose(0, 1)
    found: Kept = by_image_B2TZ.float().cpu().numpy().astype(dtype, order="C")
    return found


def parse_kept(recipe: DistillRecipe, views: Sequence[bytes]) -> Kept:
    """A slot's images from their bytes."""
    flat: Kept = np.frombuffer(b"".join(views), kept_dtype(recipe))
    return flat.reshape(len(views), GLOBAL_CROPS, kept_tokens(recipe), -1)


def unpack(kept_B2TZ: Tensor, grids: Sequence[tuple[int, int]], widths: tuple[int, int]) -> TeacherView:
    """The inverse of ``pack``, in fp32.

    Args:
        kept_B2TZ: of a slot's images.
        grids: rows and columns of patches of a crop, for each size of the students' patches.
        widths: of the bottlenecks of the class token and of patches.
    """
    crops_CTZ = kept_B2TZ.transpose(0, 1).flatten(0, 1).float()
    cls, *maps = crops_CTZ.split([1, *(math.prod(grid) for grid in grids)], 1)
    of_cls, of_patch = widths
    return TeacherView(
        cls.squeeze(1)[..., :of_cls].unflatten(0, (GLOBAL_CROPS, -1)).contiguous(),
        tuple(each[..., :of_patch].flatten(0, 1).contiguous() for each in maps),
    )
