"""How far a pipeline is: a pure fold over its log."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from heliostat_jobs.artifacts import Artifacts
from heliostat_jobs.pipelines.log import (
    PipelineEnded,
    PipelineEntry,
    PipelineReopened,
    StageEnded,
    StageSkipped,
    StageStarted,
)
from heliostat_jobs.submission.records import Outcome


class Phase(StrEnum):
    """Of a stage."""

    WAITING = "waiting"
    """For other stages, or for its next try."""
    STARTED = "started"
    SUCCEEDED = "succeeded"
    SKIPPED = "skipped"
    FAILED = "failed"
    """For good."""
    CANCELLED = "cancelled"


DONE = frozenset({Phase.SUCCEEDED, Phase.SKIPPED})


@dataclass(frozen=True, slots=True)
class StageSpec:
    """A stage as the recipe has it.

    Attributes:
        name: Of the stage.
        after: Stages that have to be done before.
        tries: How often it is started at most.
    """

    name: str
    after: tuple[str, ...] = ()
    tries: int = 1


@dataclass(frozen=True, slots=True)
class StageState:
    """Where a stage is.

    Attributes:
        phase: See ``Phase``.
        tries: How often it was started.
        submission_id: Of the job of the last try.
        inputs: Hash of what the last try's result follows from.
        causes: Of the failures of its tries so far.
        artifacts: What it has made.
    """

    phase: Phase = Phase.WAITING
    tries: int = 0
    submission_id: str | None = None
    inputs: str = ""
    causes: tuple[str, ...] = ()
    artifacts: Artifacts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PipelineState:
    """Where all stages are, in the order of the recipe, and how the pipeline ended, if it has."""

    specs: tuple[StageSpec, ...]
    stages: dict[str, StageState]
    outcome: Outcome | None = None

    def after(self, entry: PipelineEntry) -> "PipelineState":
        """The state after one more entry of the log."""
        match entry:
            case StageStarted():
                started = replace(
                    self.stages[entry.stage],
                    phase=Phase.STARTED,
                    tries=entry.try_,
                    submission_id=entry.submission_id,
                    inputs=entry.inputs,
                )
                return self._with(entry.stage, started)
            case StageEnded():
                return self._with(entry.stage, self._ended(entry))
            case StageSkipped():
                skipped = replace(self.stages[entry.stage], phase=Phase.SKIPPED, artifacts=entry.artifacts)
                return self._with(entry.stage, skipped)
            case PipelineEnded():
                return replace(self, outcome=entry.outcome)
            case PipelineReopened():
                return replace(self, outcome=None, stages={name: _reopened(each) for name, each in self.stages.items()})
            case _:
                return self

    def _ended(self, entry: StageEnded) -> StageState:
        before = self.stages[entry.stage]
        if entry.outcome == "succeeded":
            return replace(before, phase=Phase.SUCCEEDED, artifacts=entry.artifacts)
        if entry.outcome == "cancelled":
            return replace(before, phase=Phase.CANCELLED)
        causes = (*before.causes, entry.cause)
        (spec,) = (spec for spec in self.specs if spec.name == entry.stage)
        phase = Phase.WAITING if may_try_again(spec, causes) else Phase.FAILED
        return replace(before, phase=phase, causes=causes)

    def _with(self, stage: str, state: StageState) -> "PipelineState":
        return replace(self, stages={**self.stages, stage: state})


def _reopened(stage: StageState) -> StageState:
    if stage.phase not in (Phase.FAILED, Phase.CANCELLED):
        return stage
    return replace(stage, phase=Phase.WAITING, causes=())


FINAL_CAUSES = ("HS-CONF", "HS-DATA", "HS-CUR", "HS-EVAL", "HS-RUN-002", "HS-RUN-014")
"""Beginnings of codes that another try would only meet again: what the user has to change."""


def may_try_again(spec: StageSpec, causes: Sequence[str]) -> bool:
    """Whether a stage whose tries failed for these causes is started once more."""
    return len(causes) < spec.tries and not causes[-1].startswith(FINAL_CAUSES)


def fold(specs: Sequence[StageSpec], entries: Iterable[PipelineEntry]) -> PipelineState:
    """The state after all entries of a log."""
    state = PipelineState(tuple(specs), {spec.name: StageState() for spec in specs})
    for entry in entries:
        state = state.after(entry)
    return state
