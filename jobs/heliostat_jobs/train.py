"""``kind: pretrain``, ``adapt`` and ``distill``: create or find the run, start workers, wait for the last step."""

import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from heliostat.checkpoint.log import CommitLog
from heliostat.config import ResolvedRecipe
from heliostat.config.distill import DistillRecipe
from heliostat.config.training import TrainingRecipe
from heliostat.data.ray_tasks import ActorPool, Task, run_tasks
from heliostat.errors import NoDataPoolError, TooFewGpusError
from heliostat.models.weights.runs import checkpoint_of_step
from heliostat.models.weights.stored import describe_weights
from heliostat.observe.metrics import merged_curve, read_metrics
from heliostat.observe.progress import watch_items, watch_run
from heliostat.observe.prometheus import RayMetrics, run_values
from heliostat.storage import Store
from heliostat.storage.layout import run_store
from heliostat.training.attempt import RunSpec, train_attempt
from heliostat.training.single_process import device_of, single_process_run
from heliostat.training.students import StartingPoint, TrainedBackbone, TrainedNetworks, needs_start
from heliostat.training.teacher_views import Run, keep_views
from heliostat.training.trainer import fit
from heliostat_cluster.local import joined_ray, local_ray
from heliostat_jobs.artifacts import check_artifact
from heliostat_jobs.extras import require_extra
from heliostat_jobs.online_knn import online_knn
from heliostat_jobs.run_report import REPORT_KEY, median_rate, write_run_report
from heliostat_jobs.runs import OpenedRun, load_run, open_run

_log = logging.getLogger(__name__)

_DATA_CPUS_PER_WORKER = 0.5
"""Ray Data's tasks run beside the workers; without CPUs of their own both would wait for ever."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a run ended."""

    run: str
    directory: str
    steps: int
    loss: float | None
    images_per_s: float | None
    """Median over the steps of the run."""
    was_finished: bool
    """The run had been finished before."""

    def to_json(self) -> dict[str, object]:
        """All of it."""
        return asdict(self)

    def summary(self) -> list[str]:
        """What happened, line by line."""
        loss = "" if self.loss is None else f", loss {self.loss:.3f}"
        rate = "" if self.images_per_s is None else f", {self.images_per_s:.0f} images/s"
        what = "was finished already" if self.was_finished else "finished"
        return [f"{self.run} {what}: {self.steps} steps{loss}{rate}", f"run directory: {self.directory}"]


def train(resolved: ResolvedRecipe, *, single_process: bool = False, address: str | None = None) -> TrainResult:
    """Run or resume a run to its last step, on an embedded Ray, on a cluster, or in this process alone.

    Args:
        resolved: The recipe.
        single_process: In this process alone.
        address: Of the Ray cluster that this machine belongs to; None starts a Ray of its own.

    Raises:
        ChangedConfigError: a run of this name has another configuration.
        MissingExtraError: a tracker that the recipe names is not installed.
        RunError: training failed; what is committed stays, and the same call resumes it.
    """
    recipe = resolved.recipe
    assert isinstance(recipe, TrainingRecipe)  # noqa: S101 -- callers dispatch on the kind
    if recipe.observe.trackers:
        require_extra("trackers", *recipe.observe.trackers)
    run = open_run(resolved)
    if not run.is_finished and single_process:
        train_alone(recipe, run)
    elif not run.is_finished:
        with local_ray(cpus_needed(recipe)) if address is None else joined_ray(address):
            train_on_ray(recipe, run)
    _report(run.store, recipe)
    return _result(recipe, run.store, run.is_finished)


def _report(run: Store, recipe: TrainingRecipe) -> None:
    """Write the report of a run that is finished, if it has none; a run never fails for its report."""
    try:
        if not run.exists(REPORT_KEY):
            write_run_report(run, recipe)
    except Exception as error:
        _log.warning("the report of %s could not be written: %s", recipe.name, error)


def train_on_ray(
    recipe: TrainingRecipe, run: OpenedRun, attempt: Callable[[dict[str, Any]], None] = train_attempt
) -> None:
    """Run or resume a run on the initialised Ray, with a live view; ``attempt`` is what a worker does."""
    metrics = RayMetrics(recipe.name)
    _check_pool(recipe)
    spec, use_gpu = run_spec(recipe, run), _use_gpu(recipe)
    keep_teacher_views(spec, run_tasks, "cuda" if use_gpu else "cpu")
    with watch_run(
        run.store,
        recipe.training.steps,
        publish=lambda ledger, status: metrics.publish(run_values(ledger, status)),
    ):
        fit(spec, use_gpu, attempt)


