"""The teacher of a run of ours, from its committed checkpoints."""

import json
import math
from collections.abc import Mapping

from heliostat.checkpoint.format import CheckpointManifest, tensor_name
from heliostat.checkpoint.log import CommitLog, live_checkpoints
from heliostat.checkpoint.reader import CheckpointReader
from heliostat.checkpoint.verify import check_shards, load_manifest, newest_good
from heliostat.config.distill import prefix_of, recipe_of_network
from heliostat.config.kinds import Recipe
from heliostat.config.network import NetworkRecipe
from heliostat.config.provenance import unlock
from heliostat.config.training import TrainingRecipe
from heliostat.errors import (
    ConfigError,
    CorruptCheckpointError,
    CorruptLockError,
    NoCheckpointError,
    ObjectNotFoundError,
    WeightsNotFoundError,
)
from heliostat.models.weights.backbone import Shape, Weights, check_shapes, expected_shapes
from heliostat.storage import Store
from heliostat.storage.layout import LOCK_KEY

TEACHER = "teacher"
"""The kind of the EMA teacher's tensors in a checkpoint; the parameters of its backbone begin with ``BACKBONE``."""
BACKBONE = "backbone."


def read_run(run: Store, step: int | None = None, student: str | None = None) -> tuple[Weights, int]:
    """The backbone that a run delivers, and its step; the architecture is that of the run's lock file.

    Args:
        run: The run's own store.
        step: Of the checkpoint; None is the newest good one.
        student: Of a distillation; None is its only one.

    Raises:
        InvalidValueError: no such student.
        WeightsNotFoundError: this is no run.
        NoCheckpointError: nothing was committed yet, or nothing at this step.
        CorruptLockError: the lock file cannot be read.
    """
    return read_teacher(run, _recipe(run), step, student)


def read_teacher(
    run: Store, recipe: TrainingRecipe, step: int | None = None, student: str | None = None
) -> tuple[Weights, int]:
    """The backbone that is delivered, and its step: the teacher's, or a student's moving average.

    Only its own bytes are read. Arguments and errors as of ``read_run``.

    Raises:
        IncompatibleCheckpointError: the checkpoint is of another model than the recipe's.
        CorruptCheckpointError: the checkpoint of this step is not whole.
    """
    network = recipe_of_network(recipe, student)
    prefix = prefix_of(recipe, network)
    if step is not None:
        manifest = checkpoint_of_step(run, recipe.name, step)
        return _teacher(run, manifest, network, prefix), manifest.step
    try:
        manifest = _newest(run, recipe.name, verify_bytes=False)
        return _teacher(run, manifest, network, prefix), manifest.step
    except CorruptCheckpointError:  # found while reading, or retired meanwhile: choose again, reading every byte
        manifest = _newest(run, recipe.name, verify_bytes=True)
        return _teacher(run, manifest, network, prefix), manifest.step


def _newest(run: Store, name: str, verify_bytes: bool) -> CheckpointManifest:
    choice = newest_good(run, CommitLog(run).read(), verify_bytes)
    if choice is None:
        raise NoCheckpointError(f"run {name!r} has committed no checkpoint yet", "Wait for the first one")
    return choice.manifest


def checkpoint_of_step(run: Store, name: str, step: int) -> CheckpointManifest:
    """The checkpoint of a run's step; all of its parts are there.

    Raises:
        NoCheckpointError: there is none.
        CorruptCheckpointError: it is not whole.
    """
    entries = live_checkpoints(CommitLog(run).read())
    entry = next((entry for entry in reversed(entries) if entry.step == step), None)
    if entry is None:
        steps = ", ".join(str(entry.step) for entry in entries) or "no step"
        raise NoCheckpointError(f"run {name!r} has no checkpoint of step {step}", f"There are checkpoints of {steps}")
    manifest = load_manifest(run, entry)
    check_shards(run, manifest)
    return manifest


def _teacher(run: Store, manifest: CheckpointManifest, recipe: NetworkRecipe, prefix: str) -> Weights:
    grid = recipe.augmentation.global_px // recipe.model.patch_px
    shapes = expected_shapes(recipe.model, grid)
    origin = f"checkpoint {run.url}/{manifest.folder}"
    check_shapes(_flat(shapes), _flat_teacher(manifest, prefix), origin)
    reader = CheckpointReader(run, manifest)
    tensors = {name: reader.read_full(TEACHER, prefix + BACKBONE + name).view(shape) for name, shape in shapes.items()}
    return Weights(recipe.model, grid, tensors, origin)


def _flat(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """A checkpoint knows its tensors' sizes, not their shapes."""
    return {name: (math.prod(shape),) for name, shape in shapes.items()}


def _flat_teacher(manifest: CheckpointManifest, prefix: str) -> dict[str, Shape]:
    start = tensor_name(TEACHER, prefix + BACKBONE)
    return {name.removeprefix(start): (n,) for name, n in manifest.tensors.items() if name.startswith(start)}


def _recipe(run: Store) -> TrainingRecipe:
    try:
        data = run.get(LOCK_KEY)
    except ObjectNotFoundError as error:
        raise WeightsNotFoundError(
            f"{run.url} is no run: it has no {LOCK_KEY}", "Give a folder ROOT/runs/NAME, or a file of weights"
        ) from error
    try:
        recipe: Recipe = unlock(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CorruptLockError(
            f"{run.url}/{LOCK_KEY} is not what this version wrote ({type(error).__name__})", "Put it back as it was"
        ) from error
    if not isinstance(recipe, TrainingRecipe):
        raise WeightsNotFoundError(f"{run.url} is a run of kind {recipe.kind}, which trains no model", "Name another")
    return recipe
