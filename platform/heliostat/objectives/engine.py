"""What the training step needs of an engine, and the plainest one: one process, torch only."""

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from heliostat.config.pretrain import TrainingConfig
from heliostat.objectives.groups import GroupRule, parameter_groups
from heliostat.objectives.networks import Network, SlotBatch, SlotTargets
from heliostat.objectives.schedules import StepValues
from heliostat.objectives.sinkhorn import OneWorker, Reducer

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

    def gradient_norms(self) -> dict[str, float]:
        """Norm of the step's gradient per sub-module, the same on every worker."""

    def step(self, values: StepValues, norms: dict[str, float]) -> None:
        """Clip per sub-module, update the student, clear gradients."""

    def discard(self) -> None:
        """Clear gradients without an update."""

    def gather(self, names: list[str]) -> list[str]:
        """The names that all workers give, in the order of workers."""


def new_optimizer(student: Network, training: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (betas 0.9, 0.999) over the recipe's parameter groups."""
    # Zeros here: both are set from the schedule at every step. Fused: one pass over the state instead of a dozen.
    return torch.optim.AdamW(
        parameter_groups(student, student.backbone.config.depth, training), lr=0.0, weight_decay=0.0, fused=True
    )


def apply_schedule(groups: list[dict[str, Any]], values: StepValues) -> None:
    """Set learning rate and weight decay of every optimizer group."""
    for group in groups:
        rule: GroupRule = group["rule"]
        group["lr"] = rule.lr(values)
        group["weight_decay"] = rule.weight_decay(values)


def clip_factor(norm: float, limit: float) -> float:
    """Factor on gradients of a sub-module (``torch.nn.utils.clip_grad_norm_``'s rule)."""
    return min(1.0, limit / (norm + _EPS))


def autocast(training: TrainingConfig, device: torch.device) -> torch.autocast:
    """The compute precision of a recipe."""
    return torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16")


def _norm(gradients: list[Tensor]) -> float:
    return math.sqrt(sum(norm**2 for norm in torch.stack(list(torch._foreach_norm(gradients))).tolist()))


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
        with autocast(self._training, slot.global_crops.device):
            losses: dict[str, Tensor] = self.student(slot, targets)
        return losses

    def backward(self, loss: Tensor, is_last_round: bool) -> None:
        """Accumulate gradients."""
        (loss / self._training.slots).backward()

    def gradient_norms(self) -> dict[str, float]:
        """Norm of the gradient per sub-module."""
        return {name: _norm(self._gradients(name)) for name in self.student.sub_modules}

    def step(self, values: StepValues, norms: dict[str, float]) -> None:
        """Clip, update, clear."""
        for name, norm in norms.items():
            factor = clip_factor(norm, self._training.clip_norm)
            if factor < 1:
                torch._foreach_mul_(self._gradients(name), factor)
        apply_schedule(self._optimizer.param_groups, values)
        self._optimizer.step()
        self.discard()

    def discard(self) -> None:
        """Clear gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def gather(self, names: list[str]) -> list[str]:
        """The names."""
        return names

    def _gradients(self, sub_module: str) -> list[Tensor]:
        parameters = getattr(self.student, sub_module).parameters()
        return [parameter.grad for parameter in parameters if parameter.grad is not None]
