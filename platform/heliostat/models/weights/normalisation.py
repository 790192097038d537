"""Whether a backbone was trained on colours as ours are."""

import math
from collections.abc import Sequence

from heliostat.errors import IncompatibleCheckpointError
from heliostat.models.normalise import MEAN, STD


def check_normalisation(described: object, mean: str, std: str, origin: str) -> None:
    """Refuse a backbone whose images had their colours normalised in another way than ours have.

    Args:
        described: What its folder says of how images are prepared.
        mean: Key of the means of the channels in it.
        std: Key of their deviations.
        origin: The file that says it.

    Raises:
        IncompatibleCheckpointError: they are others; says which.
    """
    told = described if isinstance(described, dict) else {}
    wrong = []
    for key, ours in ((mean, MEAN), (std, STD)):
        theirs = told.get(key)
        if theirs is not None and not _are_near(theirs, ours):
            wrong.append(f"{key} is {theirs} there and {list(ours)} here")
    if wrong:
        raise IncompatibleCheckpointError(
            f"{origin} normalises images in another way: {'; '.join(wrong)}",
            "Use weights that were trained with ImageNet's mean and deviation",
        )


def _are_near(theirs: object, ours: Sequence[float]) -> bool:
    values = theirs if isinstance(theirs, list) else []
    if len(values) != len(ours) or not all(isinstance(value, int | float) for value in values):
        return False
    return all(math.isclose(value, own, abs_tol=1e-3) for value, own in zip(values, ours, strict=True))
