"""``kind: adapt``: schedules in proportion to the steps, and what cannot be gone on with."""

from typing import Any

import pytest
from pydantic import ValidationError
from support.distilling import students_of
from support.worlds import tiny_recipe

from heliostat.config.adapt import AdaptRecipe, check_backbone, check_init_from
from heliostat.config.distill import DistillRecipe
from heliostat.errors import InvalidValueError


def adapt_recipe(**changes: Any) -> AdaptRecipe:
    """Of a tiny run; sections that are given are added to."""
    tree = tiny_recipe().model_dump()
    del tree["training"]["warmup_steps"], tree["training"]["freeze_prototypes_steps"]
    del tree["objective"]["teacher_temperature_warmup_steps"]
    tree |= {"kind": "adapt", "name": "sharper", "init_from": {"run": "tiny"}}
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    return AdaptRecipe.model_validate(tree)


@pytest.mark.parametrize(
    ("steps", "set_", "expected"),
    [
        (10_000, {}, (1000, 100, 3000)),
        (20, {}, (2, 0, 6)),
        (1, {}, (0, 0, 0)),
        (20, {"training": {"warmup_steps": 7}}, (7, 0, 6)),
        (20, {"objective": {"teacher_temperature_warmup_steps": 0}}, (2, 0, 0)),
    ],
)
def test_adapt__ends_schedules_in_proportion_to_the_steps_unless_told_otherwise(
    steps: int, set_: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    recipe = adapt_recipe(**{**set_, "training": {"steps": steps, **set_.get("training", {})}})
    training = recipe.training
    found = training.warmup_steps, training.freeze_prototypes_steps, recipe.objective.teacher_temperature_warmup_steps
    assert found == expected


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": {"embed_dim": 64}}, r"model.embed_dim is 32 there and 64 here.*Set model.embed_dim to 32"),
        ({"model": {"patch_px": 8}}, r"model.patch_px is 4 there and 8 here"),
        ({"model": {"registers": 4}}, r"model.registers is 0 there and 4 here"),
        ({"model": {"position": "rope"}}, r"model.position is learned there and rope here"),
        ({"objective": {"prototypes": 64}}, r"objective.prototypes is 48 there and 64 here; objective.ibot_proto"),
        ({"objective": {"ibot_head_hidden": 8}}, r"objective.ibot_head_hidden is 32 there and 8 here"),
        ({"objective": {"ibot_head": "shared"}}, r"objective.ibot_head is separate there and shared here"),
        ({"objective": {"prototype_layer": "linear"}}, r"objective.prototype_layer is weight_norm there"),
        ({"init_from": {"student": "small"}}, "student small was asked for, but tiny is a run of kind pretrain"),
    ],
)
def test_adapt__says_what_differs_from_the_networks_that_it_would_go_on_with(
    changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidValueError, match=told):
        check_init_from(adapt_recipe(**changes), tiny_recipe())


def test_adapt__takes_other_crops_another_stochastic_depth_and_other_data() -> None:
    recipe = adapt_recipe(
        model={"drop_path": 0.2, "layer_scale": 1e-3, "position_resize": "size"},
        augmentation={"global_px": 32, "local_px": 16},
        dataset={"name": "others"},
    )
    check_init_from(recipe, tiny_recipe())


def test_adapt__goes_on_with_one_student_of_a_distillation() -> None:
    distilled = DistillRecipe.model_validate(students_of(tiny_recipe().model_dump(), "big"))
    small = {"model": {"embed_dim": 16}, "init_from": {"student": "small"}}
    check_init_from(adapt_recipe(**small), distilled)
    with pytest.raises(InvalidValueError, match=r"model.embed_dim is 32 there and 16 here"):
        check_init_from(adapt_recipe(**{**small, "init_from": {"student": "coarse"}}), distilled)
    with pytest.raises(
        InvalidValueError, match=r"run tiny does not fit: its network is convolutional \(convnext_custom"
    ):
        check_init_from(adapt_recipe(**{**small, "init_from": {"student": "conv"}}), distilled)
    with pytest.raises(InvalidValueError, match="no student was named"):
        check_init_from(adapt_recipe(), distilled)


