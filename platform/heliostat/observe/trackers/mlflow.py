"""MLflow: address and credentials from its own environment variables (MLFLOW_TRACKING_URI and so on)."""

import os
import time
from collections.abc import Mapping
from typing import Any

from heliostat.observe.trackers.tracker import TrackedRun

_TAG = "heliostat.run_id"
_LONGEST_PARAMETER = 500
"""Characters of a parameter's value that every version of the server takes."""


class MlflowTracker:
    """One MLflow run per run, found again by a tag."""

    def __init__(self) -> None:
        self._client: Any = None
        self._run_id = ""

    def start(self, run: TrackedRun) -> None:
        """Find the run, or create it in the experiment of MLFLOW_EXPERIMENT_NAME (heliostat if that is not set)."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "heliostat")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        runs = self._client.search_runs([experiment], filter_string=f"tags.`{_TAG}` = '{run.id}'")
        if runs:
            self._run_id = runs[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            return
        created = self._client.create_run(experiment, run_name=run.name, tags={_TAG: run.id})
        self._run_id = created.info.run_id
        parameters = [Param(key, str(value)[:_LONGEST_PARAMETER]) for key, value in run.config.items()]
        for start in range(0, len(parameters), 100):  # the most that one request may hold
            self._client.log_batch(self._run_id, params=parameters[start : start + 100])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """All values in one request."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._client.log_batch(
            self._run_id, metrics=[Metric(key, value, now_ms, step) for key, value in values.items()]
        )

    def close(self) -> None:
        """Mark the run as finished, until an attempt resumes it."""
        self._client.set_terminated(self._run_id)
