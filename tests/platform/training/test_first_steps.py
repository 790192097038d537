"""Whether a network gets worse in the first steps of going on with it: when somebody is told."""

import pytest
from support.worlds import tiny_recipe

from heliostat.config.adapt import AdaptRecipe
from heliostat.training.first_steps import TOLERANCE, fall_of, first_steps_of


def recipe_of(**training: int) -> AdaptRecipe:
    tree = tiny_recipe().model_dump()
    return AdaptRecipe.model_validate(
        {
            **tree,
            "kind": "adapt",
            "init_from": {"run": "tiny"},
            "training": {**tree["training"], "steps": 100, **training},
        }
    )


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"warmup_steps": 7}, 7),
        ({"warmup_steps": 7, "freeze_backbone_steps": 20}, 27),
        ({"warmup_steps": 7, "freeze_backbone_steps": 20, "unfreeze_steps": 30}, 57),
        ({"warmup_steps": 70, "freeze_backbone_steps": 20, "unfreeze_steps": 30}, 100),
    ],
)
def test_first_steps_of__end_a_warm_up_after_all_blocks_learn(training: dict[str, int], expected: int) -> None:
    assert first_steps_of(recipe_of(**training)) == expected
    assert first_steps_of(tiny_recipe()) == 0


@pytest.mark.parametrize(
    ("step", "before", "judged", "falls"),
    [
        (5, 0.8, {"knn_top1": 0.7}, True),
        (5, 0.8, {"knn_top1": 0.8 - TOLERANCE / 2}, False),
        (5, 0.8, {"knn_top1": 0.9}, False),
        (10, 0.8, {"knn_top1": 0.1}, False),
        (5, None, {"knn_top1": 0.1}, False),
        (5, 0.8, {}, False),
    ],
)
def test_fall_of__tells_of_the_first_steps_only_and_of_no_noise(
    step: int, before: float | None, judged: dict[str, float], falls: bool
) -> None:
    fall = fall_of(recipe_of(warmup_steps=10), step, before, judged)
    assert (fall is not None) == falls
    if fall is not None:
        assert "70.0%, and was 80.0% before" in fall.advice
