import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from support.slots import masks_of
from support.worlds import samples_at, step_input, tiny_recipe

from heliostat.config.model import RopeConfig
from heliostat.config.operation import StreamingConfig
from heliostat.data.crops import slot_crops
from heliostat.data.draws import Draws
from heliostat.data.photometric_torch import apply_photometric
from heliostat.data.samples import Samples, WorkerShare
from heliostat.data.slots import SlotPlan
from heliostat.errors import CorruptShardError, DecoderCrashedError, RejectedImageError
from heliostat.models.normalise import normalise
from heliostat.models.positions import draw_rope_jitter
from heliostat.objectives.masking import draw_drops, draw_masks
from heliostat.training.feed import Feed, Feeder, SlotInput, StepInput, prepare_slot, slot_batch

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
        resources={"data_pool": 1},
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield
    ray.shutdown()


def stream_from(plan: SlotPlan, rank: int, first_step: int) -> Iterator[Samples]:
    share = WorkerShare(plan, rank, RECIPE.training.slot_batch)
    return (samples_at(share.positions(step)) for step in itertools.count(first_step))


def made_by(feeder: Feeder, plan: SlotPlan, rank: int, steps: range) -> list[StepInput]:
    return [StepInput(step, slots_of(feeder, plan, rank, step)) for step in steps]


def slots_of(feeder: Feeder, plan: SlotPlan, rank: int, step: int) -> list[SlotInput]:
    read = feeder.read(step)
    samples = read if isinstance(read, list) else [read]
    return [feeder.prepare(step, slot, part) for slot, part in zip(plan.slots_of(rank), samples, strict=True)]


def feeder_of(plan: SlotPlan, rank: int) -> Feeder:
    return Feeder(RECIPE, partial(stream_from, plan, rank), photometric=True)


def assert_same_slot(mine: SlotInput, theirs: SlotInput) -> None:
    assert mine.ids == theirs.ids
    np.testing.assert_array_equal(mine.crops.global_crops, theirs.crops.global_crops)
    np.testing.assert_array_equal(mine.crops.local_crops, theirs.crops.local_crops)
    assert torch.equal(masks_of(mine), masks_of(theirs))
    assert str(mine.drops) == str(theirs.drops)


def test_feeder__a_slot_is_the_same_on_any_worker_and_after_any_resume() -> None:
    whole = made_by(feeder_of(ALONE, 0), ALONE, 0, range(6))
    assert all(len(step.slots) == SLOTS for step in whole)
    for world_size in (3, SLOTS):  # of four workers, each has a single slot
        plan = SlotPlan(SLOTS, world_size)
        for rank in range(world_size):
            for step in made_by(feeder_of(plan, rank), plan, rank, range(4, 6)):
                for slot, mine in zip(plan.slots_of(rank), step.slots, strict=True):
                    assert_same_slot(mine, whole[step.step].slots[slot])


def test_feeder__in_a_new_process_goes_on_at_the_step_it_is_asked_for() -> None:
    opened = []

    def stream(first_step: int) -> Iterator[Samples]:
        opened.append(first_step)
        return stream_from(ALONE, 0, first_step)

    feeder = Feeder(RECIPE, stream, photometric=True)
    for step in (5, 6, 7, 6, 7, 8):
        mine, theirs = slots_of(feeder, ALONE, 0, step), step_input(RECIPE, ALONE, 0, step).slots
        for slot, other in zip(mine, theirs, strict=True):
            assert_same_slot(slot, other)
    assert opened == [5, 6]  # a step that was lost is read again; the rest is one stream


def test_prepare_slot__draws_depend_on_seed_step_slot_and_position_alone() -> None:
    positions = [40, 41, 42, 43]
    samples = samples_at(positions)
    prepared = prepare_slot(RECIPE, 9, 2, samples)
    assert prepared.ids == samples.ids
    for image, (position, data) in enumerate(zip(positions, samples.images, strict=True)):
        alone = slot_crops(RECIPE.augmentation, RECIPE.seed, [position], [data])
        np.testing.assert_array_equal(prepared.crops.global_crops[image::4], alone.global_crops)
        np.testing.assert_array_equal(prepared.crops.local_crops[image::4], alone.local_crops)
    assert torch.equal(masks_of(prepared), draw_masks(Draws(7, "mask", 9, 2), 8, 4, 0.5, (0.1, 0.5)))
    assert str(prepared.drops) == str(draw_drops(7, 9, 2, 2, (8, 8), 0.1))