def run_spec(recipe: TrainingRecipe, run: OpenedRun) -> RunSpec:
    """What the workers of a run have to know."""
    return RunSpec(recipe, run.root, run.manifests, online_knn(recipe, run.root), _start(recipe, run))


def _start(recipe: TrainingRecipe, run: OpenedRun) -> StartingPoint | None:
    if run.weights is not None:
        return TrainedBackbone(run.weights, *describe_weights(run.root, run.weights))
    if run.start is None or not needs_start(recipe, CommitLog(run.store).read()):
        return None
    name, step = str(run.start["name"]), int(run.start["step"])
    check_artifact(run.root, run.start)
    return TrainedNetworks(load_run(run.root, name), checkpoint_of_step(run_store(run.root, name), name, step))


def train_alone(recipe: TrainingRecipe, run: OpenedRun) -> None:
    """Run or resume a run without Ray and DeepSpeed, with a live view."""
    spec = run_spec(recipe, run)
    keep_teacher_views(spec, one_by_one, device_of(recipe.scaling.accelerator).type)
    with (
        watch_run(run.store, recipe.training.steps),
        single_process_run(spec) as worker,
    ):
        for _ in worker.steps():
            pass


def keep_teacher_views(spec: RunSpec, run: Run, device: str) -> None:
    """See that what the teacher says of all images is there, if the run reads it instead of asking the teacher."""
    recipe = spec.recipe
    if not isinstance(recipe, DistillRecipe) or not recipe.teacher.cache:
        return
    assert spec.start is not None  # noqa: S101 -- a distillation has a teacher
    with watch_items("looked at by the teacher") as progress:
        keep_views(
            recipe,
            spec.root,
            spec.manifests,
            spec.start,
            run=run,
            device=device,
            report=lambda done, total: progress.update(done, total=total),
        )


def one_by_one(payloads: Iterator[tuple[int, bytes]], pool: Task | ActorPool) -> Iterator[tuple[int, bytes]]:
    """As ``run_tasks`` does, in this process."""
    task: Task | None = None
    for index, payload in payloads:
        if task is None:
            task = pool.make() if isinstance(pool, ActorPool) else pool
        yield index, task(payload)


def cpus_needed(recipe: TrainingRecipe) -> int:
    """What the embedded Ray must be able to hand out: workers and their data tasks at once."""
    per_worker = recipe.scaling.cpus_per_worker + _DATA_CPUS_PER_WORKER
    return max(os.cpu_count() or 1, math.ceil(recipe.scaling.workers * per_worker))


def _check_pool(recipe: TrainingRecipe) -> None:
    """Ray would wait for ever for nodes that nobody starts."""
    import ray

    streaming, wanted = recipe.streaming, recipe.scaling.workers * recipe.streaming.crop_processes
    found = sum(
        min(node["Resources"].get(streaming.pool_resource, 0), node["Resources"].get("CPU", 0))
        for node in ray.nodes()
        if node["Alive"]
    )
    if streaming.crops_on == "pool" and found < wanted:
        raise NoDataPoolError(
            f"{wanted} processes are to make crops on a pool of nodes, and the nodes of this Ray offer {found:g} pairs "
            f"of a CPU and a unit of {streaming.pool_resource!r}; the Ray of `heliostat run` has none",
            f"Set streaming.crops_on to trainer, or start nodes of a cluster with "
            f"ray start --resources '{{\"{streaming.pool_resource}\": {wanted}}}'",
        )


def _use_gpu(recipe: TrainingRecipe) -> bool:
    import ray

    gpus, workers = int(ray.cluster_resources().get("GPU", 0)), recipe.scaling.min_workers
    if recipe.scaling.accelerator == "cpu" or (recipe.scaling.accelerator == "auto" and not gpus):
        return False
    if gpus < workers:  # Ray Train would wait for them for ever
        raise TooFewGpusError(
            f"scaling.min_workers is {workers}, one GPU each, but this Ray has {gpus}",
            f"Set scaling.min_workers to at most {gpus}" if gpus else "Set scaling.accelerator to cpu",
        )
    return True


def _result(recipe: TrainingRecipe, store: Store, was_finished: bool) -> TrainResult:
    metrics = read_metrics(store)
    curve = merged_curve(metrics)
    return TrainResult(
        run=recipe.name,
        directory=store.url,
        steps=recipe.training.steps,
        loss=curve[-1].values.get("loss") if curve else None,
        images_per_s=median_rate(metrics) or None,
        was_finished=was_finished,
    )
