"""``Client``: submit a recipe from anywhere, and ``JobHandle``: the job by its name, from anywhere, at any time.

A handle needs no cluster for what lies in the store: what a job has printed, its events, its end. It asks the cluster
only whether the job runs, and to stop it. That a cluster does not answer says nothing about the job, and nothing is
ever started for that reason.
"""

import getpass
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from heliostat.config import ResolvedRecipe, identity, load_recipe, relocked, renamed, unlock
from heliostat.config.kinds import Recipe
from heliostat.config.pipeline import PipelineRecipe
from heliostat.config.secrets import parse_references
from heliostat.config.training import TrainingRecipe
from heliostat.errors import (
    CancelledError,
    ChangedConfigError,
    CommandLineError,
    HeliostatError,
    JobFailedError,
    JobLostError,
    RunNotFoundError,
)
from heliostat.observe.events import Event, read_events
from heliostat.observe.glance import glance
from heliostat.observe.segments import SegmentTail
from heliostat.storage import open_store
from heliostat_jobs.kinds import Job, find_job, job_of
from heliostat_jobs.locks import locked_recipe
from heliostat_jobs.pipelines.log import PipelineLog
from heliostat_jobs.pipelines.state import DONE, Phase
from heliostat_jobs.pipelines.view import StageView, stage_views
from heliostat_jobs.preflight import checks, raise_first
from heliostat_jobs.submission import records
from heliostat_jobs.submission.access import ADDRESS_VARIABLE
from heliostat_jobs.submission.package import build_wheel
from heliostat_jobs.submission.ray_jobs import RayJobs
from heliostat_jobs.submission.records import Cancelled, Outcome, Submission
from heliostat_jobs.submission.seen import JobPhase, JobSeen
from heliostat_jobs.submission.submit import Order, Reach, reach_of, see, submit

_POLL_S = 1.0
_NAME_CHARS = 40
_WHEELS = Path(".cache/heliostat/wheels")


class JobState(StrEnum):
    """Of a job, in one word."""

    NEW = "not submitted"
    """It was run without a cluster, if at all."""
    PENDING = "pending"
    """The cluster has it and has not begun."""
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"
    """Its driver ended without a word, or the cluster has forgotten it. Submitting it again resumes it."""
    UNREACHABLE = "unreachable"
    """The cluster does not answer; the job may run."""


ENDED = frozenset({JobState.FINISHED, JobState.FAILED, JobState.CANCELLED, JobState.LOST})


