"""What a run needs and how long it takes on so many workers, from its recipe alone; needs no torch.

>>> import heliostat
>>> plan = heliostat.plan("recipe.yaml", workers=[8, 64])  # doctest: +SKIP
>>> plan.by_workers[0].memory.device_bytes  # doctest: +SKIP
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heliostat.config import load_recipe
from heliostat.config.distill import DistillRecipe
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.training import TrainingRecipe
from heliostat.data.slots import SlotPlan
from heliostat.errors import InvalidValueError
from heliostat.training.planning.flops import StepFlops
from heliostat.training.planning.memory import Memory
from heliostat.training.planning.networks import Networks
from heliostat.training.planning.peaks import PEAKS, tabulated_peak

_USUAL_WORKERS = (8, 16, 32, 64, 128, 256)
_GIB = 2**30
_HOUR_S = 3600
STATE_BYTES_PER_PARAMETER = 16
"""Of training state: fp32 parameters, both moments of Adam, and the teacher."""
_SNAPSHOTS_PER_NODE = 4
"""Two of the worker's own part and two of another one's: the newest may not be whole yet."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the workers run on, one GPU each."""

    gpu: str = "A100"
    """A name of ``PEAKS``."""
    memory_gib: float = 80.0
    mfu: float = 0.4
    """Model FLOPs utilisation while nothing is computed twice; what is computed again adds its time."""
    price_per_hour: float | None = None
    """Of one worker; None is the recipe's ``scaling.worker_price_per_hour``."""


