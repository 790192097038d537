"""KoLeo: a regulariser that spreads a slot's class tokens over the unit sphere.

Source: Sablayrolles 2019, arXiv 1806.03198; DINOv2, arXiv 2304.07193, section 4 and its code; the form in groups and
with several neighbours: DINOv3, arXiv 2508.10104, and its code.

Legend: B images, D width, G groups, P images of a group, J neighbours of an image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-8
_INDISTINCT = 1e-6
"""Two unit vectors closer than this differ by little more than the rounding of fp32: the direction is noise."""


def koleo_loss(cls_BD: Tensor, group: int | None = None, neighbours: int = 1) -> Tensor:
    """Minus the mean log distance of each image to its nearest others on the unit sphere; a scalar, fp32.

    The two global crops' values are summed by the caller (the code does so; the paper speaks of the first crop only).
    An image without others has no neighbour: 0. Indistinct images (duplicates) count in the value, which stays finite,
    but do not push: their gradient would be of any size in an arbitrary direction. A NaN comes out as NaN.

    Args:
        cls_BD: class tokens of one global crop of each image, shape (B, D), any float type.
        group: consecutive images among which neighbours are sought, a divisor of B; None is all.
        neighbours: nearest images that count, below the images of a group.

    Raises:
        ValueError: a group has too few images for its neighbours.
    """
    with torch.autocast(cls_BD.device.type, enabled=False):
        x_BD = F.normalize(cls_BD.float(), dim=-1, eps=_EPS)
        members = group or len(x_BD)
        if members < 2:
            return 0 * x_BD.sum()
        if neighbours >= members:
            raise ValueError(f"neighbours {neighbours} must be below the {members} images among which they are sought")
        x_GPD = x_BD.unflatten(0, (-1, members))
        distance_GPJ = (x_GPD.unsqueeze(2) - _nearest(x_GPD, neighbours) + _EPS).norm(dim=-1)
        constant_GPJ = distance_GPJ.detach()
        distance_GPJ = torch.where(constant_GPJ < _INDISTINCT, constant_GPJ, distance_GPJ)
        return -torch.log(distance_GPJ + _EPS).mean()


def _nearest(x_GPD: Tensor, neighbours: int) -> Tensor:
    """The images of the group with the largest cosine to each, itself left out, shape (G, P, J, D)."""
    with torch.no_grad():
        cosine_GPP = x_GPD @ x_GPD.mT
        # Not -1: the cosine of opposite images may round to less.
        cosine_GPP.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        nearest_GPJ = cosine_GPP.topk(neighbours, dim=-1).indices
    groups_G11 = torch.arange(len(x_GPD), device=x_GPD.device)[:, None, None]
    return x_GPD[groups_G11, nearest_GPJ]
