"""Raw pixels as features: the baseline that a small run must beat before its k-NN score means anything.

Legend: B images, C channels, H and W pixels, D = C · H · W.
"""

from torch import Tensor

_MIN_STD = 1e-4
"""Guards images of one colour, whose pixels spread by rounding only; one of 256 levels is far above it."""


def raw_pixels(images_BCHW: Tensor) -> Tensor:
    """The pixels as they are, in rows (B, D)."""
    return images_BCHW.flatten(1)


def normalised_pixels(images_BCHW: Tensor) -> Tensor:
    """The pixels of each image with mean 0 and standard deviation 1, in rows (B, D).

    The cosine of two such rows is the correlation of the images: brightness and contrast no longer count.
    """
    pixels_BD = images_BCHW.flatten(1).float()
    centred_BD = pixels_BD - pixels_BD.mean(dim=1, keepdim=True)
    return centred_BD / centred_BD.std(dim=1, keepdim=True, unbiased=False).clamp(min=_MIN_STD)
