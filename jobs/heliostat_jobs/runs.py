"""A run's identity: its name, its configuration and the dataset manifest it was started with."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from heliostat.checkpoint.log import CommitLog, has_ended
from heliostat.config import ResolvedRecipe
from heliostat.config.adapt import AdaptRecipe
from heliostat.config.distill import DistillRecipe
from heliostat.config.kinds import Recipe
from heliostat.config.starts import check_start, check_weights, start_of, weights_of
from heliostat.config.training import TrainingRecipe
from heliostat.data.labels import check_classes
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
    start: Artifact | None = None
    """Checkpoint of the trained run that it starts from, pinned likewise."""
    weights: str | None = None
    """Key of the backbone that it starts from."""


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
    is_finished = has_ended(CommitLog(store).read())
    return OpenedRun(root, store, locked["manifests"], is_finished, locked.get("start"), locked.get("weights"))


def _pinned(recipe: TrainingRecipe, root: Store) -> dict[str, Any]:
    """What a run is bound to that begins now."""
    manifests = {name: load_manifest(root, name).sha256 for name in recipe.dataset.shares}
    check_labels(recipe, root, manifests)
    if (named := weights_of(recipe)) is not None:
        return {"manifests": manifests, "weights": start_weights(recipe, named[1], root)}
    start = start_checkpoint(recipe, root)
    return {"manifests": manifests} if start is None else {"manifests": manifests, "start": start}


def check_labels(recipe: TrainingRecipe, root: Store, manifests: Mapping[str, str]) -> None:
    """Refuse datasets whose labels are not those that a distillation counts on.

    Raises:
        UnlabelledDatasetError, InvalidValueError: as ``check_classes``.
    """
    if isinstance(recipe, DistillRecipe) and recipe.objective.labels.classes is not None:
        check_classes(root, manifests, recipe.objective.labels.classes)


def start_weights(recipe: TrainingRecipe, name_or_path: str, root: Store) -> str:
    """Keep the backbone that a run would start from under its root; the key.

    Raises:
        InvalidValueError: it does not fit, and what differs.
        HeliostatError: as ``heliostat.load_backbone``.
    """
    from heliostat.models.weights.backbone import build
    from heliostat.models.weights.load import read_weights
    from heliostat.models.weights.normalisation import refuse_other_normalisation
    from heliostat.models.weights.stored import store_weights

    # A bare file does not say how many heads it has.
    is_file = Path(name_or_path).expanduser().is_file()
    heads = recipe.model.heads if is_file and isinstance(recipe, AdaptRecipe) else None
    weights = read_weights(name_or_path, heads)
    refuse_other_normalisation(weights)
    check_weights(recipe, weights.config)
    return store_weights(root, replace(weights, tensors=dict(build(weights).state_dict())))


def start_checkpoint(recipe: Recipe | TrainingRecipe, root: Store) -> Artifact | None:
    """The checkpoint that a run would start from as of now, if it names another one.

    Raises:
        RunNotFoundError, NoCheckpointError: there is no such run, or no such checkpoint.
        InvalidValueError: that run does not fit, and what differs; or it is still trained, so that the checkpoint would
            be removed one day.
    """
    start = start_of(recipe)
    if start is None:
        return None
    run = run_store(root, start.run)
    check_start(recipe, load_run(root, start.run))
    artifact = checkpoint_artifact(run, start.run, start.step)
    if not has_ended(CommitLog(run).read()):
        raise InvalidValueError(
            f"{start.key} {start.run} is not finished: its checkpoints are removed when newer ones come",
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


def load_run(root: Store, name: str) -> TrainingRecipe:
    """The recipe of an existing run, as it was resolved.

    Raises:
        RunNotFoundError: no run of this name.
    """
    recipe = locked_recipe(existing_run(root, name))
    assert isinstance(recipe, TrainingRecipe)  # noqa: S101 -- only such runs are created
    return recipe.model_copy(update={"root": root.url})
