"""Class names of datasets: each numbers its own, whoever reads several needs one numbering."""

from collections.abc import Mapping, Sequence

import numpy as np

from heliostat.data.manifest import load_manifest
from heliostat.data.selection import Rows, load_parts
from heliostat.data.shard_index import NO_LABEL
from heliostat.errors import InvalidValueError, UnlabelledDatasetError
from heliostat.storage import Store


def merge_labels(lists: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], list[Rows]]:
    """Class names of several datasets as one list, and where in it each one's labels are; the last entry is "none"."""
    names = tuple(dict.fromkeys(name for names in lists for name in names))
    places = {name: place for place, name in enumerate(names)}
    return names, [np.array([*(places[name] for name in names), NO_LABEL], np.int64) for names in lists]


def class_names(root: Store, manifests: Mapping[str, str]) -> tuple[str, ...]:
    """The classes of some datasets, numbered as a run that reads them numbers them.

    Args:
        root: That holds them.
        manifests: Hashes by name, in the run's order.
    """
    found = [load_manifest(root, name, sha256) for name, sha256 in manifests.items()]
    names, _ = merge_labels([part.labels for manifest in found for part in load_parts(root, manifest)])
    return names


def check_classes(root: Store, manifests: Mapping[str, str], classes: int) -> None:
    """Refuse datasets whose labels are not those that a recipe counts on.

    Args:
        root: That holds them.
        manifests: Hashes by name, in the run's order.
        classes: As many as the recipe says.

    Raises:
        UnlabelledDatasetError: they have no labels.
        InvalidValueError: they have another number of them.
    """
    names, datasets = class_names(root, manifests), ", ".join(manifests)
    if not names:
        raise UnlabelledDatasetError(
            f"objective.labels.weight is set, and dataset {datasets} has no labels",
            "Ingest a folder with one sub-folder per class, or give --labels, or leave objective.labels out",
        )
    if len(names) != classes:
        raise InvalidValueError(
            f"objective.labels.classes is {classes}, and dataset {datasets} has {len(names)} labels",
            f"Set objective.labels.classes to {len(names)}",
        )
