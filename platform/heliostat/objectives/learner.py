"""A student: its gradients of a step, its update, and what becomes of steps that are not finite."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from heliostat.checkpoint.format import StateSlice, tensor_name
from heliostat.config.training import TrainingConfig
from heliostat.data.slots import SlotPlan
from heliostat.errors import NonFiniteLossError
from heliostat.models.backbones import Backbone
from heliostat.models.weights.runs import TEACHER
from heliostat.objectives.engine import MASTER, MOMENTS, Engine, clip_factor
from heliostat.objectives.loss_scale import LossScale
from heliostat.objectives.networks import Network, SlotBatch, SlotTargets
from heliostat.objectives.schedules import StepValues
from heliostat.objectives.teacher import Teacher

OPTIMIZER_STEPS = "optimizer_steps"
SKIPS_IN_A_ROW = "skips_in_a_row"
LOSS_SCALE, LOSS_SCALE_STEPS = "loss_scale", "loss_scale_steps"
_NAMED_IDS = 20

Counters = Mapping[str, int | float | str]
"""State that is no tensor."""


@dataclass(frozen=True, slots=True)
class Gradients:
    """What a student's gradients of a step tell; they themselves lie in the engine."""

    terms: dict[str, float]
    """Means of the loss terms over all slots."""
    norms: dict[str, float]
    """Per sub-module, before clipping."""
    broken: list[int]
    """This worker's slots whose loss is not finite."""

    @property
    def fault(self) -> str | None:
        """Which of the numbers are not finite; None if all are."""
        numbers = {**self.terms, **{f"gradient norm of {name}": norm for name, norm in self.norms.items()}}
        return ", ".join(f"{name} {value}" for name, value in numbers.items() if not math.isfinite(value)) or None


@dataclass(frozen=True, slots=True)
class SkippedStep:
    """Why a step's update was left out, and the samples of the slots whose loss was not finite.

    No sample is named where all losses were finite and the gradient was not.
    """

    reason: str
    sample_ids: tuple[str, ...]


