"""What ``submit`` would fail on, looked at before anything is started; and what a job reads and writes, and where."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from heliostat.config import ResolvedRecipe
from heliostat.config.curate import CurateRecipe
from heliostat.config.distill import DistillRecipe, recipe_of_network
from heliostat.config.evaluate import EvaluateRecipe
from heliostat.config.export import ExportRecipe
from heliostat.config.kinds import Recipe
from heliostat.config.network import NetworkRecipe
from heliostat.config.pipeline import PipelineRecipe
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.provenance import recipe_of
from heliostat.config.secrets import parse_references
from heliostat.config.starts import start_of, weights_of
from heliostat.config.training import TrainingRecipe
from heliostat.data.manifest import load_manifest
from heliostat.errors import HeliostatError, WeightsNotFoundError
from heliostat.storage import Store, open_store
from heliostat.training.planning.plan import STATE_BYTES_PER_PARAMETER
from heliostat.training.planning.shapes import parameter_sizes
from heliostat_jobs.kinds import job_of
from heliostat_jobs.locks import datasets_of
from heliostat_jobs.runs import check_labels, load_run, start_checkpoint
from heliostat_jobs.submission import records
from heliostat_jobs.submission.access import check_access, cluster_url, token_file
from heliostat_jobs.submission.ray_jobs import RayJobs
from heliostat_jobs.submission.submit import check_identity


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that has to be so."""

    name: str
    problem: HeliostatError | None = None

    def to_json(self) -> dict[str, Any]:
        """With the error's parts."""
        if self.problem is None:
            return {"check": self.name, "ok": True}
        error = {"code": self.problem.code, "message": self.problem.fact, "next_step": self.problem.next_step}
        return {"check": self.name, "ok": False, "error": error}


@dataclass(frozen=True, slots=True)
class Transfer:
    """Bytes that a job reads or writes.

    Attributes:
        verb: reads or writes.
        place: Where.
        what: In words.
        size_bytes: How many; none if nobody knows before.
    """

    verb: str
    place: str
    what: str
    size_bytes: float | None = None


def checks(
    resolved: ResolvedRecipe, *, address: str | None = None, insecure: bool = False, secrets: Sequence[str] = ()
) -> list[Check]:
    """Everything that ``submit`` would fail on, except for what only the cluster's nodes know.

    Args:
        resolved: The recipe.
        address: Of the cluster; None leaves it out.
        insecure: As for ``submit``.
        secrets: As for ``submit``.
    """
    recipe = resolved.recipe
    found = [_tried(f"storage {recipe.root}", lambda: _look_at(open_store(recipe.root)))]
    if found[0].problem is None:
        root = open_store(recipe.root)
        found.append(_tried(f"name {recipe.name}", lambda: _check_name(resolved, root)))
        found += [_tried(name, look) for name, look in _inputs(recipe, root)]
    if secrets:
        found.append(_tried("secrets", lambda: parse_references(secrets)))
    if address is not None:
        found.append(_tried(f"access to {address}", lambda: _check_cluster(address, insecure)))
    return found


def raise_first(looked: Sequence[Check]) -> None:
    """Raise the first problem that checks have found, if any."""
    for check in looked:
        if check.problem is not None:
            raise check.problem


def _tried(name: str, look: Callable[[], object]) -> Check:
    try:
        look()
    except HeliostatError as error:
        return Check(name, error)
    return Check(name)


def _look_at(root: Store) -> None:
    root.folders()


def _check_name(resolved: ResolvedRecipe, root: Store) -> None:
    job = job_of(resolved.recipe, root)
    check_identity(job, resolved, records.newest(job.store))


def _check_cluster(address: str, insecure: bool) -> None:
    url = cluster_url(address)
    check_access(url, token_file(os.environ, Path.home()), is_insecure_wanted=insecure)
    RayJobs.at(url, is_insecure_wanted=insecure)


def _inputs(recipe: Recipe, root: Store) -> Iterator[tuple[str, Callable[[], object]]]:
    """What a recipe starts from and does not make itself."""
    if isinstance(recipe, PipelineRecipe):
        made = {recipe.job_name(stage.name) for stage in recipe.expanded}
        for stage in recipe.expanded:
            of_stage = recipe_of(stage.config or {})
            for name, look in _inputs(of_stage, root):
                if name.partition(" ")[2] not in made:
                    yield f"{stage.name}: {name}", look
        return
    for name in sorted(datasets_of(recipe)):
        yield f"dataset {name}", partial(load_manifest, root, name)
    if isinstance(recipe, EvaluateRecipe | ExportRecipe):
        yield f"run {recipe.run}", partial(_network_of, recipe, root)
    if (named := weights_of(recipe)) is not None:
        yield f"weights {named[1]}", partial(_known_weights, *named)
    if isinstance(recipe, DistillRecipe) and recipe.objective.labels.weight:
        yield "labels", partial(_known_labels, recipe, root)
    start = start_of(recipe)
    if start is not None:
        yield f"run {start.run}", partial(start_checkpoint, recipe, root)


