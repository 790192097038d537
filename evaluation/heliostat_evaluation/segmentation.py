"""Semantic segmentation by a linear head on frozen patch features (DINOv2, arXiv 2304.07193, section 7.4).

Batch normalisation and a linear layer give logits for each patch, which are resized to the mask; AdamW with a linear
warm-up and a linear decay.

Legend: N images, B images of a batch, D feature width, R and C rows and columns of patches, H and W of a mask, K
classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat.errors import TooFewSamplesError

IGNORED = 255
"""In a mask: pixels that belong to no class."""
_BATCH = 16
_LR = 1e-3
_WEIGHT_DECAY = 1e-4
_WARM_UP_SHARE = 1500 / 40_000


@dataclass(frozen=True, slots=True)
class Segmentation:
    """How well masks are found."""

    confusion_KK: Tensor
    """Pixels by true class (rows) and found class, int64."""

    @property
    def iou_K(self) -> Tensor:
        """Intersection over union of each class, float64; NaN for one that is neither there nor found."""
        both_K = self.confusion_KK.diagonal().double()
        either_K = (self.confusion_KK.sum(0) + self.confusion_KK.sum(1)).double() - both_K
        return both_K / either_K

    @property
    def mean_iou(self) -> float:
        """Of the classes that are there or found."""
        return float(self.iou_K.nanmean())


class LinearHead(nn.Module):
    """Logits of every pixel from the features of the patches."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.layer = nn.Conv2d(width, classes, 1)

    def forward(self, features_BDRC: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, K, H, W), resized bilinearly."""
        logits: Tensor = F.interpolate(self.layer(self.norm(features_BDRC)), size, mode="bilinear", align_corners=False)
        return logits


def train_head(features_NDRC: Tensor, masks_NHW: Tensor, classes: int, *, steps: int, seed: int) -> LinearHead:
    """Train a linear head on features that stay as they are.

    Args:
        features_NDRC: fp32.
        masks_NHW: Classes from 0, or ``IGNORED``; int64.
        classes: K.
        steps: Of the optimizer, 16 images each.
        seed: Of the first weights and of the order of the images.

    Raises:
        TooFewSamplesError: there is no image.
        ValueError: a mask holds another number, or there is not one for each image.
    """
    _check(features_NDRC, masks_NHW, classes)
    draws = torch.Generator().manual_seed(seed)
    head = LinearHead(features_NDRC.shape[1], classes)
    nn.init.normal_(head.layer.weight, std=0.01, generator=draws)
    nn.init.zeros_(head.layer.bias)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(head.parameters(), lr=_LR, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(steps))
    for _ in range(steps):
        rows = torch.randint(len(features_NDRC), (_BATCH,), generator=draws)
        logits = head(features_NDRC[rows], masks_NHW.shape[1:])
        optimizer.zero_grad()
        masks = masks_NHW[rows]
        # A mean over no pixel at all would be no number.
        loss = F.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="sum")
        (loss / (masks != IGNORED).sum().clamp(min=1)).backward()
        optimizer.step()
        schedule.step()
    return head.eval()


def _rate(steps: int) -> Callable[[int], float]:
    """Share of the learning rate at a step: up to 1 in the warm-up, then down to 0 at the end."""
    warm_up = max(1, round(steps * _WARM_UP_SHARE))
    return lambda step: min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))


@torch.inference_mode()
def segment(head: LinearHead, features_NDRC: Tensor, masks_NHW: Tensor) -> Segmentation:
    """Find the masks of images and compare.

    Raises: as ``train_head`` does.
    """
    classes = head.layer.out_channels
    _check(features_NDRC, masks_NHW, classes)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    for features_BDRC, masks_BHW in zip(features_NDRC.split(_BATCH), masks_NHW.split(_BATCH), strict=True):
        found = head(features_BDRC, masks_BHW.shape[1:]).argmax(1)
        counts = masks_BHW != IGNORED
        pairs = masks_BHW[counts] * classes + found[counts]
        confusion += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
    return Segmentation(confusion)


def _check(features_NDRC: Tensor, masks_NHW: Tensor, classes: int) -> None:
    if not len(features_NDRC):
        raise TooFewSamplesError("there is no image to segment", "Give at least one image with its mask")
    if len(features_NDRC) != len(masks_NHW):
        raise ValueError(f"{len(features_NDRC)} images and {len(masks_NHW)} masks do not match")
    strange = masks_NHW[(masks_NHW != IGNORED) & ((masks_NHW < 0) | (masks_NHW >= classes))]
    if len(strange):
        raise ValueError(f"a mask holds {int(strange[0])}, which is none of the {classes} classes and not {IGNORED}")
