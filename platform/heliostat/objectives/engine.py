"""What the training step needs of an engine, and the plainest one: one process, torch only."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from heliostat.checkpoint.format import StateSlice
from heliostat.config.training import TrainingConfig
from heliostat.objectives.groups import GroupRule, parameter_groups
from heliostat.objectives.networks import Network, SlotBatch, SlotTargets
from heliostat.objectives.schedules import StepValues
from heliostat.objectives.sinkhorn import OneWorker, Reducer
from heliostat.objectives.teacher import Teacher, WholeTeacher

MASTER = "master"
"""Kind of the student's fp32 parameters in a checkpoint."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Kinds of Adam's moments in a checkpoint, and their names in its state."""
WholeState = Mapping[str, Mapping[str, Tensor]]
"""State that every worker holds whole, by kind and name."""

_AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_EPS = 1e-6


class Engine(Protocol):
    """Holds the student, its gradients and its optimizer."""

    student: Network
    sizes: dict[str, int]
    """Elements of each of the student's parameters."""
    reducer: Reducer
    rank: int
    world_size: int

    def teacher(self, network: Network) -> Teacher:
        """A teacher or a moving average, held as the student is."""

    def losses(self, slot: SlotBatch, targets: SlotTargets) -> dict[str, Tensor]:
        """The student's losses on a slot, with a graph."""

    def backward(self, loss: Tensor, is_last_round: bool) -> None:
        """Accumulate gradients; the engine averages over rounds and workers."""

    def gradient_norms(self) -> dict[str, float]:
        """Norm of the step's gradient per sub-module, the same on every worker."""

    def step(self, values: StepValues, factors: dict[str, float]) -> None:
        """Multiply each sub-module's gradient by its factor, update the student, clear gradients."""

    def discard(self) -> None:
        """Clear gradients without an update."""

    def gather(self, names: list[str]) -> list[str]:
        """The names that all workers give, in the order of workers."""

    @property
    def optimizer_steps(self) -> int:
        """Steps that Adam has taken."""

    def whole_state(self) -> WholeState:
        """Parts of the student's state that every worker holds whole; to be overwritten in place by a restore."""

    def state_slices(self) -> Iterator[StateSlice]:
        """This worker's share of the other parts: together the workers' shares hold every element exactly once."""

    def prepare_restore(self, optimizer_steps: int) -> None:
        """Create Adam's state, so that it can be overwritten."""

    def finish_restore(self) -> None:
        """Make the model's parameters those of the restored state, on all workers."""


def new_optimizer(student: Network, training: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (betas 0.9, 0.999) over the recipe's parameter groups."""
    # Zeros here: both are set from the schedule at every step. Fused: one pass over the state instead of a dozen.
    return torch.optim.AdamW(
        parameter_groups(student, student.backbone.config, training), lr=0.0, weight_decay=0.0, fused=True
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
    return torch.autocast(device.type, _AUTOCAST[training.precision], enabled=training.precision != "fp32")


def student_state(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> WholeState:
    """Parameters and moments of an optimizer that holds them as they are."""
    state = {MASTER: {name: parameter.detach() for name, parameter in parameters.items()}}
    for moment in MOMENTS:
        state[moment] = {name: optimizer.state[parameter][moment] for name, parameter in parameters.items()}
    return state


def new_adam_state(shard: Tensor, steps: int) -> dict[str, Tensor]:
    """Adam's state of a parameter after so many steps, with moments of zero."""
    # One step tensor each: a shared one would be advanced once per group.
    return {
        "step": torch.tensor(float(steps), device=shard.device),
        **{moment: torch.zeros_like(shard).detach() for moment in MOMENTS},
    }


def adam_steps(optimizer: torch.optim.Optimizer) -> int:
    """Steps that Adam has taken."""
    return max((int(state["step"]) for state in optimizer.state.values() if "step" in state), default=0)


def _norm(gradients: list[Tensor]) -> float:
    return math.sqrt(sum(norm**2 for norm in torch.stack(list(torch._foreach_norm(gradients))).tolist()))


class WholeStudent:
    """A student whose parameters and optimizer one worker holds whole: its state."""

    def __init__(self, student: Network, optimizer: torch.optim.Optimizer) -> None:
        self.student = student
        self._optimizer = optimizer

    @property
    def optimizer_steps(self) -> int:
        """Steps that Adam has taken."""
        return adam_steps(self._optimizer)

    def whole_state(self) -> WholeState:
        """All of the student's state."""
        if not self._optimizer.state:
            self.prepare_restore(0)
        return student_state(dict(self.student.named_parameters()), self._optimizer)

    def state_slices(self) -> Iterator[StateSlice]:
        """None."""
        yield from ()

    def prepare_restore(self, optimizer_steps: int) -> None:
        """Create Adam's state."""
        for parameter in self.student.parameters():
            self._optimizer.state[parameter] = new_adam_state(parameter, optimizer_steps)

    def finish_restore(self) -> None:
        """The parameters are the state."""


class PlainEngine(WholeStudent):
    """One process, no DeepSpeed: every slot is a round."""

    rank = 0
    world_size = 1

    def __init__(self, student: Network, training: TrainingConfig) -> None:
        super().__init__(student, new_optimizer(student, training))
        self.sizes = {name: parameter.numel() for name, parameter in student.named_parameters()}
        self.reducer: Reducer = OneWorker()
        self._training = training

    def teacher(self, network: Network) -> Teacher:
        """Whole."""
        return WholeTeacher(network)

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

    def step(self, values: StepValues, factors: dict[str, float]) -> None:
        """Scale, update, clear."""
        for name, factor in factors.items():
            if factor != 1:
                torch._foreach_mul_(self._gradients(name), factor)
        apply_schedule(self._optimizer.param_groups, values)
        for parameter in self.student.parameters():
            if parameter.grad is None:  # unused, as the mask token of a student that sees whole crops: it still decays
                parameter.grad = torch.zeros_like(parameter)
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
