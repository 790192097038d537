"""From the sample stream to what a training step takes, made ahead of it in a process of its own."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliostat.config.distill import DistillRecipe
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.training import TrainingRecipe
from heliostat.data.crops import SlotCrops, slot_crops
from heliostat.data.draws import Draws
from heliostat.data.photometric_torch import apply_photometric
from heliostat.data.samples import Samples
from heliostat.data.slots import SlotPlan
from heliostat.elastic.standby import import_hook
from heliostat.errors import DecoderCrashedError
from heliostat.models.block import DropPlan
from heliostat.models.normalise import normalise
from heliostat.models.positions import RopeJitter, draw_rope_jitter
from heliostat.objectives.kept_views import Kept, parse_kept
from heliostat.objectives.masking import draw_drops, draw_masks
from heliostat.objectives.networks import SlotBatch
from heliostat.training.crop_sizes import of_step

_STEPS_AHEAD = 2
"""What waits beside a worker is two steps of crops: per image 2 P² 3 bytes and its local crops, 0.53 MB by default."""
_ATTEMPTS = 3
_LAST_WORDS_S = 10.0
_POLL_S = 60.0

KEEP_MEMORY_ENV = {
    # glibc gives large blocks back to the system at once and asks for them again in the next layer or image; page
    # faults then cost more than small models compute.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""Environment of processes that use the same large blocks again and again."""

Jitters = tuple[RopeJitter | None, RopeJitter | None]
StreamFrom = Callable[[int], Iterable[Samples]]
"""Samples of each step from a step on."""


@dataclass(frozen=True, slots=True)
class SlotInput:
    """One slot, decoded and drawn, still as bytes in host memory."""

    ids: list[str]
    bytes_read: int
    """What storage gave, to bring this slot and others."""
    retries: int
    """Requests that had to be repeated for it."""
    bytes_used: int
    """Size of the slot's encoded images."""
    crops: SlotCrops
    masks: Tensor | None
    """None where students see whole crops."""
    drops: DropPlan | None
    jitters: Jitters | None
    kept: Kept | None = None
    """What the teacher says of it, where that was kept."""
    labels: list[int] | None = None
    """Classes of the images, where something learns them."""

    def __reduce__(self) -> tuple[Callable[..., "SlotInput"], tuple[Any, ...]]:
        # Draws travel as arrays: torch pickles each of the fifty tensors of a slot as a file of its own, and reads it
        # as one, for which a slot's crops could be made again in a third of the time.
        drops: Any = self.drops and [[[each.numpy() for each in group] for group in block] for block in self.drops]
        names = ("ids", "bytes_read", "retries", "bytes_used", "crops", "jitters", "kept", "labels")
        whole = {name: getattr(self, name) for name in names}
        return _received, (whole, None if self.masks is None else self.masks.numpy(), drops)


def _received(whole: dict[str, Any], masks: Any, drops: Any) -> SlotInput:
    """A slot that came from another process: see ``SlotInput.__reduce__``."""
    blocks = drops and [
        (list(map(_writable, attention)), list(map(_writable, feed_forward))) for attention, feed_forward in drops
    ]
    return SlotInput(**whole, masks=None if masks is None else _writable(masks), drops=blocks)


def _writable(array: NDArray[Any]) -> Tensor:
    """A tensor over a copy: torch has none that are read-only, as Ray's memory is."""
    return torch.from_numpy(array.copy())


@dataclass(frozen=True, slots=True)
class StepInput:
    """A worker's slots of one step."""

    step: int
    slots: list[SlotInput]
    deaths: tuple[str, ...] = ()
    """What feeders died of while the step was made, if any did."""


def prepare_slot(
    recipe: TrainingRecipe, step: int, slot: int, samples: Samples, *, photometric: bool = True
) -> SlotInput:
    """Decode, crop and draw one slot; draws are functions of seed, step and slot, or position and view.

    Args:
        recipe: Of the run.
        step: Of the run.
        slot: Of the step.
        samples: The slot's images.
        photometric: Whether colours change here; otherwise ``slot_batch`` does it.
    """
    recipe = of_step(recipe, step)
    gram = recipe.objective.anchoring
    gram_px = recipe.gram_px if gram is not None and step >= gram.from_step else None
    # Draws of a crop belong to its place in the run, or to the image itself.
    keys = [int(name[:15], 16) for name in samples.ids] if recipe.augmentation.fixed else samples.positions
    crops = slot_crops(recipe.augmentation, recipe.seed, keys, samples.images, gram_px, photometric=photometric)
    masks, drops, jitters = _draws(recipe, step, slot) if isinstance(recipe, PretrainRecipe) else (None, None, None)
    return SlotInput(
        ids=samples.ids,
        bytes_read=samples.bytes_read,
        retries=samples.retries,
        bytes_used=sum(map(len, samples.images)),
        crops=crops,
        masks=masks,
        drops=drops,
        jitters=jitters,
        kept=parse_kept(recipe, samples.views) if isinstance(recipe, DistillRecipe) and samples.views else None,
        labels=samples.labels or None,
    )


