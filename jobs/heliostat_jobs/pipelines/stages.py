"""From a stage of a pipeline's recipe to its job: what it starts from, what its result follows from, its request."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heliostat.config.adapt import AdaptRecipe
from heliostat.config.curate import CurateRecipe
from heliostat.config.evaluate import EvaluateRecipe
from heliostat.config.export import ExportRecipe
from heliostat.config.kinds import Recipe
from heliostat.config.pipeline import TAKES, PipelineRecipe, StageConfig
from heliostat.config.provenance import check_same_run, identity, recipe_of, with_values
from heliostat.config.starts import start_of
from heliostat.data.manifest import load_manifest
from heliostat.errors import ArtifactChangedError, HeliostatError, NoCheckpointError, ObjectNotFoundError
from heliostat.storage import Store
from heliostat.storage.layout import run_store
from heliostat_jobs.artifacts import Artifacts, check_artifact, checkpoint_artifacts
from heliostat_jobs.kinds import Job, job_of
from heliostat_jobs.locks import datasets_of, pinned_manifests, pinned_start, pinned_weights
from heliostat_jobs.pipelines.state import StageSpec, StageState
from heliostat_jobs.runs import start_checkpoint, start_weights

_DONE_FOLDER = "stages/"
"""Of the root: what stages of any pipeline have made, by the hash of what it follows from."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage that may start: everything before it is done."""

    job: Job
    recipe: Recipe
    """With what it starts from in it."""
    inputs: Artifacts
    """What it starts from, by the recipe's own words."""
    taken: frozenset[str] = frozenset()
    """Keys of the recipe that name what it starts from."""


def specs_of(pipeline: PipelineRecipe) -> tuple[StageSpec, ...]:
    """What is decided upon."""
    return tuple(StageSpec(stage.name, stage.before, stage.tries) for stage in pipeline.expanded)


def stage_job(stage: StageConfig, root: Store) -> Job:
    """Where the job of a stage lies."""
    return job_of(_recipe(stage), root)


def stage_of(pipeline: PipelineRecipe, name: str, states: Mapping[str, StageState], root: Store) -> Stage:
    """A stage with what the stages before it have made.

    Raises:
        ArtifactChangedError: a stage before it did not make what this one starts from.
    """
    (config,) = (stage for stage in pipeline.expanded if stage.name == name)
    recipe = _recipe(config)
    inputs: Artifacts = {}
    taken = frozenset[str]()
    if config.source is not None:
        before, _, artifact = config.source.rpartition(".")
        made = states[before].artifacts
        if artifact not in made:
            raise ArtifactChangedError(
                f"stage {name} is to start from {config.source}, but {before} has made {', '.join(made) or 'nothing'}",
                "Name one of these",
            )
        inputs = {config.source: made[artifact]}
        giver = next(_recipe(stage).kind for stage in pipeline.expanded if stage.name == before)
        key = TAKES[giver, recipe.kind]
        taken = frozenset([key])
        recipe = _taking(recipe, key, made[artifact])
    return Stage(job_of(recipe, root), recipe, inputs, taken)


def _recipe(stage: StageConfig) -> Recipe:
    assert stage.config is not None  # noqa: S101 -- recipes of stages are read with the pipeline's
    return recipe_of(stage.config)


def _taking(recipe: Recipe, key: str, artifact: Mapping[str, str | int]) -> Recipe:
    """The recipe, starting from an artifact, whose name belongs to a key; the step of a run has one beside it."""
    values: dict[str, Any] = {key: artifact["name"]}
    if "step" in artifact:
        section, dot, _ = key.rpartition(".")
        values[f"{section}{dot}step"] = artifact["step"]
    return with_values(recipe, values)


def check_same_stage(old_identity: Mapping[str, object], stage: Stage) -> None:
    """Refuse a job of a stage's name that is another one's.

    What it starts from may have another name: of the same artifact that another pipeline has made.

    Raises:
        ChangedConfigError: it has another configuration.
    """
    old, new = (
        {key: value for key, value in each.items() if key not in stage.taken}
        for each in (old_identity, identity(stage.recipe))
    )
    check_same_run(old, new)


def inputs_hash(stage: Stage) -> str:
    """Of everything that a stage's result follows from: its recipe, what it starts from, the datasets that it reads.

    Raises:
        HeliostatError: something of it is not there.
    """
    taken = {str(artifact["name"]) for artifact in stage.inputs.values()}
    pinned = pinned_manifests(stage.job.store) or {}
    names = sorted(set(datasets_of(stage.recipe)) - taken)
    follows_from = {
        "kind": stage.recipe.kind,
        "recipe": {key: value for key, value in identity(stage.recipe).items() if key not in stage.taken},
        "inputs": sorted(str(artifact["manifest_sha256"]) for artifact in stage.inputs.values()),
        # A job that has begun is bound to what it has begun with.
        "datasets": {name: pinned.get(name) or load_manifest(stage.job.root, name).sha256 for name in names},
        "checkpoint": _checkpoint(stage),
        "weights": _weights(stage),
    }
    return hashlib.sha256(json.dumps(follows_from, sort_keys=True).encode()).hexdigest()


def _checkpoint(stage: Stage) -> str | int | None:
    """Of a run that is named without being a stage: its newest checkpoint as of now, or the one that is pinned."""
    start = start_of(stage.recipe)
    if start is not None and start.key not in stage.taken:
        pinned = pinned_start(stage.job.store) or start_checkpoint(stage.recipe, stage.job.root)
        return None if pinned is None else pinned["manifest_sha256"]
    if stage.inputs or not isinstance(stage.recipe, EvaluateRecipe | ExportRecipe):
        return None
    run = stage.recipe.run
    made = checkpoint_artifacts(run_store(stage.job.root, run), run)
    if "last" not in made:
        raise NoCheckpointError(f"run {run!r} has committed no checkpoint yet", "Wait for the first one")
    return made["last"]["manifest_sha256"]


def _weights(stage: Stage) -> Mapping[str, str]:
    if isinstance(stage.recipe, AdaptRecipe) and stage.recipe.init_from.weights is not None:
        pinned = pinned_weights(stage.job.store)
        return {"weights": pinned or start_weights(stage.recipe, stage.recipe.init_from.weights, stage.job.root)}
    if not isinstance(stage.recipe, CurateRecipe):
        return {}
    from heliostat.curation.curate import pin

    return pin(stage.job.root, stage.recipe).inputs


def remember(root: Store, inputs: str, artifacts: Artifacts) -> None:
    """A stage with these inputs has made this."""
    root.put(f"{_DONE_FOLDER}{inputs}.json", json.dumps(artifacts).encode())


def made_before(stage: Stage) -> Artifacts | None:
    """What any pipeline's stage has made from the same inputs, if all of it is still there."""
    try:
        artifacts: Artifacts = json.loads(stage.job.root.get(f"{_DONE_FOLDER}{inputs_hash(stage)}.json"))
        for artifact in artifacts.values():
            check_artifact(stage.job.root, artifact)
    except (ObjectNotFoundError, HeliostatError, ValueError, KeyError):
        return None
    return artifacts
