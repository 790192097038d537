"""Where DeepSpeed 0.19.8 keeps gradients and optimizer state, stage by stage.

With ``zero.py`` and ``sharded_teacher.py`` the only files that know its internals;
``tests/platform/training/test_zero.py`` fails when they change.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from heliostat.checkpoint.format import StateSlice
from heliostat.objectives.engine import MASTER, MOMENTS, WholeState, WholeStudent, adam_steps, new_adam_state
from heliostat.objectives.groups import GroupRule
from heliostat.objectives.networks import Network


class Shards(Protocol):
    """This worker's part of the averaged gradients and of the student's state."""

    def gradients(self) -> Iterator[tuple[GroupRule, list[Tensor]]]:
        """Averaged gradients per optimizer group, after the last round of a step; what is done to them counts."""

    @property
    def are_whole(self) -> bool:
        """Whether every worker has all gradients."""

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's."""

    def discard(self) -> None:
        """Clear the step's gradients without an update."""

    @property
    def optimizer_steps(self) -> int:
        """Steps that Adam has taken."""

    def whole_state(self) -> WholeState:
        """See ``Engine.whole_state``."""

    def state_slices(self) -> Iterator[StateSlice]:
        """See ``Engine.state_slices``."""

    def prepare_restore(self, optimizer_steps: int) -> None:
        """See ``Engine.prepare_restore``."""

    def finish_restore(self) -> None:
        """See ``Engine.finish_restore``."""


def shards_of(engine: Any, student: Network, stage: int, offload: bool) -> Shards:
    """Of an initialised engine."""
    if stage == 0:
        return ReplicatedState(engine, student)
    return ShardedParameters(engine, student, offload) if stage == 3 else ShardedState(engine, student, offload)


class ReplicatedState(WholeStudent):
    """Stage 0: every worker holds everything."""

    are_whole = True

    def __init__(self, engine: Any, student: Network) -> None:
        super().__init__(student, engine.optimizer)
        self._engine = engine

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's."""
        return self._optimizer.param_groups

    def gradients(self) -> Iterator[tuple[GroupRule, list[Tensor]]]:
        """Of all parameters."""
        for group in self.groups:
            yield group["rule"], [each.grad for each in group["params"] if each.grad is not None]

    def discard(self) -> None:
        """Forget them."""
        self._engine.zero_grad()


class _Flat(ABC):
    """Stages with flat fp32 shards, one or more per optimizer group."""

    are_whole = False

    def __init__(self, engine: Any, student: Network, offload: bool) -> None:
        self._engine = engine
        self._student = student
        self._zero = engine.optimizer
        self._is_offloaded = offload

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's."""
        groups: list[dict[str, Any]] = self._zero.optimizer.param_groups
        return groups

    def discard(self) -> None:
        """DeepSpeed leaves a step out by itself, on all workers, when the norm that it computes is not finite."""
        if self._is_offloaded:
            norms = self._zero.norm_for_param_grads  # found when gradients were copied to the host
            for parameter in norms:
                norms[parameter] = torch.full_like(norms[parameter], torch.nan)
        left_out = [gradient for _, gradients in self.gradients() for gradient in gradients]
        for gradient in left_out:
            gradient.fill_(torch.nan)
        self._engine.step()
        for gradient in left_out:  # it writes the next gradients over these, but for the padding
            gradient.zero_()

    def gradients(self) -> Iterator[tuple[GroupRule, list[Tensor]]]:
        """Of this worker's shard of the parameters."""
        for index, (rule, shard) in enumerate(self._flat_shards()):
            flat = [shard.grad] if self._is_offloaded else self._zero.averaged_gradients.get(index) or []
            yield rule, [gradient for gradient in flat if gradient is not None]

    @property
    def optimizer_steps(self) -> int:
        """Steps that Adam has taken."""
        return adam_steps(self._zero.optimizer)

    def whole_state(self) -> WholeState:
        """None."""
        return {}

    def prepare_restore(self, optimizer_steps: int) -> None:
        """Create Adam's state."""
        for _, shard in self._flat_shards():
            self._zero.optimizer.state[shard] = new_adam_state(shard, optimizer_steps)

    @abstractmethod
    def _flat_shards(self) -> Iterator[tuple[GroupRule, Tensor]]:
        """The shards in the order of DeepSpeed's gradients."""

    def _ensure_moments(self) -> None:
        """Before the first update there are none, and they count as zero."""
        if not self._zero.optimizer.state:
            self.prepare_restore(0)


class ShardedState(_Flat):
    """Stages 1 and 2: fp32 parameters, moments and averaged gradients are shared out, group by group."""

    def state_slices(self) -> Iterator[StateSlice]:
        """Views of the fragments of parameters that lie in this worker's flat shards."""
        self._ensure_moments()
        # DeepSpeed links the optimizer's state to parameters after the first group's step only.
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()
        for name, parameter in self._student.named_parameters():
            fragment = parameter._hp_mapping  # type: ignore[attr-defined]
            if fragment is None:
                continue
            offset = fragment.lp_fragment_address.start
            yield StateSlice(MASTER, name, offset, fragment.hp_fragment.detach().view(-1))
            for moment in MOMENTS:
                yield StateSlice(moment, name, offset, fragment.get_optim_state_fragment(moment).detach().view(-1))

    def finish_restore(self) -> None:
        """Gather the parameters from the master shards."""
        self._zero.update_lp_params()

    def _flat_shards(self) -> Iterator[tuple[GroupRule, Tensor]]:
        for group, shard in zip(self.groups, self._zero.single_partition_of_fp32_groups, strict=True):
            yield group["rule"], shard


class ShardedParameters(_Flat):
    """Stage 3: every parameter is cut into equal, padded shards, one per worker."""

    def state_slices(self) -> Iterator[StateSlice]:
        """Views of the shards of parameters, without their padding."""
        self._ensure_moments()
        rank = self._engine.global_rank
        flat = [shard for _, shard in self._flat_shards()]
        for name, parameter in self._student.named_parameters():
            group, start, length = self._zero.grad_position[self._zero.get_param_id(parameter)]
            offset = rank * length
            owned = min(length, parameter.ds_numel - offset)  # type: ignore[attr-defined]
            if owned <= 0:
                continue
            yield StateSlice(MASTER, name, offset, flat[group].detach()[start : start + owned])
            state = self._zero.optimizer.state[flat[group]]
            for moment in MOMENTS:
                yield StateSlice(moment, name, offset, state[moment].detach()[start : start + owned])

    def finish_restore(self) -> None:
        """Copy the master shards to those that are gathered in forward passes."""
        for index in range(len(self._zero.fp32_partitioned_groups_flat)):
            self._zero._reassign_or_swap_out_partitioned_parameters(index)
        if persistent := self._zero.persistent_parameters:
            persistent[0].all_gather(persistent)

    def _flat_shards(self) -> Iterator[tuple[GroupRule, Tensor]]:
        for index, shard in enumerate(self._zero.fp32_partitioned_groups_flat):
            yield self.groups[self._zero.sub_group_to_group_id[index]]["rule"], shard