def _draws(recipe: PretrainRecipe, step: int, slot: int) -> tuple[Tensor, DropPlan | None, Jitters | None]:
    """What hides parts of a slot from its student: masks, stochastic depth, jitter of positions."""
    augmentation, objective, rope = recipe.augmentation, recipe.objective, recipe.model.rotary
    whole, local = (count * recipe.training.slot_batch for count in (2, augmentation.local_count))
    masks = draw_masks(
        Draws(recipe.seed, "mask", step, slot),
        whole,
        augmentation.global_px // recipe.model.patch_px,
        objective.mask_probability,
        objective.mask_ratio,
    )
    drops = draw_drops(recipe.seed, step, slot, recipe.model.depth, (whole, local), recipe.model.drop_path)
    if rope is None:
        return masks, drops, None
    first, second = (draw_rope_jitter(rope, Draws(recipe.seed, "rope", step, slot, group)) for group in range(2))
    return masks, drops, (first, second)


def slot_batch(slot: SlotInput, device: torch.device) -> SlotBatch:
    """Move a slot to the device, and do there what is left to do: colours, if the slot came without, and normalise."""
    crops, drops = slot.crops, slot.drops
    whole, local = _on_device(crops.global_crops, device), _on_device(crops.local_crops, device)
    if crops.photometric is not None:
        of_whole, of_local = crops.photometric
        whole, local = apply_photometric(whole, of_whole), apply_photometric(local, of_local)
    return SlotBatch(
        global_crops=normalise(whole),
        local_crops=normalise(local),
        masks=None if slot.masks is None else slot.masks.to(device),
        drops=drops
        and [
            ([index.to(device) for index in attention], [index.to(device) for index in feed_forward])
            for attention, feed_forward in drops
        ],
        jitters=slot.jitters,
        gram_crops=None if crops.gram_crops is None else normalise(_on_device(crops.gram_crops, device)),
        ids=tuple(slot.ids),
        kept=None if slot.kept is None else _writable(slot.kept).to(device),
        labels=None if slot.labels is None else torch.tensor(slot.labels, device=device),
    )


def _on_device(crops_NPPC: NDArray[np.uint8], device: torch.device) -> Tensor:
    crops = torch.from_numpy(crops_NPPC) if crops_NPPC.flags.writeable else _writable(crops_NPPC)
    return crops.to(device, non_blocking=True)


def feeder_env(of_worker: Mapping[str, str]) -> dict[str, str]:
    """Environment variables of a feeder, besides those of its worker."""
    hook = import_hook("heliostat.training.warm_up.of_feeder")
    own = hook if hook.keys() <= of_worker.keys() else {}
    return {**KEEP_MEMORY_ENV, "OMP_NUM_THREADS": "1", **own}


class Feeder:
    """A process that reads the stream of a worker and turns slots into what a step takes: decodes, crops, draws.

    Not a thread of the worker: Ray Data's executor and the drawing of crops are Python, and whenever they hold its
    lock, every one of the thousand operators of a training step waits for it (measured: steps took 2.5 times as long).
    Both methods give the same for the same arguments at any time, so that another process can do them again.
    """

    def __init__(self, recipe: TrainingRecipe, stream: StreamFrom, photometric: bool) -> None:
        self._recipe = recipe
        self._stream_from = stream
        self._photometric = photometric
        self._stream: Iterator[Samples] = iter(())
        self._next_step = -1

    def read(self, step: int) -> list[Samples] | Samples:
        """The samples of a step, slot by slot; steps are read in order, unless something was lost on the way."""
        if step != self._next_step:
            self._stream = iter(self._stream_from(step))
        samples = next(self._stream)
        self._next_step = step + 1
        size = self._recipe.training.slot_batch
        slots = [samples.part(start, start + size) for start in range(0, len(samples.ids), size)]
        return slots if len(slots) > 1 else slots[0]  # Ray takes a list apart only where there are several

    def prepare(self, step: int, slot: int, samples: Samples) -> SlotInput:
        """One slot, ready but for the device."""
        return prepare_slot(self._recipe, step, slot, samples, photometric=self._photometric)


@dataclass(frozen=True, slots=True)
class _Underway:
    """A slot that is being made."""

    samples: Any
    """Ray's references, to the samples and to the slot that is made of them."""
    slot: Any


