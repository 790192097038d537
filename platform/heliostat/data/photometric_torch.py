"""Changes of colour on a GPU, by batched torch operators: what ``photometric`` does to one crop after the other.

Which crops an operation concerns is known on the host, where the plan is, so each operation gathers its crops, changes
them and puts them back: no work on crops that it does not concern, no loop over crops, and no waiting for the device.
Numbers stay whole levels from 0 to 255, rounded after every operation as on the CPU. Brightness, contrast, saturation,
grey and blur differ from the CPU's by at most one level, hue (which OpenCV keeps in 256 steps) by 7, solarize by none.

Legend: N crops of the plan, n of them that an operation concerns, P side of a crop, K taps of the blur.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliostat.data.crop_plan import PhotometricPlan
from heliostat.data.photometric import BLUR_KERNEL_PX, LUMA

_ROUNDS_DOWN = 0.002
"""Added before rounding down, so that a whole number with the error of float32 stays what it is; as on the CPU."""
_SOLARIZE_FROM = 128

_Change = Callable[[Tensor, Tensor], Tensor]
"""New levels (n, 3, P, P) from the old ones and from a strength per crop (n, 1, 1, 1)."""


def apply_photometric(crops_NPPC: Tensor, plan: PhotometricPlan) -> Tensor:
    """Change the colours of N crops.

    Args:
        crops_NPPC: (N, P, P, 3), uint8, on any device; P is at least 5.
        plan: what to do, on the host.

    Returns:
        (N, P, P, 3), uint8, on the same device.
    """
    x_NCPP = crops_NPPC.permute(0, 3, 1, 2).float().contiguous()
    jitters = ((_brighten, plan.brightness), (_contrast, plan.contrast), (_saturate, plan.saturation), (_hue, plan.hue))
    for order_N in plan.order.T:
        for operation, (change, strength_N) in enumerate(jitters):
            _apply(change, x_NCPP, plan.jitter & (order_N == operation), strength_N)
    _apply(_grey, x_NCPP, plan.grey, plan.blur_sigma_px)
    _apply(_blur, x_NCPP, plan.blur_sigma_px > 0, plan.blur_sigma_px)
    _apply(_solarize, x_NCPP, plan.solarize, plan.blur_sigma_px)
    return x_NCPP.permute(0, 2, 3, 1).to(torch.uint8, memory_format=torch.contiguous_format)


def _apply(change: _Change, x_NCPP: Tensor, concerned_N: NDArray[np.bool_], strength_N: NDArray[np.float32]) -> None:
    places = np.flatnonzero(concerned_N)
    if not len(places):
        return
    places_n = torch.from_numpy(places).to(x_NCPP.device, non_blocking=True)
    strength_n = torch.from_numpy(strength_N[places]).to(x_NCPP.device, non_blocking=True)
    x_NCPP.index_copy_(0, places_n, change(x_NCPP.index_select(0, places_n), strength_n.view(-1, 1, 1, 1)))


def _brighten(x_nCPP: Tensor, factor_n: Tensor) -> Tensor:
    return _rounded_down(x_nCPP * factor_n)


def _contrast(x_nCPP: Tensor, factor_n: Tensor) -> Tensor:
    mean_n = (_luma(x_nCPP).mean((1, 2, 3), keepdim=True) + 0.5).floor()
    return _rounded_down(mean_n * (1 - factor_n) + x_nCPP * factor_n)


def _saturate(x_nCPP: Tensor, factor_n: Tensor) -> Tensor:
    return _rounded_down(_luma(x_nCPP) * (1 - factor_n) + x_nCPP * factor_n)


def _rounded_down(levels: Tensor) -> Tensor:
    return (levels + _ROUNDS_DOWN).floor_().clamp_(0, 255)


def _luma(x_nCPP: Tensor) -> Tensor:
    luma_n1PP: Tensor = LUMA[0] * x_nCPP[:, :1] + LUMA[1] * x_nCPP[:, 1:2] + LUMA[2] * x_nCPP[:, 2:]
    return luma_n1PP


def _hue(x_nCPP: Tensor, turns_n: Tensor) -> Tensor:
    """Turn the hue circle; value and saturation stay. Hues are counted in sixths of the circle, red is 0."""
    red, green, blue = x_nCPP.split(1, dim=1)
    value = x_nCPP.amax(1, keepdim=True)
    chroma = value - x_nCPP.amin(1, keepdim=True)
    of_red, of_green, of_blue = green - blue, blue - red + 2 * chroma, red - green + 4 * chroma
    scaled = torch.where(value == red, of_red, torch.where(value == green, of_green, of_blue))
    hue = scaled / chroma.clamp(min=1) + 6 * turns_n
    # How far each channel is below the value: for red, green and blue the same curve, a third of the circle apart.
    steps = (hue + torch.arange(5, 0, -2, device=hue.device).view(1, 3, 1, 1)) % 6
    return (value - chroma * torch.minimum(steps, 4 - steps).clamp_(0, 1)).round_()


def _grey(x_nCPP: Tensor, _: Tensor) -> Tensor:
    return _luma(x_nCPP).round().expand_as(x_nCPP)


def _blur(x_nCPP: Tensor, sigma_n: Tensor) -> Tensor:
    """Gaussian of ``BLUR_KERNEL_PX`` taps along each axis, mirrored at the border without repeating it."""
    radius = BLUR_KERNEL_PX // 2
    offsets_K = torch.arange(-radius, radius + 1, device=x_nCPP.device)
    taps_n111K = torch.softmax(-((offsets_K / sigma_n[..., None]) ** 2) / 2, dim=-1)
    side = x_nCPP.shape[-1]
    for axis in (2, 3):
        size = [radius if at == axis else 0 for at in (3, 2)]
        padded = torch.nn.functional.pad(x_nCPP, (size[0], size[0], size[1], size[1]), mode="reflect")
        x_nCPP = sum(
            (taps_n111K[..., at] * padded.narrow(axis, at, side) for at in range(1, BLUR_KERNEL_PX)),
            start=taps_n111K[..., 0] * padded.narrow(axis, 0, side),
        )
    return x_nCPP.round_()


def _solarize(x_nCPP: Tensor, _: Tensor) -> Tensor:
    return torch.where(x_nCPP >= _SOLARIZE_FROM, 255 - x_nCPP, x_nCPP)
