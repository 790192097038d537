"""The controller of a pipeline: looks, decides, does one thing, and looks again. All that it knows lies in the store.

It may die at any point: the next one goes on from the log. Two at once are fenced by the log's leases. What it decides
is in ``decide.py``, a pure function; here is only how each step is done.
"""

import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from heliostat.config import ResolvedRecipe, locked_identity
from heliostat.config.keys import values_of
from heliostat.config.pipeline import PipelineRecipe
from heliostat.errors import (
    ClusterUnreachableError,
    HeliostatError,
    StorageError,
    StoreUnreachableError,
    SubmissionRefusedError,
)
from heliostat.storage import Store
from heliostat.storage.fenced_log import Lease
from heliostat.storage.layout import pipeline_store
from heliostat_jobs.artifacts import Artifacts
from heliostat_jobs.kinds import Job
from heliostat_jobs.pipelines.decide import End, Finish, Skip, Start, Step, Stop, Submit, World, decide
from heliostat_jobs.pipelines.log import (
    PipelineEnded,
    PipelineEntry,
    PipelineLog,
    PipelineReopened,
    StageEnded,
    StageSkipped,
    StageStarted,
)
from heliostat_jobs.pipelines.stages import (
    check_same_stage,
    inputs_hash,
    made_before,
    remember,
    specs_of,
    stage_job,
    stage_of,
)
from heliostat_jobs.pipelines.state import Phase, PipelineState, fold
from heliostat_jobs.submission import records
from heliostat_jobs.submission.ray_jobs import RayJobs, package_on_cluster
from heliostat_jobs.submission.records import Cancelled, JobEnd, Request, Submission
from heliostat_jobs.submission.seen import JobPhase, JobSeen, seen_by_itself
from heliostat_jobs.submission.submit import Order, hand_over, numbered_request, see, submission_id

_LOOK_S = 1.0

_log = logging.getLogger(__name__)


