import os
import sys
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import ray
import torch
from support.worlds import samples_at, step_input, tiny_recipe

from heliostat.config.model import RopeConfig
from heliostat.data.augment import all_crops, undistorted_crops
from heliostat.data.draws import Draws
from heliostat.data.images import decode_rgb
from heliostat.data.slots import SlotPlan
from heliostat.data.stream import Samples, WorkerShare
from heliostat.errors import CorruptShardError, RejectedImageError
from heliostat.models.normalise import normalise
from heliostat.models.positions import draw_rope_jitter
from heliostat.objectives.masking import draw_drops, draw_masks
from heliostat.training.feed import Feeder, SlotInput, StepInput, feed, prepare_slot, slot_batch

RECIPE = tiny_recipe()
SLOTS = RECIPE.training.slots
ALONE = SlotPlan(SLOTS, 1)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A small Ray of our own whose workers see the test's modules, and gone at the end."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    paths = os.pathsep.join(sys.path)
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield
    ray.shutdown()


def stream(plan: SlotPlan, rank: int, first_step: int, steps: int) -> Iterator[Samples]:
    share = WorkerShare(plan, rank, RECIPE.training.slot_batch)
    return (samples_at(share.positions(step)) for step in range(first_step, steps))


def made_by(feeder: Feeder) -> list[StepInput]:
    return list(iter(feeder.next, None))


def assert_same_slot(mine: SlotInput, theirs: SlotInput) -> None:
    assert mine.ids == theirs.ids
    np.testing.assert_array_equal(mine.crops.global_crops, theirs.crops.global_crops)
    np.testing.assert_array_equal(mine.crops.local_crops, theirs.crops.local_crops)
    assert torch.equal(mine.masks, theirs.masks)
    assert str(mine.drops) == str(theirs.drops)


def test_feeder__makes_every_step_in_order_and_ends() -> None:
    steps = made_by(Feeder(RECIPE, ALONE, 0, 3, lambda: stream(ALONE, 0, 3, 8)))
    assert [step.step for step in steps] == [3, 4, 5, 6, 7]
    assert all(len(step.slots) == SLOTS for step in steps)


def test_feeder__a_slot_is_the_same_on_any_worker_and_after_any_resume() -> None:
    whole = {step.step: step for step in made_by(Feeder(RECIPE, ALONE, 0, 0, lambda: stream(ALONE, 0, 0, 6)))}
    plan = SlotPlan(SLOTS, 3)
    for rank in range(3):
        for step in made_by(Feeder(RECIPE, plan, rank, 4, partial(stream, plan, rank, 4, 6))):
            for slot, mine in zip(plan.slots_of(rank), step.slots, strict=True):
                assert_same_slot(mine, whole[step.step].slots[slot])


def test_prepare_slot__draws_depend_on_seed_step_slot_and_position_alone() -> None:
    positions = [40, 41, 42, 43]
    samples = samples_at(positions)
    prepared = prepare_slot(RECIPE, 9, 2, samples)
    assert prepared.ids == samples.ids
    for image, (position, data) in enumerate(zip(positions, samples.images, strict=True)):
        whole, local = all_crops(RECIPE.augmentation, RECIPE.seed, position, decode_rgb(data))
        np.testing.assert_array_equal(prepared.crops.global_crops[image::4], whole)
        np.testing.assert_array_equal(prepared.crops.local_crops[image::4], local)
    assert torch.equal(prepared.masks, draw_masks(Draws(7, "mask", 9, 2), 8, 4, 0.5, (0.1, 0.5)))
    assert str(prepared.drops) == str(draw_drops(7, 9, 2, 2, (8, 8), 0.1))


def test_slot_batch__normalises_and_keeps_the_draws() -> None:
    prepared = step_input(RECIPE, ALONE, 0, 1).slots[2]
    batch = slot_batch(prepared, torch.device("cpu"))
    assert torch.equal(batch.global_crops, normalise(prepared.crops.global_crops))
    assert torch.equal(batch.local_crops, normalise(prepared.crops.local_crops))
    assert torch.equal(batch.masks, prepared.masks)
    assert str(batch.drops) == str(prepared.drops)
    assert batch.ids == tuple(prepared.ids)
    assert (batch.jitters, batch.gram_crops) == (None, None)
    whole = SlotInput(prepared.ids, prepared.crops, prepared.masks, drops=None, jitters=None)
    assert slot_batch(whole, torch.device("cpu")).drops is None


