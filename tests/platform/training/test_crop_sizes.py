"""Several resolutions in one run: one of them for each step, the same on all workers."""

from collections import Counter
from typing import Any

import pytest
from support.worlds import CPU_DEVICE, step_input, tiny_recipe

from heliostat.config.adapt import AdaptRecipe
from heliostat.data.slots import SlotPlan
from heliostat.training.crop_sizes import of_step
from heliostat.training.feed import slot_batch
from heliostat.training.planning.flops import step_flops
from heliostat.training.planning.networks import Networks

SIZES = (
    {"global_px": 16, "local_px": 8, "gram_px": 24, "weight": 3.0},
    {"global_px": 24, "local_px": 12, "gram_px": 32, "weight": 1.0},
    {"global_px": 32, "local_px": 12, "weight": 6.0},
)


def mixed_recipe(**changes: Any) -> AdaptRecipe:
    tree = tiny_recipe(objective={"gram": {"weight": 1.0}}).model_dump()
    tree |= {"kind": "adapt", "init_from": {"run": "tiny"}, "crop_sizes": list(SIZES), **changes}
    return AdaptRecipe.model_validate(tree)


def test_of_step__takes_each_size_as_often_as_it_weighs() -> None:
    recipe, steps = mixed_recipe(), 4000
    found = Counter(of_step(recipe, step).augmentation.global_px for step in range(steps))
    for sizes in SIZES:
        share = sizes["weight"] / 10
        spread = (steps * share * (1 - share)) ** 0.5
        assert abs(found[int(sizes["global_px"])] - steps * share) < 4 * spread


def test_of_step__gives_what_it_always_gave() -> None:
    sides = [of_step(mixed_recipe(seed=7), step).augmentation.global_px for step in range(12)]
    assert sides == [24, 32, 16, 32, 16, 16, 32, 32, 32, 32, 16, 16]


@pytest.mark.parametrize("step", range(6))
def test_step_input__has_the_crops_and_masks_of_the_step_on_every_worker(step: int) -> None:
    recipe = mixed_recipe()
    chosen = of_step(recipe, step)
    side, local = chosen.augmentation.global_px, chosen.augmentation.local_px
    gram = {16: 24, 24: 32, 32: 64}[side]
    for rank in range(2):
        for prepared in step_input(recipe, SlotPlan(recipe.training.slots, 2), rank, step).slots:
            slot = slot_batch(prepared, CPU_DEVICE)
            assert slot.global_crops.shape[2:] == (side, side)
            assert slot.local_crops.shape[2:] == (local, local)
            assert slot.gram_crops is not None
            assert slot.gram_crops.shape[2:] == (gram, gram)
            assert slot.masks is not None
            assert slot.masks.shape[1] == (side // recipe.model.patch_px) ** 2


def test_networks__count_the_operations_of_all_sizes_and_the_memory_of_the_largest() -> None:
    recipe = mixed_recipe()
    each = [recipe.at_sizes(sizes) for sizes in recipe.crop_sizes]
    shares = [sizes.weight / 10 for sizes in recipe.crop_sizes]
    expected = sum(share * step_flops(sized, 2).model for share, sized in zip(shares, each, strict=True))
    assert Networks.of(recipe).flops(2).model == pytest.approx(expected)
    largest = max(Networks.of(sized).memory(2).device_bytes for sized in each)
    assert Networks.of(recipe).memory(2).device_bytes == largest > Networks.of(each[0]).memory(2).device_bytes
