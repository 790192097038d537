"""The driver of a run on a simulated cluster, in a process of its own: ``heliostat run --address`` at a given pace.

Every worker notes who it is, so that a plan can name it by its rank. A step can be given images that are not finite,
and the first attempt can be held up when it is about to commit.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

HELD, LET_GO, TRIED = "held", "let-go", "tried"
"""Notes: a commit is held up, it may go on, and what it came to."""


def paced_attempt(
    config: dict[str, Any], notes: str, pace_s: float, poisoned_step: int | None = None, held_step: int | None = None
) -> None:
    """A worker's part in an attempt, no step of it shorter than ``pace_s``."""
    import ray

    from heliostat.training.attempt import run_attempt
    from heliostat.training.collective import worker_rank

    context = ray.get_runtime_context()
    note = {"rank": worker_rank(), "pid": os.getpid(), "node": context.get_node_id(), "at": time.time()}
    (Path(notes) / f"{time.time_ns()}-{worker_rank()}.json").write_text(json.dumps(note))
    last = time.monotonic()

    def rest(step: int) -> None:
        nonlocal last
        time.sleep(max(0.0, last + pace_s - time.monotonic()))
        last = time.monotonic()

    with _poisoned(poisoned_step), _held_up(held_step, Path(notes)):
        run_attempt(config["spec"], rest)


@contextmanager
def _poisoned(step: int | None) -> Iterator[None]:
    """The images of the first worker's first slot at one step are not finite."""
    from heliostat.elastic.signals import MAILBOX
    from heliostat.training import attempt
    from heliostat.training.collective import worker_rank
    from heliostat.training.feed import slot_batch as honest

    def slot_batch(slot: Any, device: torch.device) -> Any:
        batch = honest(slot, device)
        if step is not None and MAILBOX.steps_done == step and worker_rank() == 0:
            batch.global_crops.fill_(torch.nan)
        return batch

    attempt.slot_batch = slot_batch  # type: ignore[attr-defined]
    try:
        yield
    finally:
        attempt.slot_batch = honest  # type: ignore[attr-defined]


@contextmanager
def _held_up(step: int | None, notes: Path) -> Iterator[None]:
    """The first attempt's commits of a step and of later ones wait until a note lets them go."""
    from heliostat.checkpoint.log import CheckpointEntry, CommitLog

    honest = CommitLog.append

    def append(self: Any, lease: Any, entry: Any) -> int:
        is_meant = step is not None and isinstance(entry, CheckpointEntry) and entry.step >= step
        if not is_meant or entry.attempt > 1:
            return honest(self, lease, entry)
        (notes / HELD).touch()
        while not (notes / LET_GO).exists():
            time.sleep(0.05)
        outcome = "committed"
        try:
            return honest(self, lease, entry)
        except Exception as error:
            outcome = type(error).__name__
            raise
        finally:
            (notes / f"{TRIED}.new").write_text(outcome)
            (notes / f"{TRIED}.new").rename(notes / TRIED)

    CommitLog.append = append  # type: ignore[method-assign]
    try:
        yield
    finally:
        CommitLog.append = honest  # type: ignore[method-assign]


def main() -> None:
    from heliostat.config import load_recipe
    from heliostat.config.training import TrainingRecipe
    from heliostat_cluster.local import joined_ray
    from heliostat_jobs.runs import open_run
    from heliostat_jobs.train import train_on_ray

    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("notes")
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("--poison", type=int)
    parser.add_argument("--hold-commit", type=int)
    parser.add_argument("--set", action="append", default=[])
    chosen = parser.parse_args()
    resolved = load_recipe(chosen.recipe, chosen.set, os.environ)
    assert isinstance(resolved.recipe, TrainingRecipe)
    attempt = partial(
        paced_attempt,
        notes=chosen.notes,
        pace_s=chosen.pace,
        poisoned_step=chosen.poison,
        held_step=chosen.hold_commit,
    )
    with joined_ray(chosen.address):
        train_on_ray(resolved.recipe, open_run(resolved), attempt)


if __name__ == "__main__":
    main()
