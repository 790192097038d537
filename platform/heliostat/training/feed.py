"""From the sample stream to what a training step takes, made ahead of it in a process of its own."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.crops import SlotCrops, slot_crops
from heliostat.data.draws import Draws
from heliostat.data.slots import SlotPlan
from heliostat.data.stream import Samples
from heliostat.models.block import DropPlan
from heliostat.models.normalise import normalise
from heliostat.models.positions import RopeJitter, draw_rope_jitter
from heliostat.objectives.masking import draw_drops, draw_masks
from heliostat.objectives.networks import SlotBatch

_STEPS_AHEAD = 2


@dataclass(frozen=True, slots=True)
class SlotInput:
    """One slot, decoded and drawn, still as bytes in host memory."""

    ids: list[str]
    crops: SlotCrops
    masks: Tensor
    drops: DropPlan | None
    jitters: tuple[RopeJitter | None, RopeJitter | None] | None


@dataclass(frozen=True, slots=True)
class StepInput:
    """A worker's slots of one step."""

    step: int
    slots: list[SlotInput]


def prepare_slot(recipe: PretrainRecipe, step: int, slot: int, samples: Samples) -> SlotInput:
    """Decode, crop and draw one slot; draws are functions of seed, step and slot, or position and view."""
    training, augmentation, objective = recipe.training, recipe.augmentation, recipe.objective
    gram = objective.anchoring
    gram_px = recipe.gram_px if gram is not None and step >= gram.from_step else None
    crops = slot_crops(augmentation, recipe.seed, samples.positions, samples.images, gram_px)
    rope = recipe.model.rotary
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
        jitters=(
            None
            if rope is None
            else (
                draw_rope_jitter(rope, Draws(recipe.seed, "rope", step, slot, 0)),
                draw_rope_jitter(rope, Draws(recipe.seed, "rope", step, slot, 1)),
            )
        ),
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
    drops, gram_crops = slot.drops, slot.crops.gram_crops
    return SlotBatch(
        global_crops=normalise(slot.crops.global_crops, device),
        local_crops=normalise(slot.crops.local_crops, device),
        masks=slot.masks.to(device),
        drops=drops
        and [
            ([index.to(device) for index in attention], [index.to(device) for index in feed_forward])
            for attention, feed_forward in drops
        ],
        jitters=slot.jitters,
        gram_crops=None if gram_crops is None else normalise(gram_crops, device),
        ids=tuple(slot.ids),
    )


class Feeder:
    """A process beside a worker that makes its steps: reads the stream, decodes, crops, draws.

    Not a thread of the worker: Ray Data's executor and the drawing of crops are Python, and whenever they hold its
    lock, every one of the thousand operators of a training step waits for it (measured: steps took 2.5 times as long).
    """

    def __init__(
        self,
        recipe: PretrainRecipe,
        plan: SlotPlan,
        rank: int,
        first_step: int,
        stream: Callable[[], Iterable[Samples]],
    ) -> None:
        self._inputs = (
            prepare_step(recipe, plan, rank, step, samples) for step, samples in enumerate(stream(), first_step)
        )

    def next(self) -> StepInput | None:
        """The next step, or None after the last."""
        return next(self._inputs, None)


def feed(
    recipe: PretrainRecipe, plan: SlotPlan, rank: int, first_step: int, stream: Callable[[], Iterable[Samples]]
) -> Generator[StepInput]:
    """Prepared steps from ``first_step`` on, made ahead of their use by a ``Feeder`` on the same node; needs Ray.

    Raises:
        HeliostatError: what went wrong in the stream, as the worker's own error.
    """
    import ray
    from ray.exceptions import RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    feeder = ray.remote(num_cpus=0, scheduling_strategy=here)(Feeder).remote(recipe, plan, rank, first_step, stream)
    ahead = deque(feeder.next.remote() for _ in range(_STEPS_AHEAD))
    try:
        while True:
            try:
                prepared: StepInput | None = ray.get(ahead.popleft())
            except RayTaskError as error:
                raise error.cause from None
            if prepared is None:
                return
            ahead.append(feeder.next.remote())
            yield prepared
    finally:
        ray.kill(feeder)
