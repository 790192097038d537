"""What a teacher says of images as one array for each, to be kept and used again.

Legend: B images, F numbers for a crop: all that is said of it, one after the other.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliostat.config.distill import DistillRecipe
from heliostat.data.crop_plan import GLOBAL_CROPS
from heliostat.objectives.teacher_view import Shown, TeacherView, Widths, parts, view_of

Kept = NDArray[np.floating[Any]]
"""(B, 2, F)."""


def kept_dtype(recipe: DistillRecipe) -> np.dtype[np.floating[Any]]:
    """That of the computation, and otherwise fp16: of vectors of unit length it keeps more than bf16 does."""
    return np.dtype(np.float32 if recipe.training.precision == "fp32" else np.float16)


def kept_numbers(recipe: DistillRecipe, shown: Shown, widths: Widths) -> int:
    """F."""
    patches = [(recipe.augmentation.global_px // patch_px) ** 2 for patch_px in shown.patch_px]
    return sum((count or 1) * width for count, width in parts(shown, patches, widths))


def pack(view: TeacherView, dtype: np.dtype[np.floating[Any]]) -> Kept:
    """What a teacher says of a slot, image by image."""
    crops = next(GLOBAL_CROPS * tensor.shape[1] for tensor in view.tensors if tensor.dim() == 3)
    whole_CF = torch.cat([tensor.reshape(crops, -1) for tensor in view.tensors], 1)
    by_image_B2F = whole_CF.unflatten(0, (GLOBAL_CROPS, -1)).transpose(0, 1)
    found: Kept = by_image_B2F.float().cpu().numpy().astype(dtype, order="C")
    return found


def parse_kept(recipe: DistillRecipe, views: Sequence[bytes]) -> Kept:
    """A slot's images from their bytes."""
    flat: Kept = np.frombuffer(b"".join(views), kept_dtype(recipe))
    return flat.reshape(len(views), GLOBAL_CROPS, -1)


def unpack(kept_B2F: Tensor, shown: Shown, patches: Sequence[int], widths: Widths) -> TeacherView:
    """The inverse of ``pack``, in fp32.

    Args:
        kept_B2F: of a slot's images.
        shown: what was said.
        patches: of a crop, for each size of the students' patches.
        widths: of the teacher's vectors.
    """
    crops_CF = kept_B2F.transpose(0, 1).flatten(0, 1).float()
    sizes = list(parts(shown, patches, widths))
    cut = crops_CF.split([(count or 1) * width for count, width in sizes], 1)
    tensors = [
        part.unflatten(0, (GLOBAL_CROPS, -1)) if count is None else part.unflatten(1, (count, width)).flatten(0, 1)
        for part, (count, width) in zip(cut, sizes, strict=True)
    ]
    return view_of(shown, [tensor.contiguous() for tensor in tensors])
