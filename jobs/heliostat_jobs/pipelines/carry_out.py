"""``kind: pipeline``: by a controller, a job on a cluster itself, or one stage after the other in this process."""

import logging
from dataclasses import dataclass
from typing import Any

from heliostat.config import ResolvedRecipe
from heliostat.config.keys import values_of
from heliostat.config.pipeline import PipelineRecipe, in_order
from heliostat.errors import JobFailedError
from heliostat.storage import Store, open_store
from heliostat_jobs.artifacts import Artifacts
from heliostat_jobs.kinds import JOB_KINDS
from heliostat_jobs.pipelines.controller import Controller
from heliostat_jobs.pipelines.report import write_pipeline_report
from heliostat_jobs.pipelines.stages import inputs_hash, made_before, remember, specs_of, stage_of
from heliostat_jobs.pipelines.state import Phase, PipelineState, StageState
from heliostat_jobs.submission.ray_jobs import RayJobs
from heliostat_jobs.submission.records import Request

_PATIENCE_S = 1800.0
"""That an outage of the store may last."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """How a pipeline ended well."""

    name: str
    state: PipelineState

    def to_json(self) -> dict[str, Any]:
        """Each stage's state and what it has made."""
        return {
            "pipeline": self.name,
            "stages": {
                name: {"state": stage.phase.value, "tries": stage.tries, "artifacts": stage.artifacts}
                for name, stage in self.state.stages.items()
            },
        }

    def summary(self) -> list[str]:
        """The stages, line by line."""
        return [f"{self.name}: all stages are done", *(f"  {n} {s.phase}" for n, s in self.state.stages.items())]


def control(resolved: ResolvedRecipe, request: Request) -> PipelineResult:
    """Be the controller, as a job on the cluster where the stages run.

    Raises:
        JobFailedError: a stage failed for good.
        KeyboardInterrupt: the pipeline was cancelled.
        FencedError: another controller has taken over.
    """
    recipe = resolved.recipe
    assert isinstance(recipe, PipelineRecipe)  # noqa: S101 -- callers dispatch on the kind
    root = open_store(recipe.root).patient(_PATIENCE_S)
    controller = Controller(recipe, root, request, RayJobs.here(request.address))
    state = controller.run()
    _report(controller.root, recipe)
    if state.outcome == "cancelled":
        raise KeyboardInterrupt
    if state.outcome == "failed":
        failed = [(name, stage) for name, stage in state.stages.items() if stage.phase is Phase.FAILED]
        why = "; ".join(f"{name}: {stage.causes[-1]}" for name, stage in failed) or "a stage was cancelled"
        raise JobFailedError(
            f"pipeline {recipe.name} cannot go on ({why})",
            f"See heliostat logs {recipe.job_name(failed[0][0] if failed else 'STAGE')}, then heliostat resume "
            f"{recipe.name}",
        )
    return PipelineResult(recipe.name, state)


def _report(root: Store, recipe: PipelineRecipe) -> None:
    """Write the report; a pipeline never fails for it."""
    try:
        write_pipeline_report(root, recipe)
    except Exception as error:
        _log.warning("the report of pipeline %s could not be written: %s", recipe.name, error)


def carry_out_here(resolved: ResolvedRecipe, address: str | None) -> PipelineResult:
    """Carry out one stage after the other in this process; one that was done is skipped, one that was begun resumed.

    Args:
        resolved: The pipeline.
        address: Of the Ray cluster that this machine belongs to; None starts a Ray of its own for each stage.

    Raises:
        HeliostatError: what a stage has to say.
    """
    recipe = resolved.recipe
    assert isinstance(recipe, PipelineRecipe)  # noqa: S101 -- callers dispatch on the kind
    root = open_store(recipe.root)
    specs = specs_of(recipe)
    states = {spec.name: StageState() for spec in specs}
    for config in in_order(recipe.expanded):
        stage = stage_of(recipe, config.name, states, root)
        made: Artifacts | None = made_before(stage)
        phase = Phase.SUCCEEDED if made is None else Phase.SKIPPED
        if made is None:
            inputs = inputs_hash(stage)
            origins = dict.fromkeys(values_of(stage.recipe), f"stage {config.name}")
            kind = JOB_KINDS[stage.recipe.kind]
            kind.carry_out(ResolvedRecipe(stage.recipe, origins, resolved.text), address, None)
            made = kind.artifacts(stage.job)
            remember(root, inputs, made)
        states[config.name] = StageState(phase, 1, artifacts=made)
    return PipelineResult(recipe.name, PipelineState(specs, states, "succeeded"))