def _known_labels(recipe: DistillRecipe, root: Store) -> None:
    check_labels(recipe, root, {name: load_manifest(root, name).sha256 for name in recipe.dataset.shares})


def _known_weights(key: str, name_or_path: str) -> None:
    """Refuse a name that nothing has; whether a path is there, the cluster alone knows."""
    from heliostat.models.weights.download import is_official_name

    is_path = "/" in name_or_path or Path(name_or_path).suffix or Path(name_or_path).exists()
    if not is_path and not is_official_name(name_or_path):
        raise WeightsNotFoundError(
            f"{key} {name_or_path!r} is no released model, and no path",
            "Give a file or folder of weights, a run as ROOT/runs/NAME or s3://…, or a name such as dinov2_vits14",
        )


def _network_of(recipe: EvaluateRecipe | ExportRecipe, root: Store) -> object:
    return recipe_of_network(load_run(root, recipe.run), recipe.student)


def reads(recipe: Recipe, root: Store) -> list[Transfer]:
    """What a job reads from its datasets; of those that do not exist yet the size is not known."""
    if isinstance(recipe, PipelineRecipe):
        return [each for stage in recipe.expanded for each in reads(recipe_of(stage.config or {}), root)]
    return [_reading(recipe, root, name) for name in sorted(datasets_of(recipe))]


def _reading(recipe: Recipe, root: Store, name: str) -> Transfer:
    try:
        manifest = load_manifest(root, name)
    except HeliostatError:
        return Transfer("reads", f"datasets/{name}", "not there yet")
    times = 1.0
    if isinstance(recipe, TrainingRecipe):
        shares = recipe.dataset.shares
        samples = recipe.training.steps * recipe.training.global_batch * shares[name] / sum(shares.values())
        times = samples / max(1, manifest.rows)
    what = f"{manifest.rows:,} images, {times:,.2f} times"
    return Transfer("reads", f"datasets/{name}", what, manifest.size_bytes * times)


def writes(recipe: Recipe) -> list[Transfer]:
    """Where a job writes, below its root."""
    match recipe:
        case PretrainRecipe():
            return _written_by_run(recipe, [recipe])
        case DistillRecipe():
            written = _written_by_run(recipe, [recipe.of_student(student) for student in recipe.students])
            kept = Transfer("writes", "teacher_views", "what the teacher says of each image, unless it is there")
            return [*written, kept] if recipe.teacher.cache else written
        case CurateRecipe():
            places = {
                f"curations/{recipe.name}": "what became of each image, the report",
                f"datasets/{recipe.name}": "the curated dataset: references, no images",
            }
        case EvaluateRecipe():
            places = {f"runs/{recipe.run}/reports/{recipe.name}.json": "the numbers"}
        case ExportRecipe():
            places = {f"exports/{recipe.name}": f"the backbone as {recipe.format}"}
        case PipelineRecipe():
            own = Transfer("writes", f"pipelines/{recipe.name}", "what was decided about the stages")
            return [own, *(each for stage in recipe.expanded for each in writes(recipe_of(stage.config or {})))]
    return [Transfer("writes", place, what) for place, what in places.items()]


def _written_by_run(recipe: TrainingRecipe, networks: Sequence[NetworkRecipe]) -> list[Transfer]:
    one_bytes = STATE_BYTES_PER_PARAMETER * sum(sum(parameter_sizes(each).values()) for each in networks)
    config, steps = recipe.checkpoint, recipe.training.steps
    made = -(-steps // config.every_steps)
    kept = config.keep_last + (config.keep_best is not None)
    kept += steps // config.keep_every_steps if config.keep_every_steps else 0
    kept = min(made, kept)
    what = f"{made:,} checkpoint{'' if made == 1 else 's'}, {kept:,} kept"
    folder = f"runs/{recipe.name}"
    return [
        Transfer("writes", f"{folder}/checkpoints", what, one_bytes * kept),
        Transfer("writes", f"{folder}/{{events,metrics,commits}}", "what happened, numbers of every step, the log"),
    ]
