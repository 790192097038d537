"""What changes from step to step: functions of the step alone (DINOv2's schedules), so a resume needs no state."""

import math
from dataclasses import dataclass

from heliostat.config.objective import ObjectiveConfig
from heliostat.config.training import TrainingConfig


@dataclass(frozen=True, slots=True)
class StepValues:
    """The scheduled values of one step."""

    lr: float
    weight_decay: float
    ema_momentum: float
    teacher_temperature: float
    prototypes_frozen: bool
    frozen_depth: float = 0.0
    """Share of the backbone's depth, from the first layer, that does not learn."""


def cosine(step: int, start: float, base: float, end: float, warmup_steps: int, steps: int) -> float:
    """Linear from ``start`` to ``base`` (at the last warm-up step), then a half cosine to ``end``, which it keeps."""
    if step < warmup_steps:
        return base if warmup_steps == 1 else start + (base - start) * step / (warmup_steps - 1)
    if step >= steps:
        return end
    progress = (step - warmup_steps) / (steps - warmup_steps)
    return end + 0.5 * (base - end) * (1 + math.cos(math.pi * progress))


def peak_lr(training: TrainingConfig) -> float:
    """The learning rate after warm-up: ``base_lr`` scaled by the square root of the global batch over 1024."""
    return training.base_lr * math.sqrt(training.global_batch / 1024)


def values_at(step: int, training: TrainingConfig, objective: ObjectiveConfig) -> StepValues:
    """Everything that is scheduled, at one step."""
    steps = training.steps
    temperature = objective.teacher_temperature
    return StepValues(
        lr=cosine(step, 0.0, peak_lr(training), training.min_lr, training.warmup_steps, steps),
        weight_decay=cosine(step, 0.0, training.weight_decay, training.weight_decay_end, 0, steps),
        ema_momentum=cosine(step, 0.0, training.ema_momentum, 1.0, 0, steps),
        teacher_temperature=cosine(
            step,
            objective.teacher_temperature_start,
            temperature,
            temperature,
            objective.teacher_temperature_warmup_steps,
            max(steps, objective.teacher_temperature_warmup_steps + 1),
        ),
        prototypes_frozen=step < training.freeze_prototypes_steps,
        frozen_depth=training.frozen_depth(step),
    )
