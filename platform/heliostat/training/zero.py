"""DeepSpeed ZeRO as an engine of the training step.

What 0.19.8 lacks or does otherwise, and is done here (``tests/platform/training/test_zero.py`` fails when it changes):
- clipping by one global norm: ours is per sub-module, on the reduced gradients;
- a step that must be left out: it skips one by itself when a gradient is not finite, which is used for any reason;
- scaling the loss for fp16: ours computes a step again instead of losing it (``objectives/loss_scale.py``).
"""

import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from heliostat.checkpoint.format import StateSlice
from heliostat.config.training import TrainingConfig
from heliostat.data.slots import SlotPlan
from heliostat.models.block import Block
from heliostat.objectives.engine import WholeState, apply_schedule, new_optimizer
from heliostat.objectives.networks import Network, SlotBatch, SlotTargets
from heliostat.objectives.schedules import StepValues
from heliostat.objectives.sinkhorn import Reducer
from heliostat.objectives.teacher import Teacher, WholeTeacher
from heliostat.training.collective import ProcessGroupReducer, all_do
from heliostat.training.sharded_teacher import ShardedTeacher
from heliostat.training.zero_shards import shards_of

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def zero_config(training: TrainingConfig, plan: SlotPlan, on_gpu: bool) -> dict[str, Any]:
    """DeepSpeed's configuration: a round is a micro-step; its own clipping is off."""
    stage: dict[str, Any] = {"stage": training.zero_stage, "overlap_comm": on_gpu, "contiguous_gradients": True}
    if training.offload_optimizer:
        stage["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": plan.rounds,
        "zero_optimization": stage,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 0.0,
        "steps_per_print": 2**31,
    }
    if training.precision != "fp32":
        # No module's gradients are rounded before they are summed over workers: that would depend on how many there
        # are.
        config["torch_autocast"] = {
            "enabled": True,
            "dtype": _DTYPES[training.precision],
            "lower_precision_safe_modules": [],
        }
    return config


class ZeroEngine:
    """The student under ZeRO, in an initialised process group."""

    def __init__(self, student: Network, training: TrainingConfig, plan: SlotPlan, device: torch.device) -> None:
        import deepspeed

        # The shared-memory collectives would be compiled at first use, by a compiler that may not be there; gloo is as
        # fast at the sizes that a CPU can train.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        self.sizes = {name: parameter.numel() for name, parameter in student.named_parameters()}
        self.student = student.to(device)
        self.reducer: Reducer = ProcessGroupReducer()
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._stage = training.zero_stage
        self._config = zero_config(training, plan, device.type == "cuda")
        if self._stage == 3:
            _announce_parameters(self.student)
        self._engine, *_ = deepspeed.initialize(
            model=self.student, optimizer=new_optimizer(self.student, training), config=self._config
        )
        if training.precision == "fp16":
            self._engine.optimizer.torch_autocast_gradscaler = None  # the training step scales the loss itself
        self._shards = shards_of(self._engine, self.student, self._stage, training.offload_optimizer)

    def teacher(self, network: Network) -> Teacher:
        """Whole on every worker, but for stage 3."""
        return ShardedTeacher(network, self._config, self.rank) if self._stage == 3 else WholeTeacher(network)

    def losses(self, slot: SlotBatch, targets: SlotTargets) -> dict[str, Tensor]:
        """The student's losses on a slot."""
        losses: dict[str, Tensor] = self._engine(slot, targets)
        return losses

    def backward(self, loss: Tensor, is_last_round: bool) -> None:
        """Accumulate; stages 2 and 3 reduce at every call, 0 and 1 at the last one."""
        self._engine.set_gradient_accumulation_boundary(is_last_round)
        self._engine.backward(loss)

    def gradient_norms(self) -> dict[str, float]:
        """Norm of the averaged gradient per sub-module."""
        names = self.student.sub_modules
        squares = torch.zeros(len(names), dtype=torch.float64, device=self._engine.device)
        for rule, gradients in self._shards.gradients():
            for gradient in gradients:
                squares[names.index(rule.sub_module)] += gradient.double().square().sum()
        total = squares if self._shards.are_whole else self.reducer.sum(squares)
        return dict(zip(names, total.sqrt().tolist(), strict=True))

    def step(self, values: StepValues, factors: dict[str, float]) -> None:
        """Scale each sub-module's gradient, update, gather the new parameters."""
        for rule, gradients in self._shards.gradients():
            if gradients and (factor := factors[rule.sub_module]) != 1:
                torch._foreach_mul_(gradients, factor)
        apply_schedule(self._shards.groups, values)
        self._engine.step()

    def discard(self) -> None:
        """Clear gradients without an update."""
        self._shards.discard()

    def gather(self, names: list[str]) -> list[str]:
        """The names of all workers."""
        return [name for each in all_do(lambda: names) for name in each]

    @property
    def optimizer_steps(self) -> int:
        """Steps that Adam has taken."""
        return self._shards.optimizer_steps

    def whole_state(self) -> WholeState:
        """See ``Engine.whole_state``."""
        return self._shards.whole_state()

    def state_slices(self) -> Iterator[StateSlice]:
        """See ``Engine.state_slices``: views."""
        return self._shards.state_slices()

    def prepare_restore(self, optimizer_steps: int) -> None:
        """See ``Engine.prepare_restore``."""
        self._shards.prepare_restore(optimizer_steps)

    def finish_restore(self) -> None:
        """See ``Engine.finish_restore``."""
        self._shards.finish_restore()

    def close(self) -> None:
        """Release DeepSpeed's hooks and buffers."""
        with suppress(AttributeError):
            self._engine.destroy()


def _announce_parameters(student: Network) -> None:
    """Tell stage 3 of parameters that are used outside of the forward pass of their own module."""
    import deepspeed

    # It finds no tensors in what the backbone returns, and so would not gather these again for the backward pass.
    users: list[tuple[nn.Module, nn.Module]] = [(student, head.last_layer) for head in student.heads]
    for block in student.backbone.modules():
        if not isinstance(block, Block):
            continue
        users += [(block.ls1, block.attn.proj), (block.ls2, block.mlp.last)]
    parameters = [(user, parameter) for user, used in users for parameter in used.parameters()]
    parameters += [(student, parameter) for parameter in student.backbone.parameters(recurse=False)]
    for user, parameter in parameters:
        deepspeed.zero.register_external_parameter(user, parameter)
