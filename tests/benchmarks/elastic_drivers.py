"""Drivers of the runs that ``bench_elastic.py`` compares, each in a process of its own.

``ours`` is the platform's, in which snapshots are left out in every second block of steps if ``--toggle`` says how long
a block is. ``stock`` is Ray Train alone, with the same worker: elastic, restarted after failures, with its defaults.
"""

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from faults.paced import paced_attempt

from heliostat.config import load_recipe
from heliostat.config.pretrain import PretrainRecipe
from heliostat.training.attempt import RunSpec
from heliostat.training.trainer import _worker_env
from heliostat_cluster.local import joined_ray
from heliostat_cluster.simulated import WORKER_RESOURCE
from heliostat_jobs.runs import open_run
from heliostat_jobs.train import train_on_ray


def toggled_attempt(config: dict[str, Any], notes: str, pace_s: float, block_steps: int) -> None:
    """No snapshots in every second block of steps."""
    from heliostat.training.snapshots import Snapshots

    honest = Snapshots.take_if_due

    def take_if_due(self: Snapshots, some_are_busy: bool, done: int) -> None:
        if not block_steps or done // block_steps % 2 == 0:
            honest(self, some_are_busy, done)

    Snapshots.take_if_due = take_if_due  # type: ignore[method-assign]
    paced_attempt(config, notes, pace_s)


def stock(spec: RunSpec, fewest: int, attempt: Any) -> None:
    """Ray Train without us; waits as long as it waits by default."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    recipe = spec.recipe
    most = recipe.scaling.workers
    # As our workers have it, without what standby adds: where they differ, the step is not what is compared.
    alone = recipe.model_copy(update={"scaling": recipe.scaling.model_copy(update={"standby_after_s": None})})
    with tempfile.TemporaryDirectory() as scratch:
        TorchTrainer(
            attempt,
            train_loop_config={"spec": spec},
            torch_config=TorchConfig(backend="gloo", timeout_s=120),
            scaling_config=ScalingConfig(
                num_workers=(fewest, most) if fewest < most else most,
                resources_per_worker={"CPU": 1, WORKER_RESOURCE: 1},
            ),
            run_config=RunConfig(
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=5),
                worker_runtime_env={"env_vars": _worker_env(alone, use_gpu=False)},
            ),
        ).fit()


def main() -> None:
    """Train one run to its end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["ours", "stock"])
    parser.add_argument("address")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("notes")
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("--toggle", type=int, default=0)
    chosen = parser.parse_args()
    resolved = load_recipe(chosen.recipe, [], os.environ)
    assert isinstance(resolved.recipe, PretrainRecipe)
    run = open_run(resolved)
    attempt = partial(toggled_attempt, notes=chosen.notes, pace_s=chosen.pace, block_steps=chosen.toggle)
    with joined_ray(chosen.address):
        if chosen.kind == "stock":
            spec = RunSpec(resolved.recipe, run.root, run.manifests)
            stock(spec, resolved.recipe.scaling.min_workers, attempt)
        else:
            train_on_ray(resolved.recipe, run, attempt)


if __name__ == "__main__":
    main()
