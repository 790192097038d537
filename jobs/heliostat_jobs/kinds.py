"""What every kind of recipe offers to the verbs that take any: run, submit, status, cancel, resume.

A laptop has neither torch nor DeepSpeed: what carries a recipe out is imported when it is.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from heliostat.checkpoint.log import CommitLog, has_ended
from heliostat.checkpoint.requests import ask
from heliostat.config import ResolvedRecipe
from heliostat.config.kinds import Recipe
from heliostat.errors import HeliostatError, RunNotFoundError
from heliostat.storage import Store
from heliostat.storage.layout import CURATIONS, EVALUATIONS, EXPORTS, LOCK_KEY, PIPELINES, RESULT_KEY, RUNS
from heliostat_jobs.artifacts import Artifacts, checkpoint_artifacts, dataset_artifact
from heliostat_jobs.submission import records
from heliostat_jobs.submission.records import Request

_SAVE_S = 40.0
"""That a last checkpoint may take; less than Ray gives a driver before it kills it."""


class JobResult(Protocol):
    """How a job ended."""

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        ...

    def summary(self) -> list[str]:
        """For people, line by line."""
        ...


@dataclass(frozen=True, slots=True)
class JobKind:
    """One kind of recipe.

    Attributes:
        folder: Of the root, which holds one folder for each job.
        is_finished: Whether what a job is to make is there, and would not be made again.
        carry_out: Run or resume it; on the cluster at an address, or on a Ray of its own. The request is the one that
            this process carries out, if it is a job on a cluster itself.
        artifacts: What a finished job has made that others may start from.
        save: Have it commit what it has done so far, for someone who is about to stop it.
    """

    folder: str
    is_finished: Callable[[Store], bool]
    carry_out: Callable[[ResolvedRecipe, str | None, Request | None], JobResult]
    artifacts: Callable[["Job"], Artifacts] = lambda job: {}
    save: Callable[[Store], None] = lambda job: None


def _train(resolved: ResolvedRecipe, address: str | None, request: Request | None) -> JobResult:
    from heliostat_jobs.train import train

    return train(resolved, address=address)


def _curate(resolved: ResolvedRecipe, address: str | None, request: Request | None) -> JobResult:
    from heliostat_jobs.curate import curate

    return curate(resolved, address=address)


def _evaluate(resolved: ResolvedRecipe, address: str | None, request: Request | None) -> JobResult:
    from heliostat.config.evaluate import EvaluateRecipe
    from heliostat_jobs.evaluate import evaluate

    assert isinstance(resolved.recipe, EvaluateRecipe)  # noqa: S101 -- the table below chooses by the kind
    return evaluate(resolved.recipe)


def _export(resolved: ResolvedRecipe, address: str | None, request: Request | None) -> JobResult:
    from heliostat_jobs.export_run import export_run

    return export_run(resolved)


def _pipeline(resolved: ResolvedRecipe, address: str | None, request: Request | None) -> JobResult:
    from heliostat_jobs.pipelines.carry_out import carry_out_here, control

    return carry_out_here(resolved, address) if request is None else control(resolved, request)


def _is_done_pipeline(pipeline: Store) -> bool:
    from heliostat_jobs.pipelines.log import PipelineLog, is_done

    return is_done(PipelineLog(pipeline).read())


def _is_ended_run(run: Store) -> bool:
    return has_ended(CommitLog(run).read())


def _checkpoints(job: "Job") -> Artifacts:
    return checkpoint_artifacts(job.store, job.name)


def _dataset(job: "Job") -> Artifacts:
    if not job.store.exists(RESULT_KEY):  # it went as far as `until` says
        return {}
    return dataset_artifact(job.name, json.loads(job.store.get(RESULT_KEY))["manifest_sha256"])


def _save_run(run: Store) -> None:
    from heliostat_jobs.checkpoints import wait_for_answer

    wait_for_answer(run, ask(run), _SAVE_S)


def _has_result(job: Store) -> bool:
    return job.exists(RESULT_KEY)


def _never(job: Store) -> bool:
    return False  # an evaluation is of the newest checkpoint, and made again when it is asked for again


JOB_KINDS: Mapping[str, JobKind] = MappingProxyType(
    {
        "pretrain": JobKind(RUNS, _is_ended_run, _train, _checkpoints, _save_run),
        "adapt": JobKind(RUNS, _is_ended_run, _train, _checkpoints, _save_run),
        "distill": JobKind(RUNS, _is_ended_run, _train, _checkpoints, _save_run),
        "curate": JobKind(CURATIONS, _has_result, _curate, _dataset),
        "export": JobKind(EXPORTS, _has_result, _export),
        "evaluate": JobKind(EVALUATIONS, _never, _evaluate),
        "pipeline": JobKind(PIPELINES, _is_done_pipeline, _pipeline),
    }
)


@dataclass(frozen=True, slots=True)
class Job:
    """One job by its name, whether it exists yet or not."""

    root: Store
    kind: str
    name: str

    @property
    def store(self) -> Store:
        """Its own part of the root."""
        return self.root.sub(f"{JOB_KINDS[self.kind].folder}{self.name}")

    @property
    def is_finished(self) -> bool:
        """Whether what it is to make is there."""
        return JOB_KINDS[self.kind].is_finished(self.store)


def job_of(recipe: Recipe, root: Store) -> Job:
    """The job that a recipe describes."""
    return Job(root, recipe.kind, recipe.name)


def find_job(root: Store, name: str) -> Job:
    """The job of a name that was submitted or run before.

    Raises:
        RunNotFoundError: there is none, or there are several of different kinds.
    """
    found = list(jobs_below(root, name))
    if len(found) == 1:
        return found[0]
    if found:
        kinds = " and ".join(job.kind for job in found)
        raise RunNotFoundError(f"{name!r} names jobs of kind {kinds} under {root.url}", "Say which with --kind")
    raise RunNotFoundError(
        f"there is no job {name!r} under {root.url}", "Check --root, or start it with heliostat submit RECIPE.yaml"
    )


def jobs_below(root: Store, only: str | None = None) -> Iterator[Job]:
    """All jobs that were submitted or run before, or those of one name."""
    kinds: dict[str, list[str]] = {}
    for kind, of_kind in JOB_KINDS.items():
        kinds.setdefault(of_kind.folder, []).append(kind)
    for folder, found in kinds.items():
        for name in root.folders(folder):
            if only in (None, name):
                own = None if len(found) == 1 else _kind_of(root.sub(f"{folder}{name}"))
                yield Job(root, own if own in found else found[0], name)


_KNOWN: dict[str, str] = {}
"""Kinds of jobs in folders that several kinds share, by address: a job's never changes."""


def _kind_of(job: Store) -> str | None:
    """As its lock says, or its newest request; none where neither can be read: whoever looks closer is told."""
    if job.url not in _KNOWN:
        with suppress(HeliostatError, ValueError, KeyError, TypeError):
            newest = None if job.exists(LOCK_KEY) else records.newest(job)
            _KNOWN[job.url] = (json.loads(job.get(LOCK_KEY)) if newest is None else newest.request.config)["kind"]
    return _KNOWN.get(job.url)
