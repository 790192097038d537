"""Teacher targets by softmax centring, as an offset vector like that of Sinkhorn-Knopp.

Targets are ``softmax((logits - centre) / τ)``, which is ``softmax(logits / τ + offset)``: one loss serves
both. The centre follows the mean of the teacher's logits, the mean over the step's slots of each slot's mean, so that
slots weigh the same whatever their numbers of masked tokens and wherever they are computed.

Source: DINO, arXiv 2104.14294, section 3.1; DINOv2's code.

Legend: M tokens of a slot, Z bottleneck width, K prototypes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from heliostat.objectives.cross_entropy import Layer
from heliostat.objectives.sinkhorn import Reducer


def centre_offset(centre_K: Tensor, temperature: float) -> Tensor:
    """The offset vector to logits / ``temperature`` that subtracts the centre, shape (K,)."""
    return -centre_K / temperature


@torch.no_grad()
def mean_logits(z_MZ: Tensor, layer: Layer) -> Tensor:
    """Mean over a slot's tokens of their logits, shape (K,), fp32.

    Logits are linear in the bottleneck vectors, so these are averaged first: no (M, K) matrix.

    Args:
        z_MZ: bottleneck vectors, at least one.
        layer: the teacher's last layer, in fp32.

    Raises:
        ValueError: without tokens there is no mean.
    """
    if not len(z_MZ):
        raise ValueError("a slot without tokens has no mean of logits: leave it out")
    with torch.autocast(z_MZ.device.type, enabled=False):
        return layer.logits(z_MZ.float().mean(0, keepdim=True))[0]


@torch.no_grad()
def next_centre(centre_K: Tensor, slot_means: Sequence[Tensor], reducer: Reducer, momentum: float) -> Tensor:
    """The centre after a step: c ← momentum · c + (1 - momentum) · mean of the step's slot means, shape (K,).

    Args:
        centre_K: the centre before the step, the same on all workers; zeros at the start of a run.
        slot_means: ``mean_logits`` of this worker's slots; slots without tokens are left out. A worker may have none;
            if none has any, the centre stays.
        reducer: reductions over the workers, one of which is made.
        momentum: share of the centre that stays.
    """
    # In float64, so that the number of workers shows in the last bits of fp32 only. The last entry counts the slots.
    local = torch.zeros(len(centre_K) + 1, dtype=torch.float64, device=centre_K.device)
    for mean_K in slot_means:
        local[:-1] += mean_K
        local[-1] += 1
    total = reducer.sum(local)
    slots = total[-1]
    moved_K = momentum * centre_K + (1 - momentum) * total[:-1] / slots.clamp(min=1)
    return torch.where(slots > 0, moved_K.to(centre_K.dtype), centre_K)
