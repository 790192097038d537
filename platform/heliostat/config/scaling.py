"""The section ``scaling`` of a recipe."""

from typing import Literal, Self

from pydantic import Field, model_validator

from heliostat.config.base import Name, Section
from heliostat.errors import InvalidValueError


class ScalingConfig(Section):
    """Who computes it, and how that may change. No part of the mathematics: it may change between attempts of a run."""

    workers: int = Field(
        1, gt=0, description="Ray Train workers, at most global_batch / slot_batch; with fewer if there is no room"
    )
    min_workers: int = Field(1, gt=0, description="fewest workers that the run goes on with; below, it waits for room")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs that Ray reserves for a worker")
    accelerator: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="auto takes one GPU per worker where there are any"
    )
    worker_resource: Name | None = Field(
        None, description="Ray resource of the nodes that train, of which a worker takes one unit; null is any node"
    )
    grow_patience_s: float = Field(
        30.0,
        ge=0,
        description="seconds that new room must have lasted before the run is interrupted to use it; each node that "
        "came and went makes it four times as long, and at least twice as long as it stayed",
    )
    hang_s: float = Field(
        20.0,
        gt=0,
        description="seconds without any movement after which workers are taken to hang and are ended, or twice the "
        "longest pause so far, if that is longer",
    )
    max_failures: int = Field(
        3,
        ge=0,
        description="failures of one kind in a row, without a new step between, that the run survives; errors of the "
        "recipe, data or code stop it at once, nodes that are taken away never do, a store that fails does after "
        "streaming.patience_s",
    )
    wait_minutes: float | None = Field(
        None, gt=0, description="minutes to wait for room for min_workers before giving up; null waits for ever"
    )
    standby_after_s: float | None = Field(
        30.0,
        ge=0,
        description="seconds after which processes that have imported everything stand by on each node, so that a "
        "restart takes seconds less; null is never",
    )

    worker_price_per_hour: float | None = Field(
        None, ge=0, description="of one worker's share of its node, in any currency: status shows the cost so far"
    )

    @model_validator(mode="after")
    def _fewest_are_no_more_than_most(self) -> Self:
        if self.min_workers > self.workers:
            raise InvalidValueError(
                f"scaling.min_workers is {self.min_workers}, but scaling.workers is {self.workers}",
                f"Set scaling.min_workers to at most {self.workers}",
            )
        return self