def test_slot_batch__normalises_and_keeps_the_draws() -> None:
    prepared = step_input(RECIPE, ALONE, 0, 1).slots[2]
    batch = slot_batch(prepared, torch.device("cpu"))
    assert torch.equal(batch.global_crops, normalise(prepared.crops.global_crops))
    assert torch.equal(batch.local_crops, normalise(prepared.crops.local_crops))
    assert torch.equal(masks_of(batch), masks_of(prepared))
    assert str(batch.drops) == str(prepared.drops)
    assert batch.ids == tuple(prepared.ids)
    assert (batch.jitters, batch.gram_crops) == (None, None)
    whole = replace(prepared, drops=None)
    assert slot_batch(whole, torch.device("cpu")).drops is None


def test_slot_batch__changes_colours_that_were_left_to_the_device() -> None:
    samples = samples_at([40, 41, 42, 43])
    prepared = prepare_slot(RECIPE, 9, 2, samples, photometric=False)
    assert prepared.crops.photometric is not None
    batch = slot_batch(prepared, torch.device("cpu"))
    for mine, crops, plan in zip(
        (batch.global_crops, batch.local_crops),
        (prepared.crops.global_crops, prepared.crops.local_crops),
        prepared.crops.photometric,
        strict=True,
    ):
        assert torch.equal(mine, normalise(apply_photometric(torch.from_numpy(crops), plan)))
    done = slot_batch(prepare_slot(RECIPE, 9, 2, samples), torch.device("cpu"))
    assert (batch.global_crops - done.global_crops).abs().mean() < 0.05  # of a deviation; see photometric_torch
    prepared.crops.global_crops.flags.writeable = False  # as what comes out of Ray is
    assert torch.equal(slot_batch(prepared, torch.device("cpu")).global_crops, batch.global_crops)


def test_prepare_slot__makes_the_gram_teachers_crops() -> None:
    samples = samples_at([40, 41, 42, 43])
    recipe = tiny_recipe({"gram": {"weight": 2.0, "crop_px": 24}})
    prepared, without = prepare_slot(recipe, 9, 2, samples), prepare_slot(RECIPE, 9, 2, samples)
    crops = prepared.crops.gram_crops
    assert crops is not None
    assert crops.shape == (8, 24, 24, 3)
    expected = slot_crops(recipe.augmentation, recipe.seed, samples.positions, samples.images, 24).gram_crops
    np.testing.assert_array_equal(crops, expected)
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


def test_prepare_slot__counts_the_bytes_it_was_given() -> None:
    samples = replace(samples_at([40, 41, 42, 43]), bytes_read=1234)
    prepared = prepare_slot(RECIPE, 9, 2, samples)
    assert (prepared.bytes_read, prepared.bytes_used) == (1234, sum(map(len, samples.images)))


def test_prepare_slot__an_image_that_cannot_be_decoded_is_named() -> None:
    with pytest.raises(RejectedImageError, match="HS-DATA-006"):
        prepare_slot(RECIPE, 0, 0, Samples([0] * 4, ["00"] * 4, [b"no image"] * 4))


# In processes of their own


def feed(stream: Callable[[int], Iterator[Samples]], plan: SlotPlan = ALONE, rank: int = 0, **streaming: Any) -> Feed:
    recipe = RECIPE.model_copy(update={"streaming": StreamingConfig(**streaming)})
    return Feed(recipe, plan, rank, 0, stream)


def assert_all_dead() -> None:
    deadline = time.monotonic() + 30
    while any(actor["State"] != "DEAD" for actor in ray._private.state.actors().values()):
        assert time.monotonic() < deadline, "a feeder lives on"
        time.sleep(0.1)


@contextmanager
def closing(feed: Feed) -> Iterator[Feed]:
    try:
        yield feed
    finally:
        feed.close()
        assert_all_dead()


def assert_next_is(feed: Feed, step: int, plan: SlotPlan = ALONE, rank: int = 0) -> StepInput:
    mine = feed.take()
    assert mine.step == step
    for slot, other in zip(mine.slots, step_input(RECIPE, plan, rank, step).slots, strict=True):
        assert_same_slot(slot, other)
    return mine