@pytest.mark.parametrize("key", ["global_px", "local_px", "gram_px"])
def test_adapt__refuses_sizes_of_crops_that_are_not_whole_patches(key: str) -> None:
    sizes = {"global_px": 16, "local_px": 8, "gram_px": 32, "weight": 1.0}
    with pytest.raises(InvalidValueError, match=rf"crop_sizes\[1\].{key} 11 is not a multiple of model.patch_px 4"):
        adapt_recipe(crop_sizes=[sizes, {**sizes, key: 11}])


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"global_px": 24}, r"augmentation.global_px 16, .* is none of those of crop_sizes: 24. Set .* to 24"),
        ({"gram_px": 32}, "crop_sizes has a gram_px, but objective.gram.weight is 0"),
    ],
)
def test_adapt__refuses_sizes_of_crops_that_would_not_be_used(sizes: dict[str, int], told: str) -> None:
    with pytest.raises(InvalidValueError, match=told):
        adapt_recipe(crop_sizes=[{"global_px": 16, "local_px": 8, "weight": 1.0, **sizes}])


@pytest.mark.parametrize("steps", [-100, 0, True, 10**400])
def test_adapt__says_what_is_wrong_with_the_steps_and_nothing_else(steps: int) -> None:
    tree = adapt_recipe().model_dump()
    del tree["objective"]["teacher_temperature_warmup_steps"]
    tree["training"] = {"steps": steps, "slot_batch": 4, "global_batch": 16}
    try:
        recipe = AdaptRecipe.model_validate(tree)
    except ValidationError as error:
        assert {problem["loc"] for problem in error.errors()} == {("training", "steps")}
    else:
        assert recipe.training.warmup_steps == steps // 10


def test_adapt__anchors_to_what_it_began_with() -> None:
    recipe = adapt_recipe(objective={"gram": {"weight": 2.0}})
    assert recipe.gram_px == 2 * recipe.augmentation.global_px


def test_adapt__from_a_backbone_alone_lets_the_heads_learn_first() -> None:
    headless = {"init_from": {"weights": "backbone.safetensors", "run": None}}
    assert adapt_recipe(**headless).training.freeze_backbone_steps == 2
    assert adapt_recipe(**headless).training.unfreeze_steps == 2
    assert adapt_recipe(**headless, training={"freeze_backbone_steps": 0}).training.freeze_backbone_steps == 0
    assert adapt_recipe().training.freeze_backbone_steps == 0
    with pytest.raises(InvalidValueError, match=r"model.depth is 2 there and 1 here.*Set model.depth to 2"):
        check_backbone(adapt_recipe(**headless, model={"depth": 1}), tiny_recipe().model)


@pytest.mark.parametrize(
    ("init_from", "told"),
    [
        ({}, "and neither is set"),
        ({"run": "tiny", "weights": "dinov2_vits14"}, "and both are set"),
        ({"weights": "dinov2_vits14", "step": 3}, "init_from.step and init_from.student are of a run"),
    ],
)
def test_adapt__begins_with_one_thing(init_from: dict[str, Any], told: str) -> None:
    tree = adapt_recipe().model_dump()
    with pytest.raises(InvalidValueError, match=told):
        AdaptRecipe.model_validate({**tree, "init_from": init_from})


def test_adapt__refuses_a_backbone_that_never_learns() -> None:
    with pytest.raises(InvalidValueError, match=r"are 25 together, more than training.steps 20"):
        adapt_recipe(training={"freeze_backbone_steps": 15, "unfreeze_steps": 10})


@pytest.mark.parametrize(
    ("freeze", "unfreeze", "expected"),
    [
        (2, 0, [1, 1, 0, 0]),
        (1, 2, [1, 2 / 3, 1 / 3, 0]),
        (0, 3, [3 / 4, 2 / 4, 1 / 4, 0]),
        (0, 0, [0, 0, 0, 0]),
    ],
)
def test_frozen_depth__falls_from_all_to_nothing(freeze: int, unfreeze: int, expected: list[float]) -> None:
    training = adapt_recipe(training={"freeze_backbone_steps": freeze, "unfreeze_steps": unfreeze}).training
    assert [training.frozen_depth(step) for step in range(4)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("init_from", "expected"),
    [({"run": "tiny"}, "default"), ({"weights": "w", "run": None}, "a share of training.steps")],
)
def test_adapt__says_where_its_schedules_come_from(init_from: dict[str, Any], expected: str) -> None:
    recipe = adapt_recipe(init_from=init_from)
    assert recipe.training.origin_of_unset("freeze_backbone_steps") == expected
    assert recipe.training.origin_of_unset("warmup_steps") == "a share of training.steps"
    assert recipe.objective.origin_of_unset("teacher_temperature_warmup_steps") == "a share of training.steps"
    assert recipe.training.origin_of_unset("clip_norm") == "default"
