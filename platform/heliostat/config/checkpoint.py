"""The section ``checkpoint`` of a recipe."""

from typing import Literal

from pydantic import Field

from heliostat.config.base import Section


class CheckpointConfig(Section):
    """When training state is committed, and how much is kept."""

    every_steps: int = Field(500, gt=0, description="steps between checkpoints; the last step always has one")
    every_minutes: float | None = Field(
        None, gt=0, description="minutes after which a checkpoint is made, whatever the step; null is by steps alone"
    )
    memory_every_steps: int = Field(
        5,
        ge=0,
        description="steps between snapshots in the memory of other nodes, so that a node which goes without a word "
        "costs no more; 0 is none. A node holds four times its share of the training state",
    )
    keep_last: int = Field(3, gt=0, description="newest checkpoints that are kept")
    keep_every_steps: int | None = Field(
        None, gt=0, description="the first checkpoint at or after every multiple of this is kept for ever; null is none"
    )
    keep_best: str | None = Field(
        None, min_length=1, description="metric of a step, such as loss, by which the best checkpoint is kept too"
    )
    keep_best_mode: Literal["min", "max"] = Field("min", description="whether the best is the smallest or the largest")
