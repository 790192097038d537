"""The networks of a run at its first step, and the step that trains them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from heliostat.checkpoint.format import CheckpointManifest
from heliostat.checkpoint.reader import CheckpointReader
from heliostat.config.distill import DistillRecipe
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.training import TrainingConfig, TrainingRecipe
from heliostat.models.weights.runs import TEACHER
from heliostat.objectives.distillation import DistillationStep
from heliostat.objectives.engine import Engine
from heliostat.objectives.networks import Network
from heliostat.objectives.step import TrainingStep
from heliostat.objectives.step_state import Phase
from heliostat.storage import Store

NewEngine = Callable[[Network, PretrainRecipe], Engine]
"""From a student and the recipe by which it is trained."""


@dataclass(frozen=True, slots=True)
class FrozenTeacher:
    """The trained network of a distillation, as it was pinned when the run was created."""

    recipe: PretrainRecipe
    """Of the run that trained it."""
    manifest: CheckpointManifest

    def load(self, run: Store, training: TrainingConfig) -> Network:
        """The teacher's backbone and heads, in fp32; every byte is verified.

        Args:
            run: The store of the run that trained it.
            training: Of the distillation: how it is computed here.

        Raises:
            IncompatibleCheckpointError: the checkpoint is of another model than the recipe's.
            CorruptCheckpointError: bytes are not those that were committed.
        """
        network = Network(self.recipe.model_copy(update={"training": training}))
        reader = CheckpointReader(run, self.manifest)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(reader.read_full(TEACHER, name).view_as(parameter))
        return network


def new_training(
    recipe: TrainingRecipe, new_engine: NewEngine, teacher: Network | None, device: torch.device, phase: Phase
) -> TrainingStep | DistillationStep:
    """The step of a run with the initial weights, which are a function of its seed alone.

    Args:
        recipe: Of the run.
        new_engine: Takes a student.
        teacher: The trained network of a distillation.
        device: Of this worker.
        phase: Measures the parts of a step.
    """
    if isinstance(recipe, PretrainRecipe):
        student, average = _drawn(recipe)
        return TrainingStep(recipe, new_engine(student, recipe), average.to(device), phase)
    assert isinstance(recipe, DistillRecipe)  # noqa: S101 -- the only other kind that trains
    assert teacher is not None  # noqa: S101
    students = (_begun(recipe.of_student(student), new_engine, device) for student in recipe.students)
    return DistillationStep(recipe, students, teacher, phase)


def _begun(recipe: PretrainRecipe, new_engine: NewEngine, device: torch.device) -> tuple[Engine, Network]:
    student, average = _drawn(recipe)
    return new_engine(student, recipe), average.to(device)


def _drawn(recipe: PretrainRecipe) -> tuple[Network, Network]:
    student, average = Network(recipe), Network(recipe)
    student.init_weights(recipe.seed)
    average.load_state_dict(student.state_dict())
    return student, average
