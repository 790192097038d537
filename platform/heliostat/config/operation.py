"""How a run is fed and what it tells of itself: no part of the mathematics, free to change between its attempts."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from heliostat.config.base import Name, Section
from heliostat.errors import InvalidValueError


class StreamingConfig(Section):
    """How images get to the workers. No part of the mathematics: it may change between attempts of one run."""

    crops_on: Literal["trainer", "pool"] = Field(
        "trainer", description="where images become crops: beside each worker, or on nodes that offer pool_resource"
    )
    crop_processes: int = Field(1, gt=0, description="processes per worker that decode and crop")
    pool_resource: Name = Field(
        "data_pool", description="Ray resource of the nodes of the pool; every process takes one unit and one CPU"
    )
    cache_dir: str | None = Field(
        None, min_length=1, description="folder on each node's own disk that keeps what was read; null is none"
    )
    cache_gib: float = Field(100.0, gt=0, description="size limit of cache_dir, in GiB")
    patience_s: float = Field(
        1800.0, gt=0, description="seconds that a storage outage may last before the run stops for it"
    )


class OnlineKnnConfig(Section):
    """k-NN of the teacher while it trains, on labelled datasets; training waits for it."""

    every_steps: int = Field(0, ge=0, description="steps between evaluations; 0 is never")
    bank: Name | None = Field(None, description="labelled dataset whose features vote")
    queries: Name | None = Field(None, description="labelled dataset that is classified")
    neighbours: int = Field(20, gt=0, description="how many vote")

    @model_validator(mode="after")
    def _names_datasets(self) -> Self:
        if self.every_steps and (self.bank is None or self.queries is None):
            missing = "bank" if self.bank is None else "queries"
            raise InvalidValueError(
                f"observe.knn.every_steps is {self.every_steps}, but observe.knn.{missing} names no dataset",
                "Name a labelled dataset, or set observe.knn.every_steps to 0",
            )
        return self


class ObserveConfig(Section):
    """How often a run says how it is doing."""

    log_every_steps: int = Field(1, gt=0, description="steps between lines of metrics")
    flush_interval_s: float = Field(5.0, gt=0, description="seconds between segments of events and metrics")
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        (),
        description="where metrics go besides the run's own files; addresses and keys are in the trackers' own "
        "environment variables (MLFLOW_TRACKING_URI, WANDB_API_KEY, ...)",
    )
    tensorboard_dir: str | None = Field(
        None,
        pattern="^/",
        description="absolute path of a folder for TensorBoard; null is logs/ of the run, if its root is a folder",
    )
    knn: OnlineKnnConfig = Field(default_factory=lambda: OnlineKnnConfig.model_validate({}))
    profile_steps: tuple[int, int] | None = Field(
        None, description="steps [from, to) of which rank 0 writes a torch profile into logs/ of the run; null is none"
    )

    @field_validator("trackers", "profile_steps", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("profile_steps")
    @classmethod
    def _ordered(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not 0 <= value[0] < value[1]:
            raise ValueError("two steps, 0 <= from < to")
        return value