@dataclass
class Controller:
    """See the module.

    Args:
        recipe: The pipeline, with its stages' recipes in it.
        root: Where it lies.
        request: That has started this controller: stages run with its code and its secrets.
        jobs: Of the cluster where they run.
        look_s: Seconds between looks.
    """

    recipe: PipelineRecipe
    root: Store
    request: Request
    jobs: RayJobs
    look_s: float = _LOOK_S
    is_cancelled: bool = False
    _failed_at: dict[str, float] = field(default_factory=dict)
    _asked_to_stop: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._log = PipelineLog(pipeline_store(self.root, self.recipe.name))
        self._specs = specs_of(self.recipe)
        self._stages = {stage.name: stage for stage in self.recipe.expanded}

    def run(self, wait: Callable[[float], None] = time.sleep) -> PipelineState:
        """Carry the pipeline out to its end, or as far as it goes when it is cancelled.

        Args:
            wait: For so many seconds; a KeyboardInterrupt from there cancels the pipeline.

        Raises:
            FencedError: another controller has taken over.
        """
        lease = self._log.acquire_lease(f"{socket.gethostname()} {self.request.submission_id}")
        is_begun, is_idle = False, False
        while True:
            try:
                if is_idle:
                    wait(self.look_s)
                is_idle = True
                state = self._state()
                if not is_begun:
                    is_begun = self._begin(lease, state)
                elif state.outcome is not None:
                    return state
                elif (step := decide(state, self._look(state))) is not None:
                    self._do(lease, state, step)
                    is_idle = False
            except KeyboardInterrupt:
                self.is_cancelled = True
            except (ClusterUnreachableError, SubmissionRefusedError, StoreUnreachableError) as error:
                _log.warning("%s; this is tried again", error)

    def _begin(self, lease: Lease, state: PipelineState) -> bool:
        """Settle what an earlier controller has left behind; whether all of it is.

        Stages that were asked to end before are waited for. Then what has failed or was cancelled gets another chance:
        this controller was started for that.
        """
        asked = [name for name in self._started(state) if self._is_asked(name, state)]
        for name in asked:
            seen = self._seen(name, state)
            if seen.phase is JobPhase.ABSENT:
                seen = JobSeen(JobPhase.ENDED, "cancelled")
            if seen.phase is JobPhase.ENDED:
                self._append(lease, self._end(lease.attempt, state, name, seen))
                return False
        if asked and not self.is_cancelled:
            return False
        phases = {stage.phase for stage in state.stages.values()}
        if state.outcome in ("failed", "cancelled") or phases & {Phase.FAILED, Phase.CANCELLED}:
            self._append(lease, PipelineReopened(attempt=lease.attempt))
        return True

    def _is_asked(self, name: str, state: PipelineState) -> bool:
        return records.is_cancelled(self._job(name).store, state.stages[name].tries)

    @staticmethod
    def _started(state: PipelineState) -> list[str]:
        return [name for name, stage in state.stages.items() if stage.phase is Phase.STARTED]

    def _state(self) -> PipelineState:
        return fold(self._specs, self._log.read())

    def _append(self, lease: Lease, entry: PipelineEntry) -> None:
        self._log.append(lease, entry)
        _log.info("%s", _told(entry))

    def _look(self, state: PipelineState) -> World:
        now = time.monotonic()
        return World(
            jobs={name: self._seen(name, state) for name in self._started(state)},
            done_before=lambda name: self._made_before(name, state),
            failed_for_s={name: now - at for name, at in self._failed_at.items()},
            is_cancelled=self.is_cancelled,
            asked_to_stop=self._asked_to_stop,
        )

    def _seen(self, name: str, state: PipelineState) -> JobSeen:
        job, number = self._job(name), state.stages[name].tries
        submission = records.read_submission(job.store, number)
        fault = self._fault(name, state, submission)
        if fault is not None:
            return seen_by_itself(fault)
        seen = see(job.store, submission, self._reach)
        if submission is None or submission.request.address == self.jobs.address or seen.phase is not JobPhase.UNKNOWN:
            return seen
        # It was handed to a cluster that is gone, and this one goes on: should it live on there, it ends by itself.
        records.write_cancelled(job.store, number, Cancelled(by=self._name))
        return JobSeen(JobPhase.ENDED, fact=f"{submission.request.address}, which had it, does not answer")

    def _reach(self, address: str) -> RayJobs:
        return self.jobs if address == self.jobs.address else RayJobs.at(address)

    @property
    def _name(self) -> str:
        return f"pipeline {self.recipe.name}"

    def _fault(self, name: str, state: PipelineState, submission: Submission | None) -> JobEnd | None:
        """Why a stage cannot be started, or what was started under its name is not it; none if all is well."""
        try:
            stage = stage_of(self.recipe, name, state.stages, self.root)
            if submission is not None:
                check_same_stage(locked_identity(submission.request.config), stage)
        except StorageError:
            raise
        except HeliostatError as error:
            return JobEnd(outcome="failed", exit_code=1, code=error.code, fact=error.fact, next_step=error.next_step)
        return None

    def _job(self, name: str) -> Job:
        return stage_job(self._stages[name], self.root)

    def _made_before(self, name: str, state: PipelineState) -> Artifacts | None:
        try:
            return made_before(stage_of(self.recipe, name, state.stages, self.root))
        except HeliostatError:  # it cannot start: that is told when it is started
            return None

    def _do(self, lease: Lease, state: PipelineState, step: Step) -> None:
        attempt = lease.attempt
        match step:
            case Start(name, try_):
                self._append(lease, self._start(attempt, state, name, try_))
            case Skip(name, artifacts):
                self._append(lease, StageSkipped(attempt=attempt, stage=name, artifacts=artifacts))
            case Submit(name):
                self._submit(state, name)
            case Stop(name):
                self._asked_to_stop.add(name)
                self._stop(name, state)
            case End(name, seen):
                self._append(lease, self._end(attempt, state, name, seen))
            case Finish(outcome):
                self._append(lease, PipelineEnded(attempt=attempt, outcome=outcome))

    def _start(self, attempt: int, state: PipelineState, name: str, try_: int) -> StageStarted:
        try:
            inputs = inputs_hash(stage_of(self.recipe, name, state.stages, self.root))
        except StorageError:
            raise
        except HeliostatError:  # something is missing: the stage itself will say what
            inputs = ""
        id_ = submission_id(self._job(name).name, try_)
        return StageStarted(attempt=attempt, stage=name, try_=try_, submission_id=id_, inputs=inputs)

    def _submit(self, state: PipelineState, name: str) -> None:
        stage = stage_of(self.recipe, name, state.stages, self.root)
        package = package_on_cluster(self.request.package)
        origins = dict.fromkeys(values_of(stage.recipe), f"stage {name}")
        resolved = ResolvedRecipe(stage.recipe, origins, self.request.text)
        order = Order(stage.job, resolved, package, self.request.secrets, stage.inputs)
        request = numbered_request(order, self.jobs.address, state.stages[name].tries)
        hand_over(stage.job, request, package, self.jobs)

    def _stop(self, name: str, state: PipelineState) -> None:
        records.write_cancelled(self._job(name).store, state.stages[name].tries, Cancelled(by=self._name))
        with suppress(HeliostatError):  # it looks into the store too
            self.jobs.stop(state.stages[name].submission_id or "")

    def _end(self, attempt: int, state: PipelineState, name: str, seen: JobSeen) -> StageEnded:
        stage = state.stages[name]
        artifacts = seen.end.artifacts if seen.end is not None else {}
        if seen.outcome == "succeeded" and stage.inputs:
            remember(self.root, stage.inputs, artifacts)
        if seen.outcome == "failed":
            self._failed_at[name] = time.monotonic()
        return StageEnded(
            attempt=attempt,
            stage=name,
            try_=stage.tries,
            outcome=seen.outcome,
            cause=seen.cause,
            fact=seen.fact,
            artifacts=artifacts,
        )


def _told(entry: PipelineEntry) -> str:
    match entry:
        case StageStarted():
            return f"{entry.stage}: started, as {entry.submission_id}"
        case StageEnded():
            why = f" ({entry.cause}: {entry.fact})" if entry.cause else ""
            return f"{entry.stage}: {entry.outcome}{why}"
        case StageSkipped():
            return f"{entry.stage}: skipped, the same was made before"
        case PipelineEnded():
            return f"the pipeline has {entry.outcome}"
        case _:
            return "the pipeline goes on"
