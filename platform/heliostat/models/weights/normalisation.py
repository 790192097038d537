"""Whether a backbone was trained on colours as ours are."""

import math
from collections.abc import Sequence

from heliostat.errors import IncompatibleCheckpointError
from heliostat.models.normalise import MEAN, STD
from heliostat.models.weights.backbone import Weights


def other_normalisation(described: object, mean: str, std: str) -> tuple[str, ...]:
    """In what a description of how images are prepared differs from ours; nothing where it says nothing.

    Args:
        described: The object of a file of JSON.
        mean: Key of the means of the channels in it.
        std: Key of their deviations.
    """
    told = described if isinstance(described, dict) else {}
    values = {key: (told.get(key), ours) for key, ours in ((mean, MEAN), (std, STD))}
    return tuple(
        f"{key} is {theirs} there and {list(ours)} here"
        for key, (theirs, ours) in values.items()
        if theirs is not None and not _are_near(theirs, ours)
    )


def refuse_other_normalisation(weights: Weights) -> None:
    """Refuse a backbone that would see other colours here than it was trained on.

    Raises:
        IncompatibleCheckpointError: says what differs.
    """
    if weights.other_normalisation:
        raise IncompatibleCheckpointError(
            f"{weights.origin} normalises images in another way: {'; '.join(weights.other_normalisation)}",
            "Use weights that were trained with ImageNet's mean and deviation",
        )


def _are_near(theirs: object, ours: Sequence[float]) -> bool:
    values = theirs if isinstance(theirs, list) else []
    if len(values) != len(ours) or not all(isinstance(value, int | float) for value in values):
        return False
    return all(math.isclose(value, own, abs_tol=1e-3) for value, own in zip(values, ours, strict=True))