def three_steps_and_an_error(first_step: int) -> Iterator[Samples]:
    for step, samples in enumerate(stream_from(ALONE, 0, first_step), first_step):
        if step == 3:
            raise CorruptShardError("row group 3 does not have the hash that the manifest names", "Restore it")
        yield samples


@pytest.mark.ray
@pytest.mark.parametrize("crop_processes", [1, 3])
def test_feed__brings_steps_and_then_the_error_itself(local_ray: None, crop_processes: int) -> None:
    with closing(feed(three_steps_and_an_error, crop_processes=crop_processes)) as steps:
        for step in range(3):
            assert_next_is(steps, step)
        with pytest.raises(CorruptShardError) as raised:
            steps.take()
        assert str(raised.value).startswith("HS-DATA-005: row group 3")


@pytest.mark.ray
def test_feed__a_worker_of_one_slot_whose_crops_are_made_on_a_pool(local_ray: None) -> None:
    plan = SlotPlan(SLOTS, SLOTS)
    with closing(feed(partial(stream_from, plan, 2), plan, 2, crops_on="pool")) as steps:
        deadline = time.monotonic() + 30  # Ray tells of what is taken with a delay
        while ray.available_resources().get("data_pool", 0):
            assert time.monotonic() < deadline, "no unit of the pool is taken"
            time.sleep(0.1)
        for step in range(3):
            assert_next_is(steps, step, plan, 2)


@pytest.mark.ray
def test_feed__is_ready_only_when_all_is_there(local_ray: None, tmp_path: Path) -> None:
    def late(first_step: int) -> Iterator[Samples]:
        for step, samples in enumerate(stream_from(ALONE, 0, first_step), first_step):
            while step == 1 and not (tmp_path / "go").exists():
                time.sleep(0.02)
            yield samples

    with closing(feed(late)) as steps:
        assert steps.ready(60)
        assert_next_is(steps, 0)
        assert not steps.ready(0.2)
        (tmp_path / "go").touch()
        assert steps.ready(60)
        assert_next_is(steps, 1)


def poisoned(plan: SlotPlan, folder: Path, deaths: int) -> Callable[[int], Iterator[Samples]]:
    """A stream that kills its process in step 1, so many times: as an image does on which a decoder aborts."""

    def stream(first_step: int) -> Iterator[Samples]:
        for step, samples in enumerate(stream_from(plan, 0, first_step), first_step):
            if step == 1 and len(list(folder.iterdir())) < deaths:
                (folder / f"{os.getpid()}").touch()
                os.abort()
            yield samples

    return stream


@pytest.mark.ray
def test_feed__a_process_that_aborts_is_replaced_and_nothing_is_lost(local_ray: None, tmp_path: Path) -> None:
    # One slot and two processes: the one that reads makes every other step only, and dies before one that it does not.
    plan = SlotPlan(SLOTS, SLOTS)
    with closing(feed(poisoned(plan, tmp_path, deaths=2), plan, 0, crop_processes=2)) as steps:
        deaths = [death for step in range(4) for death in assert_next_is(steps, step, plan, 0).deaths]
    assert len(list(tmp_path.iterdir())) == len(deaths) == 2


def abort_elsewhere(test: int) -> bytes:
    if os.getpid() != test:
        os.abort()
    return b""


class Poison(bytes):
    """Kills the process that receives it, but for the one it names: as an image does on which a decoder aborts."""

    def __reduce__(self) -> tuple[Callable[[int], bytes], tuple[int]]:
        return abort_elsewhere, (int(self),)


@pytest.mark.ray
def test_feed__an_image_that_kills_its_process_every_time_ends_the_run_by_name(local_ray: None) -> None:
    test = str(os.getpid()).encode()

    def stream(first_step: int) -> Iterator[Samples]:
        for samples in stream_from(ALONE, 0, first_step):
            yield replace(samples, images=[*samples.images[:5], Poison(test), *samples.images[6:]])

    with closing(feed(stream)) as steps, pytest.raises(DecoderCrashedError, match="died 3 times over step 0") as raised:
        steps.take()
    assert ", ".join(name[:16] for name in samples_at([4, 5, 6, 7]).ids) in str(raised.value)