def test_prepare_slot__makes_the_gram_teachers_crops() -> None:
    samples = samples_at([40, 41, 42, 43])
    recipe = tiny_recipe({"gram": {"weight": 2.0, "crop_px": 24}})
    prepared, without = prepare_slot(recipe, 9, 2, samples), prepare_slot(RECIPE, 9, 2, samples)
    crops = prepared.crops.gram_crops
    assert crops is not None
    assert crops.shape == (8, 24, 24, 3)
    for image, (position, data) in enumerate(zip(samples.positions, samples.images, strict=True)):
        expected = undistorted_crops(recipe.augmentation, recipe.seed, position, decode_rgb(data), 24)
        np.testing.assert_array_equal(crops[image::4], expected)
    assert without.crops.gram_crops is None
    assert_same_slot(prepared, without)  # they change nothing else
    batch = slot_batch(prepared, torch.device("cpu"))
    assert batch.gram_crops is not None
    assert torch.equal(batch.gram_crops, normalise(crops))
    doubled = prepare_slot(tiny_recipe({"gram": {"weight": 2.0}}), 9, 2, samples).crops.gram_crops
    assert doubled is not None
    assert doubled.shape == (8, 32, 32, 3)


def test_prepare_slot__draws_a_rotary_jitter_per_group_of_crops() -> None:
    samples = samples_at([40, 41, 42, 43])
    rope = RopeConfig(rescale=2.0, shift=0.1)
    model = RECIPE.model.model_copy(update={"position": "rope", "rope": rope})
    recipe = RECIPE.model_copy(update={"model": model})
    jitters = prepare_slot(recipe, 9, 2, samples).jitters
    assert jitters == tuple(draw_rope_jitter(rope, Draws(7, "rope", 9, 2, group)) for group in range(2))
    assert jitters is not None
    assert jitters[0] != jitters[1]
    assert slot_batch(prepare_slot(recipe, 9, 2, samples), torch.device("cpu")).jitters == jitters
    assert jitters not in (prepare_slot(recipe, 9, 3, samples).jitters, prepare_slot(recipe, 8, 2, samples).jitters)
    still = model.model_copy(update={"rope": RopeConfig(rescale=None)})
    assert prepare_slot(RECIPE.model_copy(update={"model": still}), 9, 2, samples).jitters == (None, None)


def test_feeder__an_image_that_cannot_be_decoded_is_named() -> None:
    positions = list(range(RECIPE.training.global_batch))
    broken = Samples(positions, ["00"] * len(positions), [b"no image"] * len(positions))
    with pytest.raises(RejectedImageError, match="HS-DATA-006"):
        Feeder(RECIPE, ALONE, 0, 0, lambda: [broken]).next()


def three_steps_and_an_error() -> Iterator[Samples]:
    yield from stream(ALONE, 0, 0, 3)
    raise CorruptShardError("row group 3 does not have the hash that the manifest names", "Restore it")


@pytest.mark.ray
def test_feed__brings_steps_from_its_process_and_then_the_error_itself(local_ray: None) -> None:
    steps = feed(RECIPE, ALONE, 0, 0, three_steps_and_an_error)
    expected = made_by(Feeder(RECIPE, ALONE, 0, 0, partial(stream, ALONE, 0, 0, 3)))
    for mine, theirs in zip(steps, expected, strict=False):
        assert mine.step == theirs.step
        for slot, other in zip(mine.slots, theirs.slots, strict=True):
            assert_same_slot(slot, other)
        if mine.step == 2:
            break
    with pytest.raises(CorruptShardError) as raised:
        next(steps)
    assert str(raised.value).startswith("HS-DATA-005: row group 3")


@pytest.mark.ray
def test_feed__its_process_ends_with_it(local_ray: None) -> None:
    steps = feed(RECIPE, ALONE, 0, 0, partial(stream, ALONE, 0, 0, 10**9))
    next(steps)
    steps.close()
    deadline = time.monotonic() + 30
    while any(actor["State"] != "DEAD" for actor in ray._private.state.actors().values()):
        assert time.monotonic() < deadline, "a feeder lives on"
        time.sleep(0.1)
