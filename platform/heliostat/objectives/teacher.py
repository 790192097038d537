"""What a step asks of a teacher, or of a student's moving average, and the plain one, whole on every worker.

The teacher of pre-training is the moving average of its student; that of a distillation follows nobody.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from heliostat.checkpoint.format import StateSlice
from heliostat.models.weights.runs import TEACHER
from heliostat.objectives.networks import Network, SlotBatch
from heliostat.objectives.teacher_view import TeacherView


class Teacher(Protocol):
    """A network that learns from no gradient."""

    network: Network

    def views(self, slots: Sequence[SlotBatch], rounds: int) -> list[TeacherView]:
        """The teacher's work on a worker's slots; all workers call it, with the rounds of a step."""

    def last_layers(self) -> AbstractContextManager[None]:
        """Within it the parameters of the heads' last layers are whole."""

    def backbone_whole(self) -> AbstractContextManager[None]:
        """Within it the parameters of the backbone are whole."""

    def follow(self, student: Network, momentum: float) -> None:
        """Exponential moving average over all parameters, heads included: t ← m t + (1 - m) s."""

    def whole_state(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The teacher's parameters by kind and name, if every worker holds them whole."""

    def state_slices(self) -> Iterator[StateSlice]:
        """This worker's share of the teacher's parameters, if none holds them whole."""


class WholeTeacher:
    """All of it on every worker, which move it alike."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def views(self, slots: Sequence[SlotBatch], rounds: int) -> list[TeacherView]:
        """The teacher's work on a worker's slots."""
        return [self.network.view(slot) for slot in slots]

    def last_layers(self) -> AbstractContextManager[None]:
        """They are whole."""
        return nullcontext()

    def backbone_whole(self) -> AbstractContextManager[None]:
        """It is whole."""
        return nullcontext()

    def follow(self, student: Network, momentum: float) -> None:
        """Move every parameter."""
        update_teacher(self.network, student, momentum)

    def whole_state(self) -> Mapping[str, Mapping[str, Tensor]]:
        """All parameters."""
        return {TEACHER: {name: parameter.data for name, parameter in self.network.named_parameters()}}

    def state_slices(self) -> Iterator[StateSlice]:
        """None."""
        yield from ()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Exponential moving average over all parameters, heads included: t ← m t + (1 - m) s."""
    mine: list[Tensor] = list(teacher.parameters())
    theirs: list[Tensor] = [parameter.to(own.dtype) for own, parameter in zip(mine, student.parameters(), strict=True)]
    torch._foreach_lerp_(mine, theirs, 1 - momentum)
