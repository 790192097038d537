"""The networks of a run at its first step, and the step that trains them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from heliostat.checkpoint.format import CheckpointManifest
from heliostat.checkpoint.log import LogEntry, live_checkpoints
from heliostat.checkpoint.reader import CheckpointReader
from heliostat.config.adapt import AdaptRecipe
from heliostat.config.distill import (
    DistillRecipe,
    backbone_as_teacher,
    prefix_of,
    recipe_of_network,
    run_as_teacher,
)
from heliostat.config.distill_objective import DistillObjectiveConfig
from heliostat.config.model import ModelConfig
from heliostat.config.network import BackboneConfig, NetworkRecipe
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

NewEngine = Callable[[Network, NetworkRecipe], Engine]
"""From a student and the recipe by which it is trained."""


@dataclass(frozen=True, slots=True)
class TrainedNetworks:
    """What a run starts from, as it was pinned when the run was created."""

    recipe: TrainingRecipe
    """Of the run that trained them."""
    manifest: CheckpointManifest

    def load(self, root: Store, recipe: TrainingRecipe, *, heads_alone: bool = False) -> tuple[Network, ...]:
        """Networks with their heads, in fp32; every byte is verified.

        Args:
            root: That holds the run that trained them.
            recipe: Of the run that starts from them.
            heads_alone: Of a teacher whose views are kept: it looks at nothing, and has no backbone.

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
            if isinstance(network.objective, DistillObjectiveConfig):
                network = network.model_copy(update={"objective": network.objective.without_students})
            return tuple(_adapted(_read(reader, kind, prefix, network), recipe) for kind in (MASTER, TEACHER))
        return (_read(reader, TEACHER, "", self.as_teacher(recipe), heads_alone=heads_alone),)

    def as_teacher(self, recipe: TrainingRecipe) -> PretrainRecipe:
        """What the teacher of a distillation is made of."""
        assert isinstance(recipe, DistillRecipe)  # noqa: S101 -- no other kind has a teacher that is read
        assert isinstance(self.recipe, PretrainRecipe)  # noqa: S101 -- who learns from it has seen to it
        return run_as_teacher(recipe, self.recipe)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What no other networks have."""
        return self.manifest.model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class TrainedBackbone:
    """A backbone without heads that a run starts from, as it was kept when the run was created."""

    key: str
    """Of its weights (``models/weights/stored.py``), which is their hash."""
    config: BackboneConfig
    grid: int
    """Patches along a side for which its position embedding is stored."""

    def load(self, root: Store, recipe: TrainingRecipe, *, heads_alone: bool = False) -> tuple[Network, ...]:
        """Student and teacher of an adaptation, alike, with drawn heads; else as ``TrainedNetworks.load``."""
        if heads_alone:  # there are none
            return (_without_backbone(Network(self.as_teacher(recipe))),)
        weights = load_weights(root, self.key)
        if isinstance(recipe, DistillRecipe):
            teacher = Network(self.as_teacher(recipe))
            teacher.backbone.load_state_dict(weights.tensors)
            return (teacher,)
        assert isinstance(recipe, PretrainRecipe)  # noqa: S101 -- the only other kind that trains
        student, average = _drawn(recipe)
        backbone, mode = student.backbone, recipe.model.resize
        backbone.load_state_dict(at_grid(weights.tensors, backbone.grid, mode))
        average.load_state_dict(student.state_dict())
        return student, average

    def as_teacher(self, recipe: TrainingRecipe) -> PretrainRecipe:
        """What the teacher of a distillation is made of."""
        assert isinstance(recipe, DistillRecipe)  # noqa: S101 -- no other kind has a teacher that is read
        assert isinstance(self.config, ModelConfig)  # noqa: S101 -- who learns from it has seen to it
        return backbone_as_teacher(recipe, self.config, self.grid)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What no other backbone has."""
        return {"weights": self.key}


StartingPoint = TrainedNetworks | TrainedBackbone
"""What a run starts from that does not draw all of its networks."""


def _read(
    reader: CheckpointReader, kind: str, prefix: str, recipe: NetworkRecipe, *, heads_alone: bool = False
) -> Network:
    network = _without_backbone(Network(recipe)) if heads_alone else Network(recipe)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(reader.read_full(kind, prefix + name).view_as(parameter))
    return network


def _without_backbone(network: Network) -> Network:
    del network.backbone
    return network


def _adapted(trained: Network, recipe: AdaptRecipe) -> Network:
    network = Network(recipe)
    network.load_state_dict(at_grid(trained.state_dict(), network.backbone.grid, recipe.model.resize))
    return network


def teacher_of(recipe: TrainingRecipe, start: StartingPoint | None) -> PretrainRecipe | None:
    """What the frozen teacher of a run is made of; None where there is none."""
    return start.as_teacher(recipe) if isinstance(recipe, DistillRecipe) and start is not None else None


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


def _begun(recipe: NetworkRecipe, new_engine: NewEngine, device: torch.device) -> tuple[Engine, Network]:
    student, average = _drawn(recipe)
    return new_engine(student, recipe), average.to(device)


def _drawn(recipe: NetworkRecipe) -> tuple[Network, Network]:
    student, average = Network(recipe), Network(recipe)
    student.init_weights(recipe.seed)
    average.load_state_dict(student.state_dict())
    return student, average
