"""A run's identity: its name, its configuration and the dataset manifest it was started with."""

import json
from dataclasses import dataclass
from typing import Any

from heliostat.checkpoint.log import CommitLog, EndEntry
from heliostat.config import ResolvedRecipe, check_same_run, identity, lock, unlock
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.provenance import LOCK_SCHEMA_VERSION
from heliostat.data.manifest import load_manifest
from heliostat.errors import ConfigError, CorruptLockError, ObjectExistsError, ObjectNotFoundError, RunNotFoundError
from heliostat.models.weights.runs import LOCK_KEY
from heliostat.storage import Store, open_store
from heliostat.training.attempt import run_store

CONFIG_KEY = "config.yaml"


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
    locked = _read_lock(store)
    if locked is None:
        manifests = {name: load_manifest(root, name).sha256 for name in recipe.dataset.shares}
        locked = {**lock(resolved), "manifests": manifests}
        try:
            store.create(LOCK_KEY, json.dumps(locked, indent=1).encode())
        except ObjectExistsError:  # another process creates the same run at this moment: its lock counts
            locked = _read_lock(store) or locked
    check_same_run(locked["identity"], identity(recipe))
    if not store.exists(CONFIG_KEY):
        store.put(CONFIG_KEY, resolved.text.encode())
    finished = any(isinstance(entry, EndEntry) for entry in CommitLog(store).read())
    return OpenedRun(root, store, locked["manifests"], finished)


def load_run(root: Store, name: str) -> PretrainRecipe:
    """The recipe of an existing run, as it was resolved.

    Raises:
        RunNotFoundError: no run of this name.
    """
    locked = _read_lock(run_store(root, name))
    if locked is None:
        names = sorted({info.key.split("/")[1] for info in root.list("runs/")})
        raise RunNotFoundError(
            f"there is no run {name!r} under {root.url}",
            f"Name one of: {', '.join(names)}" if names else "Start one with heliostat run RECIPE.yaml",
        )
    recipe = unlock(locked)
    assert isinstance(recipe, PretrainRecipe)  # noqa: S101 -- only such runs are created
    return recipe.model_copy(update={"root": root.url})


def _read_lock(store: Store) -> dict[str, Any] | None:
    try:
        data = store.get(LOCK_KEY)
    except ObjectNotFoundError:
        return None
    try:
        locked: dict[str, Any] = json.loads(data)
        if locked["schema_version"] != LOCK_SCHEMA_VERSION:
            raise ValueError(locked["schema_version"])
        recipe = unlock(locked)
        if isinstance(recipe, PretrainRecipe) and set(locked["manifests"]) != set(recipe.dataset.shares):
            raise ValueError(locked["manifests"])
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CorruptLockError(
            f"{store.url}/{LOCK_KEY} is not what this version wrote ({type(error).__name__})",
            "Put it back as it was, or give the run another name",
        ) from error
    return locked
