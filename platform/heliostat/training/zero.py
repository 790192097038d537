"""DeepSpeed ZeRO as an engine of the training step. The only file that touches DeepSpeed and its internals.

What 0.19.8 lacks or does otherwise, and is done here (``tests/platform/training/test_zero.py`` fails when it changes):
- clipping by one global norm: ours is per sub-module, on the reduced gradient shards (``averaged_gradients``);
- a step that must be left out: it skips one by itself when a gradient is not finite, which is used for any reason;
- optimizer state is linked to parameters after the first group's step only, so all groups are linked anew before it is
  read;
- Adam's state is created lazily, so a restored state has to be created first.
"""

import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from heliostat.checkpoint.format import StateSlice
from heliostat.config.pretrain import TrainingConfig
from heliostat.data.slots import SlotPlan
from heliostat.objectives.engine import apply_schedule, clip_factor, new_optimizer
from heliostat.objectives.groups import GroupRule
from heliostat.objectives.networks import Network, SlotBatch, SlotTargets
from heliostat.objectives.schedules import StepValues
from heliostat.objectives.sinkhorn import Reducer
from heliostat.training.collective import ProcessGroupReducer, all_do

MOMENTS = ("exp_avg", "exp_avg_sq")
MASTER = "master"


def zero_config(training: TrainingConfig, plan: SlotPlan, on_gpu: bool) -> dict[str, Any]:
    """DeepSpeed's configuration: a round is a micro-step; its own clipping is off."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": plan.rounds,
        "zero_optimization": {"stage": training.zero_stage, "overlap_comm": on_gpu, "contiguous_gradients": True},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 0.0,
        # No module's gradients are rounded to bf16 before they are summed over workers: that would depend on how many
        # there are.
        "torch_autocast": {
            "enabled": training.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": 2**31,
    }


class ZeroEngine:
    """The student under ZeRO stage 1 or 2, in an initialised process group."""

    def __init__(self, student: Network, training: TrainingConfig, plan: SlotPlan, device: torch.device) -> None:
        import deepspeed

        # The shared-memory collectives would be compiled at first use, by a compiler that may not be there; gloo is as
        # fast at the sizes that a CPU can train.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        self.student = student.to(device)
        self.reducer: Reducer = ProcessGroupReducer()
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._training = training
        self._engine, *_ = deepspeed.initialize(
            model=self.student,
            optimizer=new_optimizer(self.student, training),
            config=zero_config(training, plan, device.type == "cuda"),
        )
        self._zero = self._engine.optimizer
        self._names = {id(parameter): name for name, parameter in self.student.named_parameters()}

    def losses(self, slot: SlotBatch, targets: SlotTargets) -> dict[str, Tensor]:
        """The student's losses on a slot."""
        losses: dict[str, Tensor] = self._engine(slot, targets)
        return losses

    def backward(self, loss: Tensor, is_last_round: bool) -> None:
        """Accumulate; ZeRO-2 reduces at every call, ZeRO-1 at the last one."""
        self._engine.set_gradient_accumulation_boundary(is_last_round)
        self._engine.backward(loss)

    def gradient_norms(self) -> dict[str, float]:
        """Norm of the averaged gradient per sub-module."""
        names = self.student.sub_modules
        squares = torch.zeros(len(names), dtype=torch.float64, device=self._engine.device)
        for rule, gradients in self._gradient_shards():
            for gradient in gradients:
                squares[names.index(rule.sub_module)] += gradient.double().square().sum()
        return dict(zip(names, self.reducer.sum(squares).sqrt().tolist(), strict=True))

    def step(self, values: StepValues, norms: dict[str, float]) -> None:
        """Clip per sub-module, update, gather the new parameters."""
        for rule, gradients in self._gradient_shards():
            factor = clip_factor(norms[rule.sub_module], self._training.clip_norm)
            if factor < 1:
                torch._foreach_mul_(gradients, factor)
        apply_schedule(self._zero.optimizer.param_groups, values)
        self._engine.step()

    def discard(self) -> None:
        """Clear gradients without an update: DeepSpeed does it, on all workers, when one gradient is not finite."""
        for _, gradients in self._gradient_shards():
            for gradient in gradients:
                gradient.fill_(torch.nan)
        self._engine.step()

    def gather(self, names: list[str]) -> list[str]:
        """The names of all workers."""
        return [name for each in all_do(lambda: names) for name in each]

    def _gradient_shards(self) -> Iterator[tuple[GroupRule, list[Tensor]]]:
        """This worker's shard of the averaged gradients, per optimizer group."""
        for index, group in enumerate(self._zero.optimizer.param_groups):
            yield group["rule"], [g for g in self._zero.averaged_gradients[index] or [] if g is not None]

    # --- state for checkpoints: what this worker owns of the fp32 master parameters and of Adam's moments ---

    @property
    def optimizer_steps(self) -> int:
        """Steps that Adam has taken."""
        states = self._zero.optimizer.state.values()
        return max((int(state["step"]) for state in states if "step" in state), default=0)

    def state_slices(self) -> Iterator[StateSlice]:
        """Views of this worker's share of the state: together the workers' shares hold every element exactly once."""
        self._link_optimizer_state()
        for parameter in self.student.parameters():
            fragment = parameter._hp_mapping  # type: ignore[attr-defined]
            if fragment is None:
                continue
            name, offset = self._names[id(parameter)], fragment.lp_fragment_address.start
            yield StateSlice(MASTER, name, offset, fragment.hp_fragment.detach().view(-1))
            for moment in MOMENTS:
                yield StateSlice(moment, name, offset, fragment.get_optim_state_fragment(moment).detach().view(-1))

    def prepare_restore(self, optimizer_steps: int) -> None:
        """Create Adam's state, so that ``state_slices`` can be overwritten."""
        for shard in self._zero.single_partition_of_fp32_groups:
            # One step tensor each: a shared one would be advanced once per group.
            self._zero.optimizer.state[shard] = {
                "step": torch.tensor(float(optimizer_steps), device=shard.device),
                **{moment: torch.zeros_like(shard).detach() for moment in MOMENTS},
            }

    def finish_restore(self) -> None:
        """Make the model's parameters those of the restored master shards, on all workers."""
        self._zero.update_lp_params()

    def _link_optimizer_state(self) -> None:
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()

    def close(self) -> None:
        """Release DeepSpeed's hooks and buffers."""
        with suppress(AttributeError):
            self._engine.destroy()
