"""Distillation: what students gain over training alone, and what a teacher that is shared saves.

Ratios:
    knn_gain_over_alone: k-NN accuracy (k = 10) of a student of a trained teacher over that of the same student trained
        alone: the same images, steps, seed and constants, on tiles of real photographs, median of the seeds. Wanted:
        above 1, with an interval of the difference that does not hold 0.
    linear_gain_over_alone: the same of a linear classifier.
    two_students_cost_vs_two_runs: smaller is better: seconds of a step with two students over those of the two runs
        with one student each, which run the teacher twice. Wanted: below 1.
    cached_teacher_speed: seconds of a step with three students whose teacher looks at every crop over those of one that
        reads what the teacher has said before; crops are fixed in both. What keeping it took is told beside it.

Floor: none is stated; what is saved is one of two passes of the teacher.

The teacher is wider and saw twice as many images as each student does. Photographs and steps were chosen with seed 100,
of teacher and students, which is not measured; constants are those of the demo, for both sides. Students that share a
run are what they are in a run of their own, as a pair with one seed shows beside the single runs.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import above  # noqa: F401 -- processes that are started see this folder

from distilled_runs import STUDENTS, Runs, judged
from distilled_tiles import write_datasets
from frame import BenchResult, Spread, in_turns, run_bench, significant, tell
from heliostat.config import ResolvedRecipe
from heliostat.config.distill import DistillRecipe
from heliostat.config.training import TrainingRecipe
from heliostat.training.single_process import single_process_run
from heliostat_jobs.runs import open_run
from heliostat_jobs.train import keep_teacher_views, one_by_one, run_spec, train
from over_seeds import difference
from side_by_side import run_all

_SEEDS, _QUICK_SEEDS = (0, 1, 2), (0, 1)
_TEACHER_STEPS, _STEPS, _QUICK_STEPS = 600, 300, 8
_TURN_STEPS = 4
_PAIR = tuple(STUDENTS)[:2]
_METRICS = ("knn", "linear")


class SteppedRun:
    """A run of this process, some steps at a time."""

    def __init__(self, resolved: ResolvedRecipe, stack: ExitStack) -> None:
        recipe = resolved.recipe
        assert isinstance(recipe, TrainingRecipe)
        worker = stack.enter_context(single_process_run(run_spec(recipe, open_run(resolved))))
        self.teacher_passes = 0
        self._worker = worker
        self._steps: Iterator[Any] = worker.steps()
        next(self._steps)
        if isinstance(recipe, DistillRecipe) and not recipe.teacher.cache:  # else it has no backbone
            worker.training.targets.teacher.network.backbone.register_forward_pre_hook(self._count)

    def __call__(self) -> None:
        """Make the next steps."""
        for _ in islice(self._steps, _TURN_STEPS):
            pass

    def _count(self, *_: object) -> None:
        self.teacher_passes += 1


def compared_costs(runs: Runs) -> tuple[dict[str, float], dict[str, Any]]:
    """The ratios of seconds, and the details."""
    candidates = {name: (name,) for name in _PAIR} | {"both": _PAIR}
    recipes = {name: runs.taught(students, 0, name=f"cost-{name}") for name, students in candidates.items()}
    for name, cache in (("asked", False), ("kept", True)):
        teacher = {"run": "teacher", "cache": cache}
        recipes[name] = runs.taught(list(STUDENTS), 0, name=f"cost-{name}", fixed=True, teacher=teacher)
    started_s = time.perf_counter()
    recipe = recipes["kept"].recipe
    assert isinstance(recipe, DistillRecipe)
    keep_teacher_views(run_spec(recipe, open_run(recipes["kept"])), one_by_one, "cpu")
    keeping_s = time.perf_counter() - started_s
    with ExitStack() as stack:
        made = {name: SteppedRun(each, stack) for name, each in recipes.items()}
        seconds = in_turns(made)
        turns = len(seconds["both"].values) + 1
        passes = {name: run.teacher_passes / (turns * _TURN_STEPS) for name, run in made.items()}
    apart = Spread(tuple(sum(pair) for pair in zip(*(seconds[name].values for name in _PAIR), strict=True)))
    details = {
        "measured": {f"turn of {name}": each.summary("s") for name, each in seconds.items()},
        "teacher passes of a step": passes,
        "seconds to keep what the teacher says of all images": significant(keeping_s),
    }
    ratios = {
        "two_students_cost_vs_two_runs": seconds["both"].over(apart).median,
        "cached_teacher_speed": seconds["asked"].over(seconds["kept"]).median,
    }
    return ratios, details


def judged_students(runs: Runs, seeds: Sequence[int]) -> tuple[dict[str, float], dict[str, Any]]:
    """The median gains, and all accuracies."""
    first, second = _PAIR
    pair = runs.taught(_PAIR, seeds[0])
    alone = [runs.alone(first, seed) for seed in seeds]
    taught = [runs.taught([first], seed) for seed in seeds]
    other = runs.taught([second], seeds[0])
    run_all([pair, *taught, *alone, other], processes=2)
    names: dict[str, list[tuple[str, str | None]]] = {
        f"{first} alone": [(each.recipe.name, None) for each in alone],
        f"{first} taught": [(each.recipe.name, first) for each in taught],
        f"{second} taught": [(other.recipe.name, second)],
        f"{first} of two": [(pair.recipe.name, first)],
        f"{second} of two": [(pair.recipe.name, second)],
        "teacher": [("teacher", None)],
    }
    found = {name: [judged(runs.root, run, student) for run, student in each] for name, each in names.items()}
    tell("judged")
    without, taught_ones = found[f"{first} alone"], found[f"{first} taught"]
    details = {
        "accuracies by seed": {
            name: {metric: [significant(getattr(each, metric)) for each in values] for metric in _METRICS}
            for name, values in found.items()
        },
        "taught - alone": {
            metric: difference(*([getattr(each, metric) for each in side] for side in (taught_ones, without)))
            for metric in _METRICS
        },
    }
    ratios = {
        f"{metric}_gain_over_alone": statistics.median(
            getattr(mine, metric) / getattr(theirs, metric) for mine, theirs in zip(taught_ones, without, strict=True)
        )
        for metric in _METRICS
    }
    return ratios, details


def measure(quick: bool) -> BenchResult:
    """All of it."""
    with tempfile.TemporaryDirectory() as folder:
        root = str(Path(folder) / "root")
        runs = Runs(root, Path(folder), _QUICK_STEPS if quick else _STEPS)
        tiles = write_datasets(root, Path(folder), quick)
        tell("datasets are written")
        train(runs.teacher(_QUICK_STEPS if quick else _TEACHER_STEPS))
        tell("the teacher is trained")
        costs, cost_details = compared_costs(Runs(root, Path(folder), 1000))
        gained, details = judged_students(runs, _QUICK_SEEDS if quick else _SEEDS)
    return BenchResult("distill", {**gained, **costs}, None, {"tiles": tiles.to_json(), **cost_details, **details})


if __name__ == "__main__":
    run_bench("distill", __doc__, measure)
