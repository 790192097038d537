"""What a difference between two kinds of runs is, over the seeds they were trained with."""

import statistics
from collections.abc import Sequence
from typing import Any

from scipy.stats import t as student_t

from frame import significant


def difference(mine: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Mean of mine - theirs, seed by seed, with its 95 % interval by Student's t; None with a single seed."""
    differences = [one - other for one, other in zip(mine, theirs, strict=True)]
    mean, count = statistics.mean(differences), len(differences)
    if count == 1:
        return {"mean": significant(mean), "interval_95": None}
    half = float(student_t.ppf(0.975, count - 1)) * statistics.stdev(differences) / count**0.5
    return {"mean": significant(mean), "interval_95": [significant(mean - half), significant(mean + half)]}
