"""Runs of small networks, some at a time: each in a process of its own, with its share of the cores."""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch

from frame import tell
from heliostat.config import ResolvedRecipe
from heliostat_jobs.train import train


def run_all(recipes: Sequence[ResolvedRecipe], processes: int) -> None:
    """Train all of them to their last steps."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=1) as pool:
        begun = {pool.submit(_run, each, threads): each.recipe.name for each in recipes}
        for number, future in enumerate(as_completed(begun)):
            future.result()
            tell(f"run {number + 1} of {len(begun)} has ended: {begun[future]}")


def _run(resolved: ResolvedRecipe, threads: int) -> None:
    torch.set_num_threads(threads)
    train(resolved, single_process=True)
