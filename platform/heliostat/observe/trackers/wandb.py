"""Weights & Biases: key, project and mode from its own environment variables (WANDB_API_KEY and so on)."""

import os
from collections.abc import Mapping
from typing import Any

from heliostat.observe.trackers.tracker import TrackedRun


class WandbTracker:
    """One W&B run per run, by its id."""

    def __init__(self) -> None:
        self._run: Any = None

    def start(self, run: TrackedRun) -> None:
        """Open or resume the run in the project of WANDB_PROJECT (heliostat if that is not set)."""
        import wandb

        self._run = wandb.init(
            id=run.id,
            name=run.name,
            project=os.environ.get("WANDB_PROJECT", "heliostat"),
            config=dict(run.config),
            resume="allow",
        )
        # Its own step may only grow, and a resumed run computes some steps again.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One line of its history."""
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """Upload the rest."""
        self._run.finish()
