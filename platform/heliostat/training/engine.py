"""What the training step needs of an engine, and the plainest one: one process, torch only, for debugging."""

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from heliostat.config.pretrain import TrainingConfig
from heliostat.errors import NonFiniteLossError
from heliostat.objectives.networks import SUB_MODULES, Network, SlotBatch, SlotTargets
from heliostat.objectives.sinkhorn import OneWorker, Reducer
from heliostat.training.groups import GroupRule, parameter_groups
from heliostat.training.schedules import StepValues

_EPS = 1e-6


class Engine(Protocol):
    """Holds the student, its gradients and its optimizer."""

    student: Network
    reducer: Reducer
    rank: int
    world_size: int

    def losses(self, slot: SlotBatch, targets: SlotTargets) -> dict[str, Tensor]:
        """The student's losses on a slot, with a graph."""

    def backward(self, loss: Tensor, is_last_round: bool) -> None:
        """Accumulate gradients; the engine averages over rounds and workers."""

    def step(self, values: StepValues) -> dict[str, float]:
        """Clip per sub-module, update the student, clear gradients; returns the gradient norms before clipping."""


def new_optimizer(student: Network, training: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (betas 0.9, 0.999) over the recipe's parameter groups."""
    # Zeros here: both are set from the schedule at every step.
    return torch.optim.AdamW(
        parameter_groups(student, student.backbone.config.depth, training), lr=0.0, weight_decay=0.0
    )


def apply_schedule(groups: list[dict[str, Any]], values: StepValues) -> None:
    """Set learning rate and weight decay of every optimizer group."""
    for group in groups:
        rule: GroupRule = group["rule"]
        group["lr"] = rule.lr(values)
        group["weight_decay"] = rule.weight_decay(values)


def check_finite(norms: dict[str, float]) -> None:
    """Stop before a gradient that is not finite reaches the parameters.

    Raises:
        NonFiniteLossError: on every worker alike, since norms are those of the whole gradient.
    """
    for name, norm in norms.items():
        if not math.isfinite(norm):
            raise NonFiniteLossError(
                f"the gradient norm of {name} is {norm}, though the loss is finite",
                "Resume from the last checkpoint with a lower training.base_lr or training.precision fp32",
            )


def clip_factor(norm: float, limit: float) -> float:
    """Factor on gradients of a sub-module (``torch.nn.utils.clip_grad_norm_``'s rule)."""
    return min(1.0, limit / (norm + _EPS))


class PlainEngine:
    """One process, no DeepSpeed: every slot is a round."""

    rank = 0
    world_size = 1

    def __init__(self, student: Network, training: TrainingConfig) -> None:
        self.student = student
        self.reducer: Reducer = OneWorker()
        self._training = training
        self._optimizer = new_optimizer(student, training)

    def losses(self, slot: SlotBatch, targets: SlotTargets) -> dict[str, Tensor]:
        """The student's losses on a slot."""
        device = slot.global_crops.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._training.precision == "bf16"):
            losses: dict[str, Tensor] = self.student(slot, targets)
        return losses

    def backward(self, loss: Tensor, is_last_round: bool) -> None:
        """Accumulate gradients."""
        (loss / self._training.slots).backward()

    def step(self, values: StepValues) -> dict[str, float]:
        """Clip, update, clear."""
        norms = {name: self._clip(getattr(self.student, name)) for name in SUB_MODULES}
        check_finite(norms)
        apply_schedule(self._optimizer.param_groups, values)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norms

    def _clip(self, module: nn.Module) -> float:
        return float(nn.utils.clip_grad_norm_(module.parameters(), self._training.clip_norm))