@dataclass(frozen=True, slots=True)
class JobStatus:
    """How a job is.

    Attributes:
        name: Of the job.
        kind: Of its recipe.
        state: In one word.
        submission_id: Of the Ray job of its newest submission.
        address: Of the cluster that this was handed to.
        progress: One line: step, loss, images/s, workers now/wanted, interruptions, goodput, ETA, preemptions, cost.
        fact: Why it is not running, if it is not.
        next_step: What helps.
    """

    name: str
    kind: str
    state: JobState
    submission_id: str | None = None
    address: str | None = None
    progress: str = ""
    fact: str = ""
    next_step: str = ""

    @property
    def line(self) -> str:
        """All of it as one line."""
        why = f": {self.fact}" if self.fact else ""
        return " · ".join(part for part in (f"{self.name} {self.state}{why}", self.progress) if part)

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class JobHandle:
    """A job, found by its name.

    Attributes:
        job: Where it lies.
        reach: Gives the jobs of the cluster that has it, if that may be asked.
    """

    job: Job
    reach: Reach = field(default_factory=lambda: reach_of(None), repr=False, compare=False)

    def status(self) -> JobStatus:
        """How the job is now."""
        newest = records.newest(self.job.store)
        state, fact, next_step = self._judged(newest)
        request = None if newest is None else newest.request
        return JobStatus(
            self.job.name,
            self.job.kind,
            state,
            None if request is None else request.submission_id,
            None if request is None else request.address,
            self._progress(newest, is_alive=state is JobState.RUNNING),
            fact,
            next_step,
        )

    def _judged(self, newest: Submission | None) -> tuple[JobState, str, str]:
        """State, why, and what helps; without the run's numbers, which take longer."""
        return _judged(newest, see(self.job.store, newest, self.reach), self.job.is_finished)

    def logs(self, *, follow: bool = False) -> Iterator[str]:
        """Lines that the newest submission's driver has printed, oldest first; with ``follow`` until the job ends."""
        newest = records.newest(self.job.store)
        if newest is None:
            return
        tail = SegmentTail(self.job.store, records.log_prefix(newest.request.number))
        has_any = False
        while True:
            now = records.read_submission(self.job.store, newest.request.number)
            has_ended = not follow or self._judged(now)[0] in ENDED
            for line in tail.poll():  # after the look at its end: what it printed last is there by then
                has_any = True
                yield str(line.get("text", ""))
            if has_ended:
                break
            time.sleep(_POLL_S)
        if not has_any:  # it did not come far enough to print: what is known is the cluster's
            yield from self.reach(newest.request.address).log(newest.request.submission_id).splitlines()

    def wait(self, timeout_s: float | None = None) -> JobStatus:
        """Wait until the job has ended; looks that fail are made again.

        Raises:
            TimeoutError: it has not, after so long.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (judged := self._judged(records.newest(self.job.store)))[0] not in ENDED:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.job.name} is {judged[0]} after {timeout_s:g} s")
            time.sleep(_POLL_S)
        return self.status()

    def result(self) -> dict[str, Any]:
        """What the job has made, as ``--json`` of ``heliostat run`` prints it; waits for its end.

        Of a job that was finished without this submission it is its status.

        Raises:
            CancelledError: it was cancelled.
            JobLostError: it ended without a word.
            RunError: it failed; the error is the job's own.
        """
        status = self.wait()
        newest = records.newest(self.job.store)
        if newest is not None and newest.end is not None and newest.end.outcome == "succeeded":
            return newest.end.result
        if status.state is JobState.FINISHED:
            return status.to_json()
        raise _error_of(status)

    def events(self) -> Iterator[Event]:
        """What has happened to a run, in order."""
        return iter(read_events(self.job.store))

    def stages(self) -> list[StageView]:
        """The stages of a pipeline, as they are now; none of another job."""
        return self._stages(self._recipe(records.newest(self.job.store)))

    def _stages(self, recipe: Recipe | None) -> list[StageView]:
        if not isinstance(recipe, PipelineRecipe):
            return []
        return stage_views(recipe, PipelineLog(self.job.store).read(), time.time())

    def cancel(self) -> JobStatus:
        """Ask the job to save what it has done and to end; returns at once. Once more does no harm.

        The jobs of a pipeline's stages are asked too: its controller may have died.
        """
        started = [stage for stage in self.stages() if stage.phase is Phase.STARTED]
        jobs = [self.job, *(Job(self.job.root, stage.kind, stage.job) for stage in started)]
        asked = [newest for job in jobs if (newest := _mark_cancelled(job)) is not None]
        # The jobs look into the store too: should the cluster not answer, they end all the same, a little later.
        for newest in asked:
            with suppress(HeliostatError):
                self.reach(newest.request.address).stop(newest.request.submission_id)
        return self.status()

    def _recipe(self, newest: Submission | None) -> Recipe | None:
        return locked_recipe(self.job.store) if newest is None else unlock(newest.request.config)

    def _progress(self, newest: Submission | None, *, is_alive: bool) -> str:
        recipe = self._recipe(newest)
        if stages := self._stages(recipe):
            return f"{sum(stage.phase in DONE for stage in stages)}/{len(stages)} stages done"
        if not isinstance(recipe, TrainingRecipe):
            return ""
        price = recipe.scaling.worker_price_per_hour
        return glance(self.job.store, recipe.training.steps, price, is_alive=is_alive).line


def _mark_cancelled(job: Job) -> Submission | None:
    """Ask for the end of a job in the store; its newest submission, if that has not ended."""
    newest = records.newest(job.store)
    if newest is None or newest.end is not None:
        return None
    records.write_cancelled(job.store, newest.request.number, Cancelled(by=_who()))
    return newest


def _judged(newest: Submission | None, seen: JobSeen, is_finished: bool) -> tuple[JobState, str, str]:
    """State, why, and what helps."""
    if seen.phase is JobPhase.ALIVE:  # until its driver has said how it ended, even if all is done
        return (JobState.PENDING if seen.fact == "pending" else JobState.RUNNING), "", ""
    if is_finished:
        return JobState.FINISHED, "", ""
    if newest is None:
        return JobState.NEW, "", "Submit it with heliostat submit RECIPE.yaml"
    match seen.phase:
        case JobPhase.UNKNOWN:
            return JobState.UNREACHABLE, seen.fact, _UNKNOWN
        case JobPhase.ABSENT:
            return JobState.LOST, "the cluster does not know it, or has forgotten it", _RESUME
    if seen.end is not None:
        why = f"{seen.end.code}: {seen.end.fact}" if seen.end.code else ""
        return _STATES[seen.outcome], why, seen.end.next_step
    if seen.outcome == "cancelled":
        return JobState.CANCELLED, "", _RESUME
    return JobState.LOST, seen.fact or "its driver ended without a word", _RESUME


_UNKNOWN = (
    "The job may run all the same: ask again later. Should that cluster be gone, heliostat resume goes on elsewhere"
)
_RESUME = "heliostat resume goes on from what is committed"
_STATES: Mapping[Outcome, JobState] = MappingProxyType(
    {"succeeded": JobState.FINISHED, "failed": JobState.FAILED, "cancelled": JobState.CANCELLED}
)


def _error_of(status: JobStatus) -> HeliostatError:
    kind = {JobState.CANCELLED: CancelledError, JobState.LOST: JobLostError}.get(status.state, JobFailedError)
    return kind(f"{status.name} {status.state}: {status.fact}", status.next_step)


def _package() -> str:
    return str(build_wheel(Path.home() / _WHEELS))


def _who() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


class Client:
    """Submits jobs to one cluster.

    Args:
        address: Of its dashboard, like ``http://head:8265``; None is ``HELIOSTAT_ADDRESS``.
        insecure: Whether a cluster beyond this machine may be used without token or TLS.

    Raises:
        CommandLineError: no address.
        InsecureClusterError: the cluster must not be talked to like this.
        ClusterUnreachableError: it does not answer.
        ClusterDeniedError: it does not accept the token.
    """

    def __init__(self, address: str | None = None, *, insecure: bool = False) -> None:
        wanted = address or os.environ.get(ADDRESS_VARIABLE)
        if not wanted:
            raise CommandLineError(
                "no cluster is named", f"Give --address http://HEAD:8265, or set {ADDRESS_VARIABLE} to it"
            )
        self._jobs = RayJobs.at(wanted, is_insecure_wanted=insecure)
        self._reach = reach_of(wanted, insecure)

    def submit(
        self,
        recipe: str | Path | ResolvedRecipe,
        *,
        overrides: Sequence[str] = (),
        secrets: Sequence[str] = (),
        fork: bool = False,
    ) -> JobHandle:
        """Have a recipe run on the cluster, or attach to the job of its name if that runs or is done.

        Args:
            recipe: A YAML file, or what ``heliostat.config.load_recipe`` made of one.
            overrides: ``training.steps=300``.
            secrets: ``NAME=file:/path`` or ``NAME=env:OTHER``: where nodes find what must not be in a recipe.
            fork: Where the name is taken by a job of another configuration, run this one under a name of its own that
                follows from both: submitting the same again attaches to it.

        Raises:
            ConfigError: the recipe cannot be run.
            ChangedConfigError: a job of this name has another configuration; the message lists every value.
            HeliostatError: what the cluster or the store have to say.
        """
        resolved = recipe if isinstance(recipe, ResolvedRecipe) else load_recipe(recipe, overrides, os.environ)
        references = parse_references(secrets)
        root = open_store(resolved.recipe.root)
        order = Order(job_of(resolved.recipe, root), resolved, _package(), references)
        try:
            self._submit(order)
        except ChangedConfigError:
            if not fork:
                raise
            forked = forked_recipe(resolved)
            order = replace(order, job=job_of(forked.recipe, root), resolved=forked)
            self._submit(order)
        return JobHandle(order.job, self._reach)

    def _submit(self, order: Order) -> None:
        if records.newest(order.job.store) is None:
            raise_first(checks(order.resolved))
        submit(order, self._jobs)

    def resume(self, job: JobHandle) -> JobHandle:
        """Have a job go on that was submitted before, here or to another cluster, as it was; attach if it runs.

        If the cluster that has it does not answer, it goes on here; should it run there unseen, it is fenced off.

        Raises:
            RunNotFoundError: nobody submitted it.
            HeliostatError: what the cluster or the store have to say.
        """
        newest = records.newest(job.job.store)
        if newest is None:
            raise RunNotFoundError(
                f"{job.job.name} was never submitted", "Submit its recipe: heliostat submit RECIPE.yaml"
            )
        request = newest.request
        resolved = relocked(request.config, request.text, job.job.root.url)
        order = Order(job.job, resolved, _package(), request.secrets, request.inputs)
        submit(order, self._jobs, is_insisted=True)
        return JobHandle(job.job, self._reach)


def forked_recipe(resolved: ResolvedRecipe) -> ResolvedRecipe:
    """The same recipe under a name that follows from its own and from its configuration."""
    shape = json.dumps(identity(resolved.recipe), sort_keys=True)
    name = f"{resolved.recipe.name[:_NAME_CHARS]}-fork-{hashlib.sha256(shape.encode()).hexdigest()[:8]}"
    recipe = renamed(resolved.recipe, name)
    return replace(resolved, recipe=recipe, origins={**resolved.origins, "name": "--fork"})


def find(
    root: str, name: str, kind: str | None = None, *, address: str | None = None, insecure: bool = False
) -> JobHandle:
    """The job of a name below a root, whoever submitted it.

    Args:
        root: Folder or ``s3://bucket/prefix``.
        name: Of the job.
        kind: Where jobs of several kinds have the name.
        address: Of a cluster beyond this machine that may be asked; None is the one in the environment.
        insecure: Whether without token or TLS.

    Raises:
        RunNotFoundError: there is none.
    """
    store = open_store(root)
    job = find_job(store, name) if kind is None else Job(store, kind, name)
    return JobHandle(job, reach_of(address, insecure))
