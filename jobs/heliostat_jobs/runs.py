"""A run's identity: its name, its configuration and the dataset manifest it was started with."""

from dataclasses import dataclass
from typing import Any

from heliostat.checkpoint.log import CommitLog, has_ended
from heliostat.config import ResolvedRecipe
from heliostat.config.distill import DistillRecipe, check_teacher
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.training import TrainingRecipe
from heliostat.data.manifest import load_manifest
from heliostat.errors import InvalidValueError, RunNotFoundError
from heliostat.storage import Store, open_store
from heliostat.storage.layout import LOCK_KEY, run_store
from heliostat_jobs.artifacts import Artifact, checkpoint_artifact
from heliostat_jobs.locks import find_or_create_lock, locked_recipe


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """A run that may be started or resumed."""

    root: Store
    store: Store
    """Of the run itself, below the root."""
    manifests: dict[str, str]
    """Hashes by name of the dataset, pinned when the run was created."""
    is_finished: bool
    teacher: Artifact | None = None
    """Checkpoint of the teacher of a distillation, pinned likewise."""


def open_run(resolved: ResolvedRecipe) -> OpenedRun:
    """Create the run, or find it again under the same name.

    Raises:
        ChangedConfigError: a run of this name has another configuration.
        DatasetNotFoundError: there is no such dataset.
    """
    recipe = resolved.recipe
    assert isinstance(recipe, TrainingRecipe)  # noqa: S101 -- callers dispatch on the kind
    root = open_store(recipe.root)
    store = run_store(root, recipe.name)
    locked = find_or_create_lock(store, resolved, lambda: _pinned(recipe, root))
    return OpenedRun(root, store, locked["manifests"], has_ended(CommitLog(store).read()), locked.get("teacher"))


def _pinned(recipe: TrainingRecipe, root: Store) -> dict[str, Any]:
    """What a run is bound to that begins now."""
    manifests = {name: load_manifest(root, name).sha256 for name in recipe.dataset.shares}
    if not isinstance(recipe, DistillRecipe):
        return {"manifests": manifests}
    return {"manifests": manifests, "teacher": teacher_checkpoint(recipe, root)}


def teacher_checkpoint(recipe: DistillRecipe, root: Store) -> Artifact:
    """The checkpoint that a distillation learns from as of now.

    Raises:
        RunNotFoundError, NoCheckpointError: there is no such run, or no such checkpoint.
        InvalidValueError: the teacher does not fit, and what differs; or it is still trained, so that the checkpoint
            would be removed one day.
    """
    name, run = recipe.teacher.run, run_store(root, recipe.teacher.run)
    check_teacher(recipe, load_pretraining(root, name))
    artifact = checkpoint_artifact(run, name, recipe.teacher.step)
    if not has_ended(CommitLog(run).read()):
        raise InvalidValueError(
            f"teacher.run {name} is not finished: its checkpoints are removed when newer ones come",
            "Wait for its end, or resume it",
        )
    return artifact


def existing_run(root: Store, name: str) -> Store:
    """The store of an existing run.

    Raises:
        RunNotFoundError: no run of this name.
    """
    store = run_store(root, name)
    if store.exists(LOCK_KEY):
        return store
    names = root.folders("runs/")
    raise RunNotFoundError(
        f"there is no run {name!r} under {root.url}",
        f"Name one of: {', '.join(names)}" if names else "Start one with heliostat run RECIPE.yaml",
    )


def load_pretraining(root: Store, name: str) -> PretrainRecipe:
    """The recipe of an existing pretraining run.

    Raises:
        RunNotFoundError: no run of this name.
        InvalidValueError: it is of another kind.
    """
    recipe = load_run(root, name)
    if not isinstance(recipe, PretrainRecipe):
        raise InvalidValueError(
            f"teacher.run {name} is a run of kind {recipe.kind}", "Name a run of kind pretrain, which has heads"
        )
    return recipe


def load_run(root: Store, name: str) -> TrainingRecipe:
    """The recipe of an existing run, as it was resolved.

    Raises:
        RunNotFoundError: no run of this name.
    """
    recipe = locked_recipe(existing_run(root, name))
    assert isinstance(recipe, TrainingRecipe)  # noqa: S101 -- only such runs are created
    return recipe.model_copy(update={"root": root.url})
