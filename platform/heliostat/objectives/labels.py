"""Labels of a dataset: cross-entropy where there are any, and what a teacher makes of them everywhere.

Source: DeiT, arXiv 2012.12877, section 4: hard distillation learns the teacher's most likely class, soft distillation
its distribution at a temperature.

Legend: B crops, C classes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat.data.shard_index import NO_LABEL


def label_loss(logits_BC: Tensor, labels_B: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy over the crops that have a label, 0 where none has; a scalar, fp32.

    Args:
        logits_BC: of a classifier.
        labels_B: classes; ``NO_LABEL`` is none.
        smoothing: share of a label that is spread evenly over all classes.
    """
    with torch.autocast(logits_BC.device.type, enabled=False):
        losses = F.cross_entropy(
            logits_BC.float(), labels_B, ignore_index=NO_LABEL, label_smoothing=smoothing, reduction="sum"
        )
        return losses / (labels_B != NO_LABEL).sum().clamp(min=1)


def token_loss(
    logits_BC: Tensor, teacher_BC: Tensor, kind: Literal["hard", "soft"], temperature: float, smoothing: float
) -> Tensor:
    """How far a distillation token is from what the teacher says; a scalar, fp32.

    Args:
        logits_BC: of the token's classifier.
        teacher_BC: of the teacher's; no gradient flows to them.
        kind: what is learnt of them: the most likely class, or the distribution.
        temperature: of both, with ``soft``; the loss is multiplied by its square, as gradients shrink with it.
        smoothing: as of ``label_loss``, with ``hard``.
    """
    teacher_BC = teacher_BC.detach().float()
    if kind == "hard":
        return label_loss(logits_BC, teacher_BC.argmax(-1), smoothing)
    with torch.autocast(logits_BC.device.type, enabled=False):
        log_BC = F.log_softmax(logits_BC.float() / temperature, -1)
        of_teacher_BC = F.log_softmax(teacher_BC / temperature, -1)
        return F.kl_div(log_BC, of_teacher_BC, reduction="batchmean", log_target=True) * temperature**2