class Feed:
    """The steps of one worker, made ahead of their use by ``Feeder`` processes; needs Ray.

    A process that dies (its node, its memory, a decoder that aborts) is replaced and its work done again, a few times.

    Args:
        recipe: Of the run.
        plan: Slots over workers.
        rank: The worker.
        first_step: The first step to make.
        stream: Samples from a step on.
        photometric: Whether colours change here; otherwise ``slot_batch`` does it on the worker's device.
    """

    def __init__(
        self,
        recipe: TrainingRecipe,
        plan: SlotPlan,
        rank: int,
        first_step: int,
        stream: StreamFrom,
        *,
        photometric: bool = True,
    ) -> None:
        self._recipe = recipe
        self._stream = stream
        self._photometric = photometric
        self._slots = plan.slots_of(rank)
        self._deaths: list[str] = []
        """Of processes, over the next step."""
        self._made: StepInput | Exception | None = None
        self._begin(first_step)

    def _begin(self, step: int) -> None:
        """Start processes that go on at a step."""
        import ray

        make = ray.remote(**_placement(self._recipe))(Feeder).remote
        processes = self._recipe.streaming.crop_processes
        # The first one also reads: most of that is waiting.
        self._feeders = [make(self._recipe, self._stream, self._photometric) for _ in range(processes)]
        self._steps = iter(range(step, self._recipe.training.steps))
        self._ahead: deque[tuple[int, list[_Underway]]] = deque()
        for _ in range(_STEPS_AHEAD):
            self._begin_next()

    def ready(self, timeout_s: float) -> bool:
        """Whether ``take`` will not wait, after waiting up to ``timeout_s`` for that."""
        self._made = self._made or self._look(timeout_s)
        return self._made is not None

    def take(self) -> StepInput:
        """The next step; waits for it.

        Raises:
            HeliostatError: what went wrong in the stream, as the worker's own error.
            DecoderCrashedError: the process that decodes died again and again over the same step.
        """
        while not self.ready(_POLL_S):
            pass
        made, self._made = self._made, None
        if not isinstance(made, StepInput):
            raise made or AssertionError("ready() is true when there is something")
        self._ahead.popleft()
        self._deaths = []
        self._begin_next()
        return made

    def _look(self, timeout_s: float) -> StepInput | Exception | None:
        """The next step or why there is none; None while it is being made.

        Where a process has died, or its node with what it had made, another one begins its work again.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        step, underway = self._ahead[0]
        slots = [each.slot for each in underway]
        done, waiting = ray.wait(slots, num_returns=len(slots), timeout=timeout_s, fetch_local=False)
        try:
            made = ray.get(done if waiting else slots)
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if not isinstance(cause, RayError):
                return cause  # type: ignore[no-any-return]  # Ray is not typed
            self._deaths.append(type(cause).__name__)
            if len(self._deaths) == _ATTEMPTS:
                return self._crashed(step, underway, str(cause).strip().splitlines()[-1])
            self.close()
            self._begin(step)
            return None
        return None if waiting else StepInput(step, made, tuple(self._deaths))

    def close(self) -> None:
        """End the processes."""
        import ray

        for feeder in self._feeders:
            ray.kill(feeder)

    def _begin_next(self) -> None:
        step = next(self._steps, None)
        if step is None:
            return
        read = self._feeders[0].read.options(num_returns=len(self._slots)).remote(step)
        parts = read if len(self._slots) > 1 else [read]
        count = len(self._feeders)
        makers = [self._feeders[(step * len(self._slots) + turn) % count] for turn in range(len(self._slots))]
        self._ahead.append(
            (
                step,
                [
                    _Underway(samples, maker.prepare.remote(step, slot, samples))
                    for maker, slot, samples in zip(makers, self._slots, parts, strict=True)
                ],
            )
        )

    def _crashed(self, step: int, underway: list[_Underway], last_words: str) -> DecoderCrashedError:
        """Names the images of the first slot that could not be made, and what Ray says of the process."""
        import ray
        from ray.exceptions import RayError

        ids: list[str] = []
        for each in underway:
            try:
                ray.get(each.slot, timeout=_LAST_WORDS_S)
            except RayError:
                with suppress(RayError):
                    ids = ray.get(each.samples, timeout=_LAST_WORDS_S).ids
                break
        return DecoderCrashedError(
            f"the process that decodes died {_ATTEMPTS} times over step {step}, in a slot with the images "
            f"{', '.join(name[:16] for name in ids) or '(lost with it)'}; Ray says of it: {last_words.rstrip('.')}",
            "Look for the kernel's out-of-memory messages; ingest the dataset without the image that kills its decoder",
        )


def _placement(recipe: TrainingRecipe) -> dict[str, Any]:
    """Where feeders run."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    environment = {"runtime_env": {"env_vars": feeder_env(os.environ)}}
    if recipe.streaming.crops_on == "pool":
        return {"num_cpus": 1, "resources": {recipe.streaming.pool_resource: 1}, **environment}
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return {"num_cpus": 0, "scheduling_strategy": here, **environment}
