"""A run's identity: its name, its configuration and the dataset manifest it was started with."""

from dataclasses import dataclass

from heliostat.checkpoint.log import CommitLog, has_ended
from heliostat.config import ResolvedRecipe
from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.manifest import load_manifest
from heliostat.errors import RunNotFoundError
from heliostat.storage import Store, open_store
from heliostat.storage.layout import LOCK_KEY, run_store
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


def open_run(resolved: ResolvedRecipe) -> OpenedRun:
    """Create the run, or find it again under the same name.

    Raises:
        ChangedConfigError: a run of this name has another configuration.
        DatasetNotFoundError: there is no such dataset.
    """
    recipe = resolved.recipe
    assert isinstance(recipe, PretrainRecipe)  # noqa: S101 -- callers dispatch on the kind
    root = open_store(recipe.root)
    store = run_store(root, recipe.name)
    names = recipe.dataset.shares
    locked = find_or_create_lock(
        store, resolved, lambda: {"manifests": {name: load_manifest(root, name).sha256 for name in names}}
    )
    return OpenedRun(root, store, locked["manifests"], has_ended(CommitLog(store).read()))


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


def load_run(root: Store, name: str) -> PretrainRecipe:
    """The recipe of an existing run, as it was resolved.

    Raises:
        RunNotFoundError: no run of this name.
    """
    recipe = locked_recipe(existing_run(root, name))
    assert isinstance(recipe, PretrainRecipe)  # noqa: S101 -- only such runs are created
    return recipe.model_copy(update={"root": root.url})