@dataclass(frozen=True, slots=True)
class WorkersPlan:
    """A step on so many workers."""

    workers: int
    rounds: int
    """Micro-steps of a step, one slot each."""
    idle_share: float
    """Share of the workers' rounds that have no slot of their own and repeat one with weight zero."""
    images_per_worker: float
    """Of a step, on average."""
    memory: Memory
    fits: bool
    device_bytes_by_stage: dict[int, float]
    """What the device would hold with each stage of ZeRO that the recipe's precision allows."""
    snapshot_bytes: float
    """Of host memory, for snapshots of this worker's part and another one's; 0 without."""
    sent_bytes: float
    """What each worker sends in a step."""
    flops: StepFlops
    """Of the whole step, without idle rounds."""
    step_s: float
    """Compute alone: communication is taken to hide behind it."""
    images_per_s: float
    run_s: float
    """All steps of the run."""
    price: float | None
    """Of the run, in the currency of the workers' price; none without one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A run on several numbers of workers."""

    run: str
    machine: Machine
    student_parameters: int
    """With heads; the teacher has as many."""
    backbone_parameters: int
    steps: int
    global_batch: int
    slots: int
    zero_stage: int
    precision: str
    activation_checkpointing: str
    flops_per_image: float
    flops_by_network: dict[str, float]
    """Of a distillation, by student and for the teacher: what each adds to ``flops_per_image``."""
    by_workers: tuple[WorkersPlan, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        lines = asdict(self)
        for line, of in zip(lines["by_workers"], self.by_workers, strict=True):
            line["memory"]["device_bytes"] = of.memory.device_bytes
            line["flops"]["model"], line["flops"]["executed"] = of.flops.model, of.flops.executed
        return lines


def plan(
    recipe: TrainingRecipe | str | Path,
    workers: Sequence[int] | None = None,
    machine: Machine | None = None,
    teacher: PretrainRecipe | None = None,
) -> Plan:
    """What a run needs on each number of workers.

    Args:
        recipe: Of a run that trains, or the file that holds it.
        workers: Numbers of workers, one GPU each; None takes 8 to 256, as far as there are slots for them.
        machine: The GPUs.
        teacher: Of the run that trained the teacher of a distillation.

    Raises:
        TooManyWorkersError: more workers than a step has slots.
        InvalidValueError: a recipe of another kind, a distillation without its teacher, or a GPU that the table does
            not know in the recipe's precision.
    """
    known = _training_recipe(recipe)
    networks = _networks(known, teacher)
    chosen, training = machine or Machine(), known.training
    return Plan(
        run=known.name,
        machine=chosen,
        student_parameters=networks.parameters,
        backbone_parameters=networks.backbone_parameters,
        steps=training.steps,
        global_batch=training.global_batch,
        slots=training.slots,
        zero_stage=training.zero_stage,
        precision=training.precision,
        activation_checkpointing=training.activation_checkpointing,
        flops_per_image=networks.flops(1).model / training.global_batch,
        flops_by_network=networks.flops_by_network(),
        by_workers=tuple(_on(known, networks, count, chosen) for count in workers or usual_workers(training.slots)),
    )


def usual_workers(slots: int) -> list[int]:
    """Powers of two up to the slots: from 8 on where there are as many, else from 1."""
    usual = [count for count in _USUAL_WORKERS if count <= slots]
    return usual or [2**power for power in range(slots.bit_length())]


def _training_recipe(recipe: TrainingRecipe | str | Path) -> TrainingRecipe:
    known = recipe if isinstance(recipe, TrainingRecipe) else load_recipe(Path(recipe), [], os.environ).recipe
    if not isinstance(known, TrainingRecipe):
        raise InvalidValueError(f"kind {known.kind} has no plan", "Give a recipe of kind pretrain, adapt or distill")
    return known


def _networks(recipe: TrainingRecipe, teacher: PretrainRecipe | None) -> Networks:
    networks = Networks.of(recipe, teacher)
    if isinstance(recipe, DistillRecipe) and networks.frozen is None:
        raise InvalidValueError(
            f"the recipe of the teacher ({recipe.teacher.run or recipe.teacher.weights}) is not known, and so neither "
            "is what it costs",
            "Give its recipe as teacher; heliostat plan finds it under the recipe's root",
        )
    return networks


def _on(recipe: TrainingRecipe, networks: Networks, workers: int, machine: Machine) -> WorkersPlan:
    training = recipe.training
    slots = SlotPlan(training.slots, workers)
    flops = networks.flops(slots.rounds)
    memory = networks.memory(workers)
    price = recipe.scaling.worker_price_per_hour if machine.price_per_hour is None else machine.price_per_hour
    step_s = flops.executed / slots.slots * slots.rounds / (machine.mfu * _peak(recipe, machine))
    return WorkersPlan(
        workers=workers,
        rounds=slots.rounds,
        idle_share=1 - slots.slots / (workers * slots.rounds),
        images_per_worker=training.global_batch / workers,
        memory=memory,
        device_bytes_by_stage=_by_stage(recipe, networks, workers),
        snapshot_bytes=_snapshots(recipe, networks.parameters, workers),
        fits=memory.device_bytes <= machine.memory_gib * _GIB,
        sent_bytes=networks.payload(slots.rounds, workers).sent_bytes(workers),
        flops=flops,
        step_s=step_s,
        images_per_s=training.global_batch / step_s,
        run_s=training.steps * step_s,
        price=None if price is None else workers * price * training.steps * step_s / _HOUR_S,
    )


def _by_stage(recipe: TrainingRecipe, networks: Networks, workers: int) -> dict[int, float]:
    first = 0 if recipe.training.precision == "fp32" and not recipe.training.offload_optimizer else 1
    found = {}
    for stage in range(first, 4):
        found[stage] = networks.at_stage(stage).memory(workers).device_bytes
    return found


def _snapshots(recipe: TrainingRecipe, parameters: int, workers: int) -> float:
    if not recipe.checkpoint.memory_every_steps:
        return 0.0
    return _SNAPSHOTS_PER_NODE * STATE_BYTES_PER_PARAMETER * parameters / workers


def _peak(recipe: TrainingRecipe, machine: Machine) -> float:
    precision = recipe.training.precision
    peak = tabulated_peak(machine.gpu, precision)
    if peak is None:
        raise InvalidValueError(
            f"the peak of GPU {machine.gpu!r} in {precision} is not tabulated",
            f"Name one of: {', '.join(name for name, rates in PEAKS.items() if precision in rates)}",
        )
    return peak
