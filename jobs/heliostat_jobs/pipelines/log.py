"""What is decided about a pipeline, one transition an entry; ``heliostat.storage.fenced_log`` says why that is enough.

A database or a workflow service would be a second thing that must not fail. The object store has to be there anyway,
and creating an object only if its name is free is all that a controller needs to be the only one who decides.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from heliostat.storage import Store
from heliostat.storage.fenced_log import FencedLog, LeaseEntry, LogRecord
from heliostat_jobs.artifacts import Artifacts
from heliostat_jobs.submission.records import Outcome


class StageStarted(LogRecord):
    """A stage is to run: its job exists, or will as soon as anybody looks."""

    type: Literal["stage_started"] = "stage_started"
    stage: str
    try_: Annotated[int, Field(ge=1)]
    """How often it has been started, this time included."""
    submission_id: str
    """Of its Ray job. A cluster runs a job of one id once, however often it is submitted."""
    inputs: str
    """Hash of everything that its result follows from."""


class StageEnded(LogRecord):
    """A try of a stage has come to its end."""

    type: Literal["stage_ended"] = "stage_ended"
    stage: str
    try_: Annotated[int, Field(ge=1)]
    outcome: Outcome
    cause: str = ""
    """Of a failure: an error code, or ``lost``."""
    fact: str = ""
    artifacts: Artifacts = Field(default_factory=dict)


class StageSkipped(LogRecord):
    """A stage need not run: the same was done from the same inputs before."""

    type: Literal["stage_skipped"] = "stage_skipped"
    stage: str
    artifacts: Artifacts


class PipelineEnded(LogRecord):
    """Nothing is left to do."""

    type: Literal["pipeline_ended"] = "pipeline_ended"
    outcome: Outcome


class PipelineReopened(LogRecord):
    """What has failed or was cancelled is to be tried once more."""

    type: Literal["pipeline_reopened"] = "pipeline_reopened"


Transition = StageStarted | StageEnded | StageSkipped | PipelineEnded | PipelineReopened
PipelineEntry = LeaseEntry | Transition
_PARSER: TypeAdapter[PipelineEntry] = TypeAdapter(Annotated[PipelineEntry, Field(discriminator="type")])


def is_done(entries: Sequence[PipelineEntry]) -> bool:
    """Whether all stages of a pipeline were done when it ended."""
    ends = [entry for entry in entries if isinstance(entry, PipelineEnded | PipelineReopened)]
    return bool(ends) and isinstance(ends[-1], PipelineEnded) and ends[-1].outcome == "succeeded"


class PipelineLog(FencedLog[PipelineEntry]):
    """The log of the pipeline whose store this is."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, "log/", _PARSER)
