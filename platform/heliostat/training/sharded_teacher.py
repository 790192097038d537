"""The EMA teacher under ZeRO stage 3: cut into the same shards as the student, which move without communication.

Parameters are gathered module by module for the forward pass, as the student's, by DeepSpeed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from heliostat.checkpoint.format import StateSlice
from heliostat.models.weights.runs import TEACHER
from heliostat.objectives.networks import Network, SlotBatch
from heliostat.objectives.teacher_view import TeacherView, view_of


class _View(nn.Module):
    """Calls ``Network.view`` as a module: only so does DeepSpeed learn the order in which parameters are needed."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, slot: SlotBatch) -> tuple[Tensor, ...]:
        return self.network.view(slot).tensors  # DeepSpeed looks for tensors in tuples


class ShardedTeacher:
    """Each worker holds its shard of every parameter, in fp32.

    Args:
        network: The teacher's, whole on every worker; it is cut here.
        config: DeepSpeed's, as the student's.
        rank: This worker.
    """

    def __init__(self, network: Network, config: Mapping[str, Any], rank: int) -> None:
        import deepspeed

        self.network = network
        self._rank = rank
        # A parameter that is kept whole would have to be gathered after every move.
        stage = {**config["zero_optimization"], "stage3_param_persistence_threshold": 0}
        stage.pop("offload_optimizer", None)
        self._engine, *_ = deepspeed.initialize(model=_View(network), config={**config, "zero_optimization": stage})

    def views(self, slots: Sequence[SlotBatch], rounds: int) -> list[TeacherView]:
        """The teacher's work on a worker's slots; who has fewer repeats one, since all gather parameters together."""
        repeated = [slots[0]] * (rounds - len(slots))
        views = [self._engine.module(slot) for slot in [*slots, *repeated]]
        return [view_of(self.network.shown, tensors) for tensors in views[: len(slots)]]

    def last_layers(self) -> AbstractContextManager[None]:
        """Gathers them."""
        return _gathered(nn.ModuleList([head.last_layer for head in self.network.heads]))

    def backbone_whole(self) -> AbstractContextManager[None]:
        """Gathers it."""
        return _gathered(self.network.backbone)

    @torch.no_grad()
    def follow(self, student: Network, momentum: float) -> None:
        """Move this worker's shards towards the student's, which are cut alike."""
        mine = [parameter.ds_tensor.data for parameter in self.network.parameters()]  # type: ignore[attr-defined]
        theirs = [parameter.ds_tensor.data for parameter in student.parameters()]  # type: ignore[attr-defined]
        torch._foreach_lerp_(mine, theirs, 1 - momentum)

    def whole_state(self) -> Mapping[str, Mapping[str, Tensor]]:
        """None."""
        return {}

    def state_slices(self) -> Iterator[StateSlice]:
        """This worker's shards without their padding."""
        for name, parameter in self.network.named_parameters():
            shard = parameter.ds_tensor.data.view(-1)  # type: ignore[attr-defined]
            offset = self._rank * len(shard)
            owned = min(len(shard), parameter.ds_numel - offset)  # type: ignore[attr-defined]
            if owned > 0:
                yield StateSlice(TEACHER, name, offset, shard[:owned])


def _gathered(module: nn.Module) -> AbstractContextManager[None]:
    import deepspeed

    context: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(list(module.parameters()))
    return context
