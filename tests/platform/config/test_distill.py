"""What a recipe of kind distill refuses before anything is read."""

from typing import Any

import pytest
from support.distilling import LABELS, students_of
from support.worlds import tiny_recipe

from heliostat.config.distill import DistillRecipe
from heliostat.errors import InvalidValueError


def recipe(objective: dict[str, Any] | None = None, **changes: Any) -> DistillRecipe:
    tree = students_of(tiny_recipe().model_dump(), "big")
    return DistillRecipe.model_validate({**tree, "objective": {**tree["objective"], **(objective or {})}, **changes})


NO_PROTOTYPES = {"dino_weight": 0.0, "ibot_weight": 0.0}


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        (NO_PROTOTYPES, {}, r"dino_weight, ibot_weight, features.weight, labels.weight of 0: nothing is learnt"),
        ({"features": {"weight": 1.0}}, {}, r"features.weight is set, but objective.teacher_width is not"),
        ({"labels": {"weight": 1.0}, "teacher_width": 8}, {}, r"labels.weight is set, but objective.labels.classes"),
        ({"labels": {"weight": 1.0, "classes": 3}}, {}, r"labels.weight is set, but objective.teacher_width is not"),
        (LABELS, {}, r"student small has no registers.*registers to 1 or more, or objective.labels.teacher to none"),
        ({}, {"teacher": {}}, r"teacher.run names a run, teacher.weights a backbone.*neither is set"),
        ({}, {"teacher": {"run": "a", "weights": "b"}}, r"both are set"),
        ({}, {"teacher": {"weights": "b", "step": 3}}, r"teacher.step is of a run"),
        ({}, {"teacher": {"weights": "dinov2_vits14"}}, r"a backbone without heads.*features.weight to 1, or train"),
    ],
)
def test_recipe__refuses(objective: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        recipe(objective, **changes)


def test_recipe__labels_alone_need_neither_registers_nor_a_width() -> None:
    assert recipe({"labels": {"weight": 1.0, "classes": 3, "teacher": "none"}}).objective.compares_tokens is False
