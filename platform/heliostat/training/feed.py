"""From the sample stream to what a training step takes, one step ahead of the trainer in a thread of its own.

Decoding and cropping release Python's lock for most of their time, so they overlap with the step.
"""

import queue
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.crops import SlotCrops, slot_crops
from heliostat.data.draws import Draws
from heliostat.data.slots import SlotPlan
from heliostat.data.stream import Samples
from heliostat.models.normalise import normalise
from heliostat.models.vit import DropPlan
from heliostat.objectives.masking import draw_drops, draw_masks
from heliostat.objectives.networks import SlotBatch

_STEPS_AHEAD = 2
_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class SlotInput:
    """One slot, decoded and drawn, still as bytes in host memory."""

    ids: list[str]
    crops: SlotCrops
    masks: Tensor
    drops: DropPlan | None


@dataclass(frozen=True, slots=True)
class StepInput:
    """A worker's slots of one step."""

    step: int
    slots: list[SlotInput]


def prepare_slot(recipe: PretrainRecipe, step: int, slot: int, samples: Samples) -> SlotInput:
    """Decode, crop and draw one slot; draws are functions of seed, step and slot, or position and view."""
    training, augmentation, objective = recipe.training, recipe.augmentation, recipe.objective
    crops = slot_crops(augmentation, recipe.seed, samples.positions, samples.images)
    whole, local = 2 * training.slot_batch, augmentation.local_count * training.slot_batch
    return SlotInput(
        ids=samples.ids,
        crops=crops,
        masks=draw_masks(
            Draws(recipe.seed, "mask", step, slot),
            whole,
            augmentation.global_px // recipe.model.patch_px,
            objective.mask_probability,
            objective.mask_ratio,
        ),
        drops=draw_drops(recipe.seed, step, slot, recipe.model.depth, (whole, local), recipe.model.drop_path),
    )


def prepare_step(recipe: PretrainRecipe, plan: SlotPlan, rank: int, step: int, samples: Samples) -> StepInput:
    """A worker's samples of a step, split into its slots."""
    size = recipe.training.slot_batch
    slots = [
        prepare_slot(
            recipe,
            step,
            slot,
            Samples(
                samples.positions[index * size : (index + 1) * size],
                samples.ids[index * size : (index + 1) * size],
                samples.images[index * size : (index + 1) * size],
            ),
        )
        for index, slot in enumerate(plan.slots_of(rank))
    ]
    return StepInput(step, slots)


def slot_batch(slot: SlotInput, device: torch.device) -> SlotBatch:
    """Move a slot to the device and normalise its crops there."""
    drops = slot.drops
    return SlotBatch(
        global_crops=normalise(slot.crops.global_crops, device),
        local_crops=normalise(slot.crops.local_crops, device),
        masks=slot.masks.to(device),
        drops=drops
        and [
            ([index.to(device) for index in attention], [index.to(device) for index in feed_forward])
            for attention, feed_forward in drops
        ],
    )


def feed(
    recipe: PretrainRecipe, plan: SlotPlan, rank: int, first_step: int, stream: Iterable[Samples]
) -> Generator[StepInput]:
    """Prepared steps, from ``first_step`` on, made ahead of their use; an error of the stream is raised here."""
    ready: queue.Queue[StepInput | BaseException | None] = queue.Queue(maxsize=_STEPS_AHEAD)
    stopped = threading.Event()

    def put(item: StepInput | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step, samples in enumerate(stream, first_step):
                if stopped.is_set():
                    return
                put(prepare_step(recipe, plan, rank, step, samples))
            put(None)
        except BaseException as error:  # the trainer's thread raises it
            put(error)

    thread = threading.Thread(target=work, name="heliostat-feed", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join(_STOP_S)  # a stream that hangs must not keep the worker from ending
