"""What was said when a run or a curation was first started, and has to stay: its configuration and its datasets.

``config.lock.json`` is created once. Whoever comes later with the same name finds it, and goes on only with the same
configuration, on the manifests of then.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from heliostat.config import ResolvedRecipe, check_same_run, identity, lock, locked_identity, unlock
from heliostat.config.curate import CurateRecipe
from heliostat.config.evaluate import EvaluateRecipe
from heliostat.config.kinds import Recipe
from heliostat.config.provenance import LOCK_SCHEMA_VERSION
from heliostat.config.starts import start_of, weights_of
from heliostat.config.training import TrainingRecipe
from heliostat.errors import ConfigError, CorruptLockError, ObjectExistsError, ObjectNotFoundError
from heliostat.storage import Store
from heliostat.storage.layout import LOCK_KEY

CONFIG_KEY = "config.yaml"


def find_or_create_lock(
    store: Store, resolved: ResolvedRecipe, pin: Callable[[], Mapping[str, Mapping[str, Any]]]
) -> dict[str, Any]:
    """What a run or a curation was started with: what is so now if it is new, else what was so then.

    Args:
        store: Of the run or the curation itself.
        resolved: Its recipe as of now.
        pin: Gives what else belongs to it as of now: ``manifests``, the hashes by dataset, and maybe more.

    Raises:
        ChangedConfigError: it was started with another configuration.
        CorruptLockError: what is there is no lock.
    """
    locked = _read(store)
    if locked is None:
        locked = {**lock(resolved), **pin()}
        try:
            store.create(LOCK_KEY, json.dumps(locked, indent=1).encode())
        except ObjectExistsError:  # another process creates the same one at this moment: its lock counts
            locked = _read(store) or locked
    check_same_run(locked_identity(locked), identity(resolved.recipe))
    if not store.exists(CONFIG_KEY):
        store.put(CONFIG_KEY, resolved.text.encode())
    return locked


def locked_recipe(store: Store) -> Recipe | None:
    """The recipe of a run or a curation as it was resolved; none if there is none.

    Raises:
        CorruptLockError: what is there is no lock.
    """
    locked = _read(store)
    return None if locked is None else unlock(locked)


def run_identity(store: Store) -> dict[str, Any] | None:
    """What makes a run or a curation the same when it goes on; none if it was never started.

    Raises:
        CorruptLockError: what is there is no lock.
    """
    locked = _read(store)
    return None if locked is None else locked_identity(locked)


def pinned_manifests(store: Store) -> dict[str, str] | None:
    """Hashes of the datasets' manifests that a run or a curation was started with; none if it was never started.

    Raises:
        CorruptLockError: what is there is no lock.
    """
    locked = _read(store)
    return None if locked is None else locked["manifests"]


def pinned_start(store: Store) -> dict[str, Any] | None:
    """The checkpoint that a run was started from which names another one; none if it was never started.

    Raises:
        CorruptLockError: what is there is no lock.
    """
    locked = _read(store)
    return None if locked is None else locked.get("start")


def pinned_weights(store: Store) -> str | None:
    """The key of the backbone that a run was started from; none if there is none, or it was never started.

    Raises:
        CorruptLockError: what is there is no lock.
    """
    locked = _read(store)
    return None if locked is None else locked.get("weights")


def _read(store: Store) -> dict[str, Any] | None:
    try:
        data = store.get(LOCK_KEY)
    except ObjectNotFoundError:
        return None
    try:
        locked: dict[str, Any] = json.loads(data)
        if locked["schema_version"] != LOCK_SCHEMA_VERSION:
            raise ValueError(locked["schema_version"])
        recipe = unlock(locked)
        if set(locked["manifests"]) != datasets_of(recipe):
            raise ValueError(locked["manifests"])
        start = start_of(recipe)
        if start is not None and locked["start"]["name"] != start.run:
            raise ValueError(locked["start"])
        if (weights_of(recipe) is None) != (locked.get("weights") is None):
            raise ValueError(locked.get("weights"))
        if isinstance(recipe, CurateRecipe) and not isinstance(locked["inputs"], dict):
            raise TypeError(locked["inputs"])
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CorruptLockError(
            f"{store.url}/{LOCK_KEY} is not what this version wrote ({type(error).__name__})",
            "Put it back as it was, or give it another name",
        ) from error
    return locked


def datasets_of(recipe: Recipe) -> set[str]:
    """Names of the datasets that a recipe reads."""
    match recipe:
        case TrainingRecipe():
            return set(recipe.dataset.shares)
        case CurateRecipe():
            return set(recipe.datasets)
        case EvaluateRecipe():
            return {recipe.bank, recipe.queries}
        case _:
            return set()
