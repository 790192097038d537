"""What every kind of training step has: students, the teacher's side, and their state as one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from heliostat.checkpoint.format import StateSlice, tensor_name
from heliostat.data.slots import SlotPlan
from heliostat.objectives.learner import Counters, Learner, SkippedStep
from heliostat.objectives.networks import SlotBatch
from heliostat.objectives.schedules import StepValues
from heliostat.objectives.targets import CENTRE, TeacherTargets

Phase = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step tells: means over its slots, gradient norms per sub-module before clipping, scheduled values."""

    terms: dict[str, float]
    gradient_norms: dict[str, float]
    values: StepValues
    skipped: SkippedStep | None = None
    """None if the update was made."""
    left_out: SkippedStep | None = None
    """Of several students, by those that left the step out, if others took it."""


class StepState:
    """The state that steps change, for checkpoints; and what a worker is to bring to a step.

    Args:
        learners: the students.
        targets: the teacher's side.
        plan: slots over workers.
    """

    def __init__(self, learners: Sequence[Learner], targets: TeacherTargets, plan: SlotPlan) -> None:
        self.learners = learners
        self.targets = targets
        self.plan = plan

    @property
    def rank(self) -> int:
        """This worker."""
        return self.learners[0].engine.rank

    def replicated_state(self) -> dict[str, Mapping[str, Tensor]]:
        """State that every worker holds whole, by kind and name; checkpoints read and overwrite these tensors."""
        state: dict[str, Mapping[str, Tensor]] = {}
        for learner in self.learners:
            for kind, tensors in learner.replicated_state().items():
                state[kind] = {**state.get(kind, {}), **tensors}
        return {**state, CENTRE: self.targets.centres} if self.targets.centres else state

    def state_slices(self) -> Iterator[StateSlice]:
        """This worker's share of the state that no worker holds whole: all shares together hold it exactly once."""
        for learner in self.learners:
            yield from learner.state_slices()

    def tensor_sizes(self) -> dict[str, int]:
        """Every tensor of the state (``kind|name``) and its number of elements."""
        whole = self.replicated_state()
        sizes = {
            tensor_name(kind, name): each.numel() for kind, of_kind in whole.items() for name, each in of_kind.items()
        }
        for learner in self.learners:
            sizes |= learner.tensor_sizes()
        return sizes

    def counters(self) -> Counters:
        """State that is no tensor."""
        return {name: value for learner in self.learners for name, value in learner.counters().items()}

    def prepare_restore(self, counters: Counters) -> None:
        """Make room for the state that is read then."""
        for learner in self.learners:
            learner.prepare_restore(counters)

    def finish_restore(self, counters: Counters) -> None:
        """After the tensors were overwritten; all workers call it."""
        for learner in self.learners:
            learner.finish_restore(counters)

    def check(self, slots: Sequence[SlotBatch], images: int, patch_px: int) -> None:
        """Refuse what is not a worker's part of a step.

        Args:
            slots: this worker's.
            images: of a slot.
            patch_px: side of the masks' patches.

        Raises:
            ValueError: another number of slots, or a slot that does not fit together.
        """
        expected = len(self.plan.slots_of(self.rank))
        if len(slots) != expected:
            raise ValueError(
                f"worker {self.rank} of {self.plan.world_size} has {expected} of the step's {self.plan.slots} "
                f"slots (global_batch / slot_batch), {len(slots)} were given"
            )
        for slot in slots:
            slot.check(images, patch_px)
