"""Which key was meant: a pure ranking of the keys that exist by how far they are from what was written."""

from collections.abc import Iterable

_LONGEST = 100
"""Letters of a key that are compared; nothing longer resembles a real one."""
_ELSEWHERE = 1.0
"""Extra distance of a key in another section, so that a slip of the pen in this one comes first."""
_SAME_WORD = 0.5
_PART_OF_NAME = 1.2
"""``warmup`` for ``warmup_steps``: farther than one wrong letter, nearer than two."""


def nearest_key(written: str, keys: Iterable[str]) -> str | None:
    """The dotted key that ``written`` was most likely meant to be, the first of equals; None if nothing is near."""
    if len(written) > _LONGEST:
        return None
    best = min(((_distance(written, key), index, key) for index, key in enumerate(keys)), default=None)
    return best[2] if best and best[0] <= max(3.0, len(written) / 4) else None


def _distance(written: str, key: str) -> float:
    return min(float(edit_distance(written, key)), _distance_of_names(written, key))


def _distance_of_names(written: str, key: str) -> float:
    """The right name in the wrong section, or a whole word of the name."""
    written_section, _, written_name = written.rpartition(".")
    section, _, name = key.rpartition(".")
    away = _ELSEWHERE if section != written_section else 0.0
    if written_name == name:
        return _SAME_WORD + away
    if written_name and set(written_name.split("_")) < set(name.split("_")):
        return _PART_OF_NAME + away
    return float("inf")


def edit_distance(left: str, right: str) -> int:
    """Letters to insert, delete, replace or swap with a neighbour (Damerau-Levenshtein by optimal alignment)."""
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        oldest, before, row = before, row, [i]
        for j, b in enumerate(right, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and b == left[i - 2]:
                cost = min(cost, oldest[j - 2] + 1)
            row.append(cost)
    return row[-1]
