"""One step of distillation: students of any size learn from one pass of a trained, frozen teacher.

As in pre-training (``step.py``) with these differences (DINOv2, arXiv 2304.07193, section 5, and its authors' answers
in issues 96 and 176 of their repository): the teacher does not follow anybody; students see whole crops, and all of
their patches are compared; what is delivered is a moving average of each student, which takes no part in training.
Besides prototypes, or instead of them, students may learn the teacher's own tokens (``features.py``) and labels
(``labels.py``).

The teacher's work on a slot is done once, whatever the number of students; each of them then takes its turn, with a
gradient, an optimizer and a state of its own, as if it were alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext

from heliostat.config.distill import DistillRecipe
from heliostat.data.slots import SlotPlan
from heliostat.objectives.engine import Engine
from heliostat.objectives.learner import Gradients, Learner, SkippedStep
from heliostat.objectives.networks import Network, SlotBatch, SlotTargets
from heliostat.objectives.schedules import StepValues, values_at
from heliostat.objectives.step_state import Phase, StepResult, StepState
from heliostat.objectives.targets import TeacherTargets
from heliostat.objectives.teacher import WholeTeacher
from heliostat.objectives.teacher_view import Shown


class DistillationStep(StepState):
    """The students of a run, advanced one step at a time.

    Args:
        recipe: the run.
        students: in the recipe's order the engine of each, and the network of its moving average, which this object
            owns from now on. Made one after the other: stage 3 cuts each network before the next is there.
        teacher: the trained network, with its heads; likewise.
        phase: called with the name of each part of a step, to measure it.
    """

    def __init__(
        self,
        recipe: DistillRecipe,
        students: Iterable[tuple[Engine, Network]],
        teacher: Network,
        phase: Phase = lambda _: nullcontext(),
    ) -> None:
        self._recipe = recipe
        self._phase = phase
        self._recipes = [recipe.of_student(student) for student in recipe.students]
        self._names = [student.name for student in recipe.students]
        learners = [
            Learner(of_student.training, engine, average, SlotPlan(recipe.training.slots, engine.world_size), name)
            for of_student, name, (engine, average) in zip(self._recipes, self._names, students, strict=True)
        ]
        engine = learners[0].engine
        plan = SlotPlan(recipe.training.slots, engine.world_size)
        teacher.shown = shown_to(recipe)
        device = next(learners[0].average.network.parameters()).device
        teacher = teacher.requires_grad_(False).eval().to(device)
        has_parameters = next(teacher.parameters(), None) is not None  # not where views are kept and there are no heads
        frozen = engine.teacher(teacher) if has_parameters else WholeTeacher(teacher)
        targets = TeacherTargets(recipe.objective, recipe.training, frozen, plan.rounds, engine.reducer)
        super().__init__(learners, targets, plan)

    def run(self, step: int, slots: Sequence[SlotBatch]) -> StepResult:
        """Advance every student by one step.

        A student whose loss or gradient is not finite leaves the step out, the others take it; terms and norms are
        those of the others then.

        Args:
            step: index of the step, from 0.
            slots: this worker's slots in the order of ``SlotPlan.slots_of(rank)``, without masks.

        Returns:
            The terms of each student as STUDENT.TERM, and their means over the students as TERM; the scheduled values
            of the first one.

        Raises:
            ValueError: another number of slots than this worker has in a step, or a slot that does not fit together.
            NonFiniteLossError: one step more in a row than ``training.nonfinite_steps`` was not finite for a student;
                on every worker alike, naming the samples.
        """
        self.check(slots, self._recipe.training.slot_batch, self._recipe.students[0].model.patch_px)
        scheduled = [values_at(step, each.training, each.objective) for each in self._recipes]
        with self._phase("teacher_s"):
            views = self.targets.views(slots)
            targets = self.targets.of(views, scheduled[0].teacher_temperature)
        made: dict[str, Gradients] = {}
        skipped: list[SkippedStep] = []
        for learner, name, of_student, values in zip(self.learners, self._names, self._recipes, scheduled, strict=True):
            patch_px = of_student.model.patch_px
            made[name], fault = self._advance(learner, slots, [each[patch_px] for each in targets], values)
            if fault is not None:
                ids = [sample for index in made[name].broken for sample in slots[index].ids]
                skipped.append(learner.leave_out(f"step {step} of student {name} is not finite ({fault})", ids))
        together = _together(skipped)
        if len(skipped) == len(self.learners):
            return StepResult(_terms(made), _norms(made), scheduled[0], together)
        with self._phase("ema_s"):
            self.targets.move_centres(views)
        took = {name: each for name, each in made.items() if each.fault is None}
        return StepResult(_terms(took), _norms(took), scheduled[0], left_out=together)

    def _advance(
        self, learner: Learner, slots: Sequence[SlotBatch], targets: Sequence[SlotTargets], values: StepValues
    ) -> tuple[Gradients, str | None]:
        with self._phase("student_s"):
            made = learner.gradients(slots, targets.__getitem__)
        if made.fault is None:
            with self._phase("optimizer_s"):
                learner.update(values, made.norms)
            with self._phase("ema_s"):
                learner.follow(values.ema_momentum)
        return made, made.fault


def shown_to(recipe: DistillRecipe) -> Shown:
    """What the students of a run need of their teacher."""
    objective = recipe.objective
    return Shown(
        recipe.patch_sizes,
        bottlenecks=objective.has_heads,
        cls_tokens=objective.compares_tokens,
        patch_tokens=objective.features.weight > 0,
    )


def _terms(made: Mapping[str, Gradients]) -> dict[str, float]:
    names = next(iter(made.values())).terms
    means = {term: sum(each.terms[term] for each in made.values()) / len(made) for term in names}
    return means | {f"{name}.{term}": value for name, each in made.items() for term, value in each.terms.items()}


def _norms(made: Mapping[str, Gradients]) -> dict[str, float]:
    return {f"{name}.{module}": norm for name, each in made.items() for module, norm in each.norms.items()}


def _together(skipped: Sequence[SkippedStep]) -> SkippedStep | None:
    if not skipped:
        return None
    samples = dict.fromkeys(sample for each in skipped for sample in each.sample_ids)
    return SkippedStep("; ".join(each.reason for each in skipped), tuple(samples))
