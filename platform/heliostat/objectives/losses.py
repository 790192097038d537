"""The three losses of DINOv2 on one slot (arXiv 2304.07193, section 4, and its code).

Legend: B images of a slot, L local crops per image, K prototypes, M masked tokens, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-8


def cross_entropy(targets_XK: Tensor, logits_XK: Tensor, temperature: float) -> Tensor:
    """-Σ_k p_k log softmax(s / temperature)_k, shape (X,), fp32."""
    return -(targets_XK * F.log_softmax(logits_XK.float() / temperature, dim=-1)).sum(-1)


def dino_loss(targets_2BK: Tensor, global_2BK: Tensor, local_LBK: Tensor, temperature: float) -> Tensor:
    """Image-level loss: the mean over the 2 L + 2 pairs of a teacher's crop and another crop of the student.

    Args:
        targets_2BK: the teacher's distributions of the two global crops, shape (2, B, K).
        global_2BK: the student's logits of the (masked) global crops, shape (2, B, K).
        local_LBK: the student's logits of the local crops, shape (L, B, K).
        temperature: of the student.
    """
    pairs = 2 + 2 * local_LBK.shape[0]
    both_BK = targets_2BK.sum(0)
    local = cross_entropy(both_BK.expand_as(local_LBK), local_LBK, temperature).mean(-1).sum()
    other_crop = cross_entropy(targets_2BK.flip(0), global_2BK, temperature).mean(-1).sum()
    return (local + other_crop) / pairs


def ibot_loss(targets_MK: Tensor, logits_MK: Tensor, weights_M: Tensor, crops: int, temperature: float) -> Tensor:
    """Masked-patch loss: the mean over all global crops of the mean over a crop's masked tokens.

    Args:
        targets_MK: the teacher's distributions at the masked positions.
        logits_MK: the student's logits there.
        weights_M: 1 / (masked tokens of the token's crop).
        crops: global crops of the slot; those without a mask count, with a loss of 0.
        temperature: of the student.
    """
    return (cross_entropy(targets_MK, logits_MK, temperature) * weights_M).sum() / crops


def koleo_loss(cls_BD: Tensor) -> Tensor:
    """KoLeo regulariser of one global crop: -mean log distance to the nearest other image, on the unit sphere, in fp32.

    The two crops' values are summed by the caller (the code does so; the paper speaks of the first crop only). A slot
    of one image has no neighbour: 0.
    """
    if cls_BD.shape[0] < 2:
        return cls_BD.new_zeros((), dtype=torch.float32)
    with torch.autocast(cls_BD.device.type, enabled=False):
        x_BD = F.normalize(cls_BD.float(), dim=-1, eps=_EPS)
        with torch.no_grad():
            similarity_BB = x_BD @ x_BD.T
            similarity_BB.fill_diagonal_(-1)
            nearest_B = similarity_BB.argmax(dim=1)
        distance_B = F.pairwise_distance(x_BD, x_BD[nearest_B], p=2, eps=_EPS)
        return -torch.log(distance_B + _EPS).mean()
