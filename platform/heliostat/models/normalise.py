"""From bytes of pixels to what a backbone takes.

Legend: B images, H, W sides, C channels.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet's training images, per channel, as shares of full brightness."""


def normalise(pixels_BHWC: NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 (B, H, W, C) to fp32 (B, C, H, W) with ImageNet's mean and deviation, computed where the pixels are."""
    pixels = torch.as_tensor(pixels_BHWC).permute(0, 3, 1, 2).float()
    std = torch.tensor(STD, device=pixels.device).view(1, 3, 1, 1)
    mean = torch.tensor(MEAN, device=pixels.device).view(1, 3, 1, 1)
    return (pixels / (255 * std) - mean / std).contiguous()
