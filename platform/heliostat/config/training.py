"""What all recipes that train have in common: the data and its augmentation, steps, batches and the optimizer."""

import math
from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from heliostat.config.base import Name, Range, Root, Section, Share
from heliostat.config.checkpoint import CheckpointConfig
from heliostat.config.objective import ObjectiveConfig
from heliostat.config.operation import ObserveConfig, StreamingConfig
from heliostat.config.scaling import ScalingConfig
from heliostat.errors import IndivisibleBatchError, InvalidValueError, TooManyWorkersError

WeightedName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}=[0-9]{1,9}(\.[0-9]{1,9})?$")]
_LONGEST_MIX = 100_000
"""Samples after which the order of datasets in a mix repeats; every process computes that many once."""


def nearest_multiple(value: int, step: int) -> int:
    """The multiple of ``step`` that is nearest to a value, at least one of it."""
    # Integers only: a recipe may hold one that no float can.
    return max(1, (2 * value + step) // (2 * step)) * step


class DatasetConfig(Section):
    """What is read, and how widely it is shuffled."""

    name: Name | None = Field(None, description="dataset under <root>/datasets; null where mix names several")
    mix: tuple[WeightedName, ...] = Field(
        (), description="several datasets instead of one, as NAME=WEIGHT: [photos=0.7, drawings=0.3]"
    )
    window_groups: int = Field(16, gt=0, description="row groups shuffled together; a resume costs one such window")

    @field_validator("mix", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("mix")
    @classmethod
    def _weighs_each_dataset_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [part.partition("=")[0] for part in value]
        if len(set(names)) < len(names) or not all(float(part.partition("=")[2]) > 0 for part in value):
            raise ValueError("NAME=WEIGHT, each name once, each weight above 0")
        return value

    @model_validator(mode="after")
    def _names_datasets_once(self) -> Self:
        if (self.name is None) == (not self.mix):
            found = "neither is set" if self.name is None else "both are set"
            raise InvalidValueError(
                f"dataset.name gives one dataset, dataset.mix several, and {found}",
                "Set dataset.name to a dataset that heliostat dataset ingest has made, or dataset.mix to several",
            )
        if (period := sum(self.shares.values())) > _LONGEST_MIX:
            raise InvalidValueError(
                f"the weights of dataset.mix repeat after {period:,} samples, the limit is {_LONGEST_MIX:,}",
                "Round them: 0.333 and 0.667 repeat after 1,000",
            )
        return self

    @property
    def shares(self) -> dict[str, int]:
        """Whole numbers without a common factor that have the ratio of the weights, by name of the dataset."""
        parts = [part.partition("=") for part in self.mix or (f"{self.name}=1",)]
        weights = {name: Fraction(weight) for name, _, weight in parts}
        scale = math.lcm(*(weight.denominator for weight in weights.values()))
        whole = {name: int(weight * scale) for name, weight in weights.items()}
        common = math.gcd(*whole.values())
        return {name: share // common for name, share in whole.items()}


class AugmentationConfig(Section):
    """Multi-crop augmentation of one image: 2 global and ``local_count`` local crops."""

    global_px: int = Field(224, gt=0, description="side of a global crop")
    local_px: int = Field(98, gt=0, description="side of a local crop")
    local_count: int = Field(8, ge=1, description="local crops per image")
    global_scale: Range = Field((0.32, 1.0), description="share of the image's area in a global crop: from, to")
    local_scale: Range = Field((0.05, 0.32), description="share of the image's area in a local crop: from, to")
    flip: Share = Field(0.5, description="probability of a horizontal flip")
    jitter: Share = Field(0.8, description="probability of colour jitter (0.4, 0.4, 0.2, 0.1)")
    grey: Share = Field(0.2, description="probability of greyscale")
    solarize: Share = Field(0.2, description="probability of solarization, second global crop only")
    fixed: bool = Field(
        False,
        description="crop and colour an image alike wherever it stands in the run: what a teacher says of it can then "
        "be kept (teacher.cache)",
    )
    blur: Literal["paper", "official", "none"] = Field(
        "official",
        description="blur probabilities of global-1, global-2, local: paper 1.0/0.1/0.5; official 0.0/0.9/0.5, with "
        "which the released weights were trained; none for images of a few dozen pixels",
    )

    @field_validator("global_scale", "local_scale", mode="before")
    @classmethod
    def _pair(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("global_scale", "local_scale")
    @classmethod
    def _ordered(cls, value: Range) -> Range:
        low, high = value
        if not 0 < low <= high <= 1:
            raise ValueError("two shares of the area, 0 < from <= to <= 1")
        return value


class TrainingConfig(Section):
    """Steps, batches and the optimizer."""

    steps: int = Field(gt=0, description="optimizer steps of the whole run")
    global_batch: int = Field(2048, gt=0, description="images per optimizer step, whatever the number of workers")
    slot_batch: int = Field(64, gt=0, description="images whose losses are computed together; divides global_batch")
    base_lr: float = Field(
        4e-3, gt=0, description="learning rate at a global batch of 1024; scaled by sqrt(global_batch/1024)"
    )
    min_lr: float = Field(1e-6, ge=0, description="learning rate at the end of the cosine")
    warmup_steps: int = Field(12500, ge=0, description="steps of linear learning-rate warm-up from 0")
    weight_decay: float = Field(0.04, ge=0, description="weight decay at step 0")
    weight_decay_end: float = Field(0.4, ge=0, description="weight decay at the end of the cosine")
    layer_decay: float = Field(0.9, gt=0, le=1, description="learning-rate factor per block, counted from the top")
    patch_embed_lr: float = Field(0.2, gt=0, description="extra learning-rate factor of the patch embedding")
    freeze_prototypes_steps: int = Field(1250, ge=0, description="steps in which the prototypes do not learn")
    clip_norm: float = Field(3.0, gt=0, description="gradient norm limit, per sub-module (backbone, each head)")
    ema_momentum: float = Field(0.992, ge=0, le=1, description="teacher momentum at step 0; a cosine brings it to 1")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        2,
        description="what DeepSpeed ZeRO shares out among the workers: 0 nothing (fp32 only), 1 the optimizer's state, "
        "2 gradients too, 3 parameters too, the teacher's as well",
    )
    offload_optimizer: bool = Field(False, description="keep the optimizer's state in host memory; stages 1 to 3")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "bf16", description="compute precision; parameters stay fp32, fp16 scales the loss by itself"
    )
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        "none",
        description="what the backward pass recomputes instead of keeping: nothing, what is cheap to recompute, or "
        "whole blocks",
    )
    compile: bool = Field(
        False,
        description="compile blocks with torch.compile, which decides itself what selective would recompute",
    )
    deterministic: bool = Field(
        False, description="use only operators that give the same bits each time, on the same hardware; slower on GPUs"
    )
    nonfinite_steps: int = Field(
        2,
        ge=0,
        description="consecutive steps with a loss or gradient that is not finite which are left out; one more stops",
    )

    @model_validator(mode="after")
    def _slots_are_whole(self) -> Self:
        if self.global_batch % self.slot_batch:
            raise IndivisibleBatchError(
                f"training.global_batch {self.global_batch} is not a multiple of training.slot_batch {self.slot_batch}",
                f"Set training.global_batch to {nearest_multiple(self.global_batch, self.slot_batch)}, or "
                "training.slot_batch to a divisor of it",
            )
        return self

    @model_validator(mode="after")
    def _stage_fits(self) -> Self:
        if self.zero_stage == 0 and self.precision != "fp32":
            raise InvalidValueError(
                f"training.zero_stage is 0 and training.precision {self.precision}: DeepSpeed's stage 0 takes a "
                "step of its own at the start unless it computes in fp32",
                "Set training.zero_stage to 1, or training.precision to fp32",
            )
        if self.zero_stage == 0 and self.offload_optimizer:
            raise InvalidValueError(
                "training.offload_optimizer is on, but stage 0 has no optimizer state of its own to move",
                "Set training.zero_stage to 1, 2 or 3",
            )
        return self

    @property
    def slots(self) -> int:
        """Slots of a step."""
        return self.global_batch // self.slot_batch

    @property
    def unfreezes_by_block(self) -> bool:
        """Whether parts of the backbone begin to learn one after the other."""
        return False

    @property
    def learns_by_heads_alone(self) -> bool:
        """Whether the backbone learns in no step."""
        return False

    def frozen_depth(self, step: int) -> float:
        """Share of the backbone's depth, from the first layer, that does not learn at a step: here all of it does."""
        return 0.0


class TrainingRecipe(Section):
    """A run that trains networks on the images of datasets."""

    kind: str
    name: Name = Field(description="name of the run; the same name and configuration resumes it")
    root: Root = "heliostat-root"
    seed: int = Field(0, ge=0, description="seed of the order, the crops, the masks and the initial weights")
    dataset: DatasetConfig
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    training: TrainingConfig
    scaling: ScalingConfig = Field(default_factory=ScalingConfig)
    streaming: StreamingConfig = Field(default_factory=StreamingConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    observe: ObserveConfig = Field(default_factory=ObserveConfig)

    @property
    def gram_px(self) -> int | None:
        """Side of the Gram teacher's crops; None without Gram anchoring."""
        gram = self.objective.anchoring
        return None if gram is None else gram.crop_px or 2 * self.augmentation.global_px

    @model_validator(mode="after")
    def _workers_have_slots(self) -> Self:
        if self.scaling.workers > self.training.slots:
            raise TooManyWorkersError(
                f"{self.scaling.workers} workers were asked for, but a step has only {self.training.slots} slots "
                "(global_batch / slot_batch)",
                f"Set scaling.workers to at most {self.training.slots}, or lower training.slot_batch",
            )
        return self

    @model_validator(mode="after")
    def _tensorboard_has_a_folder(self) -> Self:
        observe = self.observe
        if "tensorboard" in observe.trackers and self.root.startswith("s3://") and observe.tensorboard_dir is None:
            raise InvalidValueError(
                f"observe.trackers names tensorboard, which writes to a folder, and the root is {self.root}",
                "Set observe.tensorboard_dir to a folder on the machine of the first worker, or leave tensorboard out",
            )
        return self

    @model_validator(mode="after")
    def _koleo_groups_fill_the_slot(self) -> Self:
        group, slot = self.objective.koleo_group, self.training.slot_batch
        if group is not None and slot % group:
            raise InvalidValueError(
                f"objective.koleo_group {group} does not divide training.slot_batch {slot}",
                "Set objective.koleo_group to a divisor, or to null",
            )
        if self.objective.koleo_neighbours >= (group or slot) and slot > 1:
            raise InvalidValueError(
                f"objective.koleo_neighbours {self.objective.koleo_neighbours} is not below the {group or slot} images "
                "among which they are sought",
                f"Set objective.koleo_neighbours to at most {(group or slot) - 1}",
            )
        return self
