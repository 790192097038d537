"""One optimizer step: the same mathematics for any number of workers.

First the teacher sees all slots, because centring is defined over the global batch; then the student goes through its
slots one by one. Everything that depends on "the batch" is per slot or per global batch; the number of workers appears
only in who computes which slot (``data/slots.py``).

What is kept of the teacher's targets is a bottleneck vector per token and an offset per prototype; distributions are
made from them where they are compared (``cross_entropy.py``).
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.slots import SlotPlan
from heliostat.models.backbones import Backbone, new_backbone
from heliostat.objectives.engine import Engine, autocast
from heliostat.objectives.gram import gram_teacher_refreshes
from heliostat.objectives.learner import Learner
from heliostat.objectives.networks import Network, SlotBatch, SlotTargets, gram_anchor
from heliostat.objectives.schedules import StepValues, values_at
from heliostat.objectives.step_state import Phase, StepResult, StepState
from heliostat.objectives.targets import TeacherTargets

GRAM_TEACHER = "gram_teacher"
"""Kind of the Gram teacher's parameters in a checkpoint; every worker holds them whole."""


def copied_backbone(backbone: Backbone) -> Backbone:
    """A copy that learns nothing, on the same device."""
    copied = new_backbone(backbone.config, backbone.grid)
    copied.load_state_dict(backbone.state_dict())
    return copied.to(next(backbone.parameters()).device).requires_grad_(False).eval()


class TrainingStep(StepState):
    """Student and teacher of a run, advanced one step at a time.

    Args:
        recipe: the run.
        engine: holds the student.
        teacher: the teacher's network, which this object owns from now on.
        phase: called with the name of each part of a step, to measure it.
    """

    def __init__(
        self, recipe: PretrainRecipe, engine: Engine, teacher: Network, phase: Phase = lambda _: nullcontext()
    ) -> None:
        self._recipe = recipe
        self._phase = phase
        self.gram_teacher = copied_backbone(teacher.backbone) if recipe.objective.anchoring is not None else None
        plan = SlotPlan(recipe.training.slots, engine.world_size)
        self.learner = Learner(recipe.training, engine, teacher, plan)
        targets = TeacherTargets(recipe.objective, recipe.training, self.learner.average, plan.rounds, engine.reducer)
        super().__init__([self.learner], targets, plan)

    @property
    def student(self) -> Network:
        """The student's network."""
        return self.learner.engine.student

    @property
    def teacher(self) -> Network:
        """The teacher's network."""
        return self.learner.average.network

    def replicated_state(self) -> dict[str, Mapping[str, Tensor]]:
        """State that every worker holds whole, by kind and name; checkpoints read and overwrite these tensors."""
        state = super().replicated_state()
        if self.gram_teacher is not None:
            state[GRAM_TEACHER] = {name: parameter.data for name, parameter in self.gram_teacher.named_parameters()}
        return state

    def run(self, step: int, slots: Sequence[SlotBatch], values: StepValues | None = None) -> StepResult:
        """Advance student and teacher by one step.

        A step whose loss or gradient is not finite is left out: no parameter, moment, centre or EMA teacher changes.

        Args:
            step: index of the step, from 0.
            slots: this worker's slots in the order of ``SlotPlan.slots_of(rank)``.
            values: learning rate and so on; None takes the recipe's schedules.

        Raises:
            ValueError: another number of slots than this worker has in a step, or a slot that does not fit together.
            NonFiniteLossError: one step more in a row than ``training.nonfinite_steps`` was not finite; on every worker
                alike, naming the samples.
        """
        self.check(slots, self._recipe.training.slot_batch, self._recipe.model.patch_px)
        values = values or values_at(step, self._recipe.training, self._recipe.objective)
        with self._phase("teacher_s"):
            self._refresh_gram_teacher(step)
            views = self.targets.views(slots)
            targets = self.targets.of(views, values.teacher_temperature)
        patch_px = self._recipe.model.patch_px
        with self._phase("student_s"):
            made = self.learner.gradients(
                slots, lambda index: self._with_gram(step, slots[index], targets[index][patch_px])
            )
        if made.fault is not None:
            fault = f"step {step} is not finite ({made.fault})"
            skipped = self.learner.leave_out(fault, [sample for index in made.broken for sample in slots[index].ids])
            return StepResult(made.terms, made.norms, values, skipped)
        with self._phase("optimizer_s"):
            self.learner.update(values, made.norms)
        with self._phase("ema_s"):
            self.targets.move_centres(views)
            self.learner.follow(values.ema_momentum)
        return StepResult(made.terms, made.norms, values)

    def _refresh_gram_teacher(self, step: int) -> None:
        gram = self._recipe.objective.anchoring
        if gram is not None and self.gram_teacher is not None and gram_teacher_refreshes(step, gram):
            with self.learner.whole_average() as teacher:
                self.gram_teacher.load_state_dict(teacher.state_dict())

    @torch.no_grad()
    def _with_gram(self, step: int, slot: SlotBatch, targets: SlotTargets) -> SlotTargets:
        gram = self._recipe.objective.anchoring
        if gram is None or self.gram_teacher is None or step < gram.from_step:
            return targets
        with autocast(self._recipe.training, slot.global_crops.device):
            anchor = gram_anchor(self.gram_teacher, slot)
        return replace(targets, gram=anchor)
