"""Trained weights for images with another number of channels.

Legend: D width, K and C channels before and after, P side of a patch.
"""

import torch
from torch import Tensor


def inflate(weight_DKPP: Tensor, channels: int) -> Tensor:
    """The patch embedding for ``channels`` channels, (D, K, P, P) to (D, C, P, P).

    Channel i takes the weights of colour i mod K, and the channels that take one colour share it equally: an image
    whose channels are all alike gets exactly the embedding that it got before. Fewer channels than K share the sum of
    all colours. For one channel and for multiples of K this is the usual rule (repeat, times K / C).
    """
    colours = weight_DKPP.shape[1]
    if channels == colours:
        return weight_DKPP
    if channels < colours:
        return (weight_DKPP.sum(1, keepdim=True) / channels).repeat(1, channels, 1, 1)
    colour_C = torch.arange(channels) % colours
    sharing_C = torch.bincount(colour_C)[colour_C]
    return weight_DKPP[:, colour_C] / sharing_C.view(1, -1, 1, 1)
