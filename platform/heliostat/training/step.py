"""One optimizer step: the same mathematics for any number of workers.

First the teacher sees all slots, because Sinkhorn-Knopp is defined over the global batch; then the student goes through
its slots one by one. Everything that depends on "the batch" is per slot or per global batch; the number of workers
appears only in who computes which slot (``data/slots.py``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.slots import SlotPlan
from heliostat.errors import NonFiniteLossError
from heliostat.objectives.networks import Network, SlotBatch, SlotTargets, update_teacher
from heliostat.objectives.sinkhorn import sinkhorn_offset, targets
from heliostat.training.engine import Engine
from heliostat.training.phases import PhaseClock
from heliostat.training.schedules import StepValues, values_at

TERMS = ("loss", "dino", "ibot", "koleo")


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step tells: means over its slots, gradient norms per sub-module before clipping, scheduled values."""

    terms: dict[str, float]
    gradient_norms: dict[str, float]
    values: StepValues


class TrainingStep:
    """Student and teacher of a run, advanced one step at a time."""

    def __init__(self, recipe: PretrainRecipe, engine: Engine, teacher: Network, clock: PhaseClock) -> None:
        self._recipe = recipe
        self._engine = engine
        self._teacher = teacher.requires_grad_(False).eval()
        self._clock = clock
        self.plan = SlotPlan(recipe.training.slots, engine.world_size)

    def run(self, step: int, slots: Sequence[SlotBatch]) -> StepResult:
        """Advance student and teacher by one step.

        Args:
            step: index of the step, from 0.
            slots: this worker's slots in the order of ``SlotPlan.slots_of(rank)``.

        Raises:
            NonFiniteLossError: on every worker alike, before any parameter changed.
        """
        values = values_at(step, self._recipe.training, self._recipe.objective)
        with self._clock.phase("teacher_s"):
            slot_targets = self._targets(slots, values.teacher_temperature)
        with self._clock.phase("student_s"):
            terms = self._accumulate(step, slots, slot_targets)
        with self._clock.phase("optimizer_s"):
            norms = self._engine.step(values)
        with self._clock.phase("ema_s"):
            update_teacher(self._teacher, self._engine.student, values.ema_momentum)
        return StepResult(terms, norms, values)

    def _targets(self, slots: Sequence[SlotBatch], temperature: float) -> list[SlotTargets]:
        device = slots[0].global_crops.device.type
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=self._recipe.training.precision == "bf16"):
            views = [self._teacher.view(slot) for slot in slots]
            cls = self._distributions([view.cls for view in views], self._teacher.dino_head.last_layer, temperature)
            masked = self._distributions(
                [view.masked for view in views], self._teacher.ibot_head.last_layer, temperature
            )
        return [SlotTargets(*pair) for pair in zip(cls, masked, strict=True)]

    def _distributions(self, vectors: list[Tensor], prototypes: torch.nn.Module, temperature: float) -> list[Tensor]:
        logits = [prototypes(z_MZ) for z_MZ in vectors]
        offset_K = sinkhorn_offset(
            lambda: logits, temperature, self._recipe.objective.sinkhorn_iterations, self._engine.reducer
        )
        return [targets(logits_MK, temperature, offset_K) for logits_MK in logits]

    def _accumulate(
        self, step: int, slots: Sequence[SlotBatch], slot_targets: Sequence[SlotTargets]
    ) -> dict[str, float]:
        turns = self.plan.turns_of(self._engine.rank)
        sums = torch.zeros(len(TERMS), dtype=torch.float64, device=slots[0].global_crops.device)
        for round_index, turn in enumerate(turns):
            index = round_index if turn.counts else 0
            losses = self._engine.losses(slots[index], slot_targets[index])
            if turn.counts:
                sums += torch.stack([losses[term].detach().double() for term in TERMS])
            weight = self.plan.loss_weight if turn.counts else 0.0
            self._engine.backward(losses["loss"] * weight, is_last_round=round_index == len(turns) - 1)
        means = (self._engine.reducer.sum(sums) / self.plan.slots).tolist()
        terms = dict(zip(TERMS, means, strict=True))
        # A weightless turn repeats a slot that counts on the same worker, so a non-finite value in it shows here as
        # well.
        if not all(math.isfinite(value) for value in means):
            shown = ", ".join(f"{term} {value}" for term, value in terms.items())
            raise NonFiniteLossError(
                f"the loss of step {step} is not finite ({shown})",
                "Resume from the last checkpoint with a lower training.base_lr or training.precision fp32",
            )
        return terms