class Learner:
    """A student in its engine, and the moving average of it.

    Args:
        training: limits and precision.
        engine: holds the student.
        average: network of the moving average, which this object owns from now on.
        plan: slots over workers.
        name: of the student among several.
    """

    def __init__(
        self, training: TrainingConfig, engine: Engine, average: Network, plan: SlotPlan, name: str | None = None
    ) -> None:
        self._training = training
        self.prefix = "" if name is None else f"{name}."
        """Of the names of its parameters and numbers."""
        self._plan = plan
        self.engine = engine
        self.average: Teacher = engine.teacher(average.requires_grad_(False).eval())
        self.skips_in_a_row = 0
        self.loss_scale = LossScale.for_precision(training.precision)

    def gradients(self, slots: Sequence[SlotBatch], targets_of: Callable[[int], SlotTargets]) -> Gradients:
        """Gradients of the step, left in the engine.

        Gradients that only the loss scale has made infinite are computed again with a smaller one. If none is small
        enough, the scale was not to blame, and stays.

        Args:
            slots: this worker's.
            targets_of: the targets of one of them, by its index.
        """
        before = self.loss_scale
        while True:
            terms, broken = self._accumulate(slots, targets_of)
            norms = {name: norm / self.loss_scale.factor for name, norm in self.engine.gradient_norms().items()}
            too_large = all(map(math.isfinite, terms.values())) and not all(map(math.isfinite, norms.values()))
            if not too_large:
                return Gradients(terms, norms, broken)
            if not self.loss_scale.can_fall:
                self.loss_scale = before
                return Gradients(terms, norms, broken)
            self.engine.discard()
            self.loss_scale = self.loss_scale.lower()

    def _accumulate(
        self, slots: Sequence[SlotBatch], targets_of: Callable[[int], SlotTargets]
    ) -> tuple[dict[str, float], list[int]]:
        turns, terms = self._plan.turns_of(self.engine.rank), self.engine.student.terms
        counted: list[Tensor] = []
        for round_index, turn in enumerate(turns):
            index = round_index if turn.counts else 0
            losses = self.engine.losses(slots[index], targets_of(index))
            if turn.counts:
                counted.append(torch.stack([losses[term].detach().double() for term in terms]))
            weight = self._plan.loss_weight if turn.counts else 0.0
            self.engine.backward(
                losses["loss"] * (weight * self.loss_scale.factor), is_last_round=round_index == len(turns) - 1
            )
        by_slot = torch.stack(counted)
        means = (self.engine.reducer.sum(by_slot.sum(0)) / self._plan.slots).tolist()
        broken = (~by_slot.isfinite().all(1)).nonzero().flatten().tolist()
        # A weightless turn repeats a slot that counts on the same worker, so a non-finite value in it shows here too.
        return dict(zip(terms, means, strict=True)), broken

    def update(self, values: StepValues, norms: Mapping[str, float]) -> None:
        """Move the student by the gradients of the step."""
        limit, scale = self._training.clip_norm, self.loss_scale.factor
        self.engine.step(values, {name: clip_factor(norm, limit) / scale for name, norm in norms.items()})
        self.loss_scale = self.loss_scale.held(self._training.precision)
        self.skips_in_a_row = 0

    def follow(self, momentum: float) -> None:
        """Move the average towards the student."""
        self.average.follow(self.engine.student, momentum)

    @contextmanager
    def whole_average(self) -> Iterator[Backbone]:
        """The average's backbone, whole within the context, which all workers enter together; nobody may run it."""
        with self.average.backbone_whole():
            yield self.average.network.backbone

    def leave_out(self, fault: str, ids: list[str]) -> SkippedStep:
        """Forget the gradients of the step.

        Args:
            fault: what is not finite, and where.
            ids: samples of this worker's slots that are to blame.

        Raises:
            NonFiniteLossError: one step more in a row than ``training.nonfinite_steps``; on every worker alike.
        """
        self.engine.discard()
        named = self.engine.gather(ids)
        self.skips_in_a_row += 1
        limit = self._training.nonfinite_steps
        if self.skips_in_a_row <= limit:
            return SkippedStep(fault, tuple(named))
        more = f" and {len(named) - _NAMED_IDS} more" if len(named) > _NAMED_IDS else ""
        samples = f"; samples of the slots: {', '.join(named[:_NAMED_IDS])}{more}" if named else ""
        before = f", and neither were the {limit} steps before it, which were left out" if limit else ""
        raise NonFiniteLossError(
            f"{fault}{before}{samples}",
            "Look at these samples, or resume from the last checkpoint with a lower training.base_lr or "
            "training.precision fp32",
        )

    def replicated_state(self) -> dict[str, Mapping[str, Tensor]]:
        """State that every worker holds whole, by kind and name."""
        whole = {**self.engine.whole_state(), **self.average.whole_state()}
        return {
            kind: {self.prefix + name: tensor for name, tensor in tensors.items()} for kind, tensors in whole.items()
        }

    def state_slices(self) -> Iterator[StateSlice]:
        """This worker's share of the state that no worker holds whole."""
        for each in chain(self.engine.state_slices(), self.average.state_slices()):
            yield replace(each, parameter=self.prefix + each.parameter)

    def tensor_sizes(self) -> dict[str, int]:
        """Every tensor of the state (``kind|name``) and its number of elements."""
        kinds = (MASTER, *MOMENTS, TEACHER)
        sizes = self.engine.sizes
        return {tensor_name(kind, self.prefix + name): n for kind in kinds for name, n in sizes.items()}

    def counters(self) -> Counters:
        """State that is no tensor."""
        values = {
            OPTIMIZER_STEPS: self.engine.optimizer_steps,
            SKIPS_IN_A_ROW: self.skips_in_a_row,
            LOSS_SCALE: self.loss_scale.factor,
            LOSS_SCALE_STEPS: self.loss_scale.good_steps,
        }
        return {self.prefix + name: value for name, value in values.items()}

    def prepare_restore(self, counters: Counters) -> None:
        """Make room for the state that is read then."""
        self.engine.prepare_restore(int(counters[self.prefix + OPTIMIZER_STEPS]))

    def finish_restore(self, counters: Counters) -> None:
        """After the tensors were overwritten; all workers call it."""
        self.engine.finish_restore()
        own = {
            name.removeprefix(self.prefix): value for name, value in counters.items() if name.startswith(self.prefix)
        }
        self.skips_in_a_row = int(own.get(SKIPS_IN_A_ROW, 0))
        if LOSS_SCALE in own and self.loss_scale.can_fall:  # a run that went on in fp16
            self.loss_scale = LossScale(float(own[LOSS_SCALE]), int(own[LOSS_SCALE_STEPS]))
