"""What is decided about a pipeline, one transition an entry; ``heliostat.storage.fenced_log`` says why that is enough.

A database or a workflow service would be a second thing that must not fail. The object store has to be there anyway,
and creating an object only if its name is free is all that a controller needs to be the only one who decides.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from heliostat.storage import Store
from heliostat.storage.fenced_log import FencedLog, LeaseEntry, LogRecord

Artifacts = dict[str, dict[str, str | int]]
"""What a stage has made, by name: for example ``best``, with its step and the hash of its manifest."""
Outcome = Literal["succeeded", "failed", "cancelled"]


class StageStarted(LogRecord):
    """A stage is to run: its job exists, or will as soon as anybody looks."""

    type: Literal["stage_started"] = "stage_started"
    stage: str
    try_: Annotated[int, Field(ge=1)]
    """How often it has been started, this time included."""
    submission_id: str
    """Of its Ray job. A cluster runs a job of one id once, however often it is submitted."""


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


Transition = StageStarted | StageEnded | StageSkipped | PipelineEnded
PipelineEntry = LeaseEntry | Transition
_PARSER: TypeAdapter[PipelineEntry] = TypeAdapter(Annotated[PipelineEntry, Field(discriminator="type")])


class PipelineLog(FencedLog[PipelineEntry]):
    """The log of the pipeline whose store this is."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, "log/", _PARSER)
