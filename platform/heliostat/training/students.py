"""The networks of a run at its first step, and the step that trains them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from heliostat.checkpoint.format import CheckpointManifest
from heliostat.checkpoint.log import LogEntry, live_checkpoints
from heliostat.checkpoint.reader import CheckpointReader
from heliostat.config.adapt import AdaptRecipe
from heliostat.config.distill import DistillRecipe, prefix_of, recipe_of_network
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.training import TrainingRecipe
from heliostat.models.positions import at_grid
from heliostat.models.weights.runs import TEACHER
from heliostat.models.weights.stored import load_weights
from heliostat.objectives.distillation import DistillationStep
from heliostat.objectives.engine import MASTER, Engine
from heliostat.objectives.networks import Network
from heliostat.objectives.step import TrainingStep
from heliostat.objectives.step_state import Phase
from heliostat.storage import Store
from heliostat.storage.layout import run_store

NewEngine = Callable[[Network, PretrainRecipe], Engine]
"""From a student and the recipe by which it is trained."""


@dataclass(frozen=True, slots=True)
class TrainedNetworks:
    """What a run starts from, as it was pinned when the run was created."""

    recipe: TrainingRecipe
    """Of the run that trained them."""
    manifest: CheckpointManifest

    def load(self, root: Store, recipe: TrainingRecipe) -> tuple[Network, ...]:
        """Networks with their heads, in fp32; every byte is verified.

        Args:
            root: That holds the run that trained them.
            recipe: Of the run that starts from them.

        Returns:
            For a distillation its teacher; for an adaptation its student and its teacher, their position embeddings
            resized to the grid of its crops. Centres of softmax centring begin anew: they follow within some ten steps.

        Raises:
            IncompatibleCheckpointError: the checkpoint is of another model than the recipe's.
            CorruptCheckpointError: bytes are not those that were committed.
        """
        reader = CheckpointReader(run_store(root, self.recipe.name), self.manifest)
        if isinstance(recipe, AdaptRecipe):
            network = recipe_of_network(self.recipe, recipe.init_from.student)
            prefix = prefix_of(self.recipe, network)
            return tuple(_adapted(_read(reader, kind, prefix, network), recipe) for kind in (MASTER, TEACHER))
        assert isinstance(self.recipe, PretrainRecipe)  # noqa: S101 -- who learns from it has seen to it
        return (_read(reader, TEACHER, "", self.recipe.model_copy(update={"training": recipe.training})),)


@dataclass(frozen=True, slots=True)
class TrainedBackbone:
    """A backbone without heads that a run starts from, as it was kept when the run was created."""

    key: str
    """Of its weights (``models/weights/stored.py``)."""

    def load(self, root: Store, recipe: TrainingRecipe) -> tuple[Network, ...]:
        """Student and teacher of an adaptation, alike, with drawn heads; else as ``TrainedNetworks.load``."""
        weights = load_weights(root, self.key)
        assert isinstance(recipe, PretrainRecipe)  # noqa: S101 -- who starts from it has seen to it
        student, average = _drawn(recipe)
        backbone = student.backbone
        backbone.load_state_dict(at_grid(weights.tensors, backbone.grid, backbone.config.resize))
        average.load_state_dict(student.state_dict())
        return student, average


StartingPoint = TrainedNetworks | TrainedBackbone
"""What a run starts from that does not draw all of its networks."""


def _read(reader: CheckpointReader, kind: str, prefix: str, recipe: PretrainRecipe) -> Network:
    network = Network(recipe)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(reader.read_full(kind, prefix + name).view_as(parameter))
    return network


def _adapted(trained: Network, recipe: AdaptRecipe) -> Network:
    network = Network(recipe)
    backbone = network.backbone
    network.load_state_dict(at_grid(trained.state_dict(), backbone.grid, backbone.config.resize))
    return network


def needs_start(recipe: TrainingRecipe, entries: Sequence[LogEntry]) -> bool:
    """Whether an attempt has to read the networks that its run started from.

    A teacher is always needed. Networks that were gone on with are in the run's own checkpoints, once there is one.

    Args:
        recipe: Of the run.
        entries: Of its log.
    """
    return not isinstance(recipe, AdaptRecipe) or not live_checkpoints(entries)


def new_training(
    recipe: TrainingRecipe,
    new_engine: NewEngine,
    trained: tuple[Network, ...],
    device: torch.device,
    phase: Phase,
) -> TrainingStep | DistillationStep:
    """The step of a run with the initial weights: what it starts from, and else a function of its seed alone.

    Args:
        recipe: Of the run.
        new_engine: Takes a student.
        trained: What ``TrainedNetworks.load`` gives; none where nothing is started from, or a checkpoint will tell.
        device: Of this worker.
        phase: Measures the parts of a step.
    """
    if isinstance(recipe, PretrainRecipe):
        student, average = trained or _drawn(recipe)
        return TrainingStep(recipe, new_engine(student, recipe), average.to(device), phase)
    assert isinstance(recipe, DistillRecipe)  # noqa: S101 -- the only other kind that trains
    (teacher,) = trained
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
