"""What the page shows, as JSON: read from the store alone, whoever works on it, wherever."""

import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from heliostat.config.pipeline import PipelineRecipe
from heliostat.config.provenance import unlock
from heliostat.config.training import TrainingRecipe
from heliostat.data.manifest import load_manifest
from heliostat.errors import HeliostatError
from heliostat.observe.following import RunFollower
from heliostat.observe.glance import UNPAID, glance_of
from heliostat.observe.interruptions import interruptions
from heliostat.observe.redaction import redact
from heliostat.observe.spans import Category, Span
from heliostat.storage import Store
from heliostat.storage.layout import RESULT_KEY
from heliostat_jobs.board.followed import FollowedRun, Memory
from heliostat_jobs.extras import require_extra
from heliostat_jobs.kinds import JOB_KINDS, Job, jobs_below
from heliostat_jobs.locks import datasets_of, locked_recipe
from heliostat_jobs.pipelines.log import PipelineLog
from heliostat_jobs.pipelines.report import REPORT_KEY
from heliostat_jobs.pipelines.view import graph_svg, stage_views
from heliostat_jobs.submission import records

_SPANS = 600
_EVENTS = 40


def job_lines(root: Store, memory: Memory) -> list[dict[str, Any]]:
    """All jobs, one line each; one that cannot be read says so, and hides no other."""
    return [{"kind": job.kind, "name": job.name, **_state_or_fault(job, memory)} for job in jobs_below(root)]


def _state_or_fault(job: Job, memory: Memory) -> dict[str, Any]:
    try:
        return _state(job, memory)
    except (HeliostatError, ValueError, KeyError, TypeError) as error:
        return {"state": "unreadable", "submission_id": None, "why": fault(error), "next_step": ""}


def fault(error: Exception) -> str:
    """What is wrong with what the store holds, in one line."""
    return (
        redact(str(error))
        if isinstance(error, HeliostatError)
        else f"not what this version wrote ({type(error).__name__})"
    )


def _state(job: Job, memory: Memory) -> dict[str, Any]:
    """As the store alone tells: whether somebody works on it now only the cluster knows."""
    newest = records.newest(job.store)
    if memory.is_finished(job):
        state = "finished"
    elif newest is None:
        state = "run without a cluster"
    elif newest.end is not None:
        state = newest.end.outcome
    else:
        state = "asked to end" if newest.cancelled else "submitted"
    end = None if newest is None else newest.end
    return {
        "state": state,
        "submission_id": None if newest is None else newest.request.submission_id,
        "why": f"{end.code}: {end.fact}" if end is not None and end.code else "",
        "next_step": "" if end is None else end.next_step,
    }


def job_details(job: Job, memory: Memory) -> dict[str, Any]:
    """One job: its state, its reports, and what there is to see of its kind."""
    newest = records.newest(job.store)
    recipe = locked_recipe(job.store) if newest is None else unlock(newest.request.config)
    found: dict[str, Any] = {
        "kind": job.kind,
        "name": job.name,
        **_state(job, memory),
        "reports": report_keys(job),
        "datasets": sorted(datasets_of(recipe)) if recipe is not None else [],
    }
    match recipe:
        case TrainingRecipe():
            found |= run_details(memory.run(job, lambda: RunFollower(job.store, recipe.training.steps)), recipe)
        case PipelineRecipe():
            found |= pipeline_details(job, recipe)
        case _:
            end = None if newest is None else newest.end
            found |= {"result": _result(job.store) or (end.result if end is not None else {})}
    return found


def _result(store: Store) -> dict[str, Any]:
    if not store.exists(RESULT_KEY):
        return {}
    result: dict[str, Any] = json.loads(store.get(RESULT_KEY))
    return result


def run_details(followed: FollowedRun, recipe: TrainingRecipe) -> dict[str, Any]:
    """Progress, curves, where the time went, who worked and what interrupted them."""
    with followed.lock:
        followed.look()
        run, curve = followed.run, followed.curve.to_json()
        seen = glance_of(run, recipe.scaling.worker_price_per_hour)
        spans, workers = run.spans, run.workers()
        stops = interruptions(run.steps, run.happened)
        events = sorted(run.happened, key=lambda event: event.time_utc)[-_EVENTS:]
    return {
        "line": seen.line,
        "step": seen.status.step,
        "steps": recipe.training.steps,
        "loss": seen.status.loss,
        "images_per_s": seen.status.images_per_s,
        "goodput": seen.status.goodput,
        "worker_hours": seen.worker_hours,
        "cost": seen.cost,
        "seconds": {category.label: seconds for category, seconds in seen.ledger.seconds.items() if seconds},
        "curve": curve,
        "spans": [
            {
                "begin": span.begin_s,
                "end": span.end_s,
                "category": span.category.label,
                "workers": 0 if span.category in UNPAID else workers.get(span.attempt, 0),
            }
            for span in joined(spans, _SPANS)
        ],
        "interruptions": [
            {
                "at": each.at_s,
                "cause": each.cause,
                "steps_lost": each.steps_lost,
                "to_next_step_s": each.to_next_step_s,
            }
            for each in stops
        ],
        "events": [event.to_line() for event in events],
    }


def joined(spans: Sequence[Span], at_most: int) -> list[Span]:
    """Fewer spans that fill the same time: those of each piece of it become one, of what most of it went to."""
    if len(spans) <= at_most:
        return list(spans)
    begin_s, width_s = spans[0].begin_s, (spans[-1].end_s - spans[0].begin_s) / at_most
    pieces: dict[int, list[Span]] = {}
    for span in spans:
        pieces.setdefault(min(at_most - 1, int((span.begin_s - begin_s) / width_s)), []).append(span)
    return [_merged(group) for group in pieces.values()]


def _merged(group: Sequence[Span]) -> Span:
    seconds: dict[Category, float] = {}
    for span in group:
        seconds[span.category] = seconds.get(span.category, 0.0) + span.seconds
    longest = max(seconds, key=lambda category: seconds[category])
    return Span(group[0].begin_s, group[-1].end_s, longest, group[-1].attempt)


def pipeline_details(job: Job, recipe: PipelineRecipe) -> dict[str, Any]:
    """The stages, and the graph of them, whose boxes lead to their jobs."""
    stages = stage_views(recipe, PipelineLog(job.store).read(), time.time())
    links = {stage.name: f"#{stage.kind}/{quote(stage.job)}" for stage in stages if stage.kind in JOB_KINDS}
    return {"stages": [stage.to_json() for stage in stages], "graph": graph_svg(stages, links)}


def sample_images(root: Store, name: str, count: int) -> list[dict[str, str]]:
    """Some images of a dataset, always the same ones, made small.

    Raises:
        MissingExtraError: what reads images is not installed here.
        DatasetNotFoundError: there is no such dataset.
        CorruptShardError: it cannot be read.
    """
    require_extra("train", "PIL", "cv2")
    from heliostat_jobs.contact_sheet import make_tiles, pick_rows

    manifest = load_manifest(root, name)
    tiles = make_tiles(root, manifest, pick_rows(root, manifest, count, seed=0))
    return [{"src": tile.data_uri, "label": tile.label or "", "source": tile.source} for tile in tiles]


def report_keys(job: Job) -> list[str]:
    """Reports of a job: pages that stand for themselves."""
    own = [REPORT_KEY] if job.store.exists(REPORT_KEY) else []
    return [*own, *sorted(info.key for info in job.store.list("reports/") if info.key.endswith(".html"))]
