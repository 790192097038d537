"""What the page shows, as JSON: read from the store alone, whoever works on it, wherever."""

import json
import time
from collections.abc import Sequence
from typing import Any

from heliostat.config.curate import CurateRecipe
from heliostat.config.kinds import Recipe
from heliostat.config.pipeline import PipelineRecipe
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.provenance import unlock
from heliostat.data.manifest import load_manifest
from heliostat.observe.attempts import attempts_of
from heliostat.observe.events import EVENTS_PREFIX, Event
from heliostat.observe.glance import glance
from heliostat.observe.interruptions import interruptions
from heliostat.observe.metrics import METRICS_PREFIX, StepMetrics, is_step, merged_curve
from heliostat.observe.segments import SegmentTail
from heliostat.observe.spans import Category, Span
from heliostat.observe.timeline import timeline
from heliostat.storage import Store
from heliostat.storage.layout import CURATIONS, RESULT_KEY, RUNS
from heliostat_jobs.extras import require_extra
from heliostat_jobs.kinds import JOB_KINDS, Job, jobs_below
from heliostat_jobs.locks import datasets_of, locked_recipe
from heliostat_jobs.pipelines.log import PipelineLog
from heliostat_jobs.pipelines.view import graph_svg, stage_views
from heliostat_jobs.submission import records

_POINTS = 400
"""Of a curve, at most."""
_SPANS = 600
_REPORTS = ("report.html", "reports/")


def job_lines(root: Store) -> list[dict[str, Any]]:
    """All jobs, one line each."""
    return [{"kind": job.kind, "name": job.name, **_state(job)} for job in jobs_below(root)]


def _state(job: Job) -> dict[str, Any]:
    """As the store alone tells: whether somebody works on it now only the cluster knows."""
    newest = records.newest(job.store)
    if job.is_finished:
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


def job_details(job: Job) -> dict[str, Any]:
    """One job: its state, its reports, and what there is to see of its kind."""
    recipe = _recipe(job)
    found: dict[str, Any] = {
        "kind": job.kind,
        "name": job.name,
        **_state(job),
        "reports": report_keys(job),
        "datasets": sorted(datasets_of(recipe)) if recipe is not None else [],
    }
    match recipe:
        case PretrainRecipe():
            found |= run_details(job.store, recipe)
        case PipelineRecipe():
            found |= pipeline_details(job, recipe)
        case CurateRecipe():
            found |= {"result": _result(job.store)}
        case _:
            newest = records.newest(job.store)
            found |= {"result": newest.end.result if newest is not None and newest.end is not None else {}}
    return found


def _recipe(job: Job) -> Recipe | None:
    newest = records.newest(job.store)
    return locked_recipe(job.store) if newest is None else unlock(newest.request.config)


def _result(store: Store) -> dict[str, Any]:
    if not store.exists(RESULT_KEY):
        return {}
    result: dict[str, Any] = json.loads(store.get(RESULT_KEY))
    return result


def run_details(run: Store, recipe: PretrainRecipe) -> dict[str, Any]:
    """Progress, curves, where the time went, who worked and what interrupted them."""
    events = [Event.from_line(line) for line in SegmentTail(run, EVENTS_PREFIX).poll()]
    metrics = [StepMetrics.from_line(line) for line in SegmentTail(run, METRICS_PREFIX).poll() if is_step(line)]
    seen = glance(run, recipe.training.steps, recipe.scaling.worker_price_per_hour)
    spans = timeline(metrics, events)
    workers = {number: each.workers for number, each in attempts_of(metrics, events).items()}
    return {
        "line": seen.line,
        "step": seen.status.step,
        "steps": recipe.training.steps,
        "goodput": seen.status.goodput,
        "worker_hours": seen.worker_hours,
        "cost": seen.cost,
        "seconds": {category.label: seconds for category, seconds in seen.ledger.seconds.items() if seconds},
        "curve": curve(merged_curve(metrics)),
        "spans": [
            {
                "begin": span.begin_s,
                "end": span.end_s,
                "category": span.category.label,
                "workers": workers.get(span.attempt),
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
            for each in interruptions(metrics, events)
        ],
        "events": [event.to_line() for event in sorted(events, key=lambda event: event.time_utc)[-40:]],
    }


def curve(lines: Sequence[StepMetrics]) -> list[dict[str, float | None]]:
    """Loss, speed and k-NN accuracy, at most at some hundred steps; the last one is always there."""
    every = max(1, -(-len(lines) // _POINTS))
    chosen = [line for number, line in enumerate(lines) if number % every == 0 or line is lines[-1]]
    chosen += [line for line in lines if "knn_top1" in line.values and line not in chosen]
    return [
        {"step": line.step + 1, **{name: line.values.get(name) for name in ("loss", "images_per_s", "knn_top1")}}
        for line in sorted(chosen, key=lambda line: line.step)
    ]


def joined(spans: Sequence[Span], at_most: int) -> list[Span]:
    """Fewer spans that fill the same time: short ones become part of the longest one beside them."""
    found = list(spans)
    if len(found) <= at_most:
        return found
    width_s = (found[-1].end_s - found[0].begin_s) / at_most
    merged: list[Span] = []
    group: list[Span] = []
    for span in found:
        if group and span.end_s - group[0].begin_s > width_s:
            merged.append(_merged(group))
            group = []
        group.append(span)
    return [*merged, _merged(group)]


def _merged(group: Sequence[Span]) -> Span:
    seconds: dict[Category, float] = {}
    for span in group:
        seconds[span.category] = seconds.get(span.category, 0.0) + span.seconds
    longest = max(seconds, key=lambda category: seconds[category])
    return Span(group[0].begin_s, group[-1].end_s, longest, group[-1].attempt)


def pipeline_details(job: Job, recipe: PipelineRecipe) -> dict[str, Any]:
    """The stages, and the graph of them, whose boxes lead to their jobs."""
    stages = stage_views(recipe, PipelineLog(job.store).read(), time.time())
    return {
        "stages": [stage.to_json() for stage in stages],
        "graph": graph_svg(stages, {stage.name: f"#{stage.kind}/{stage.job}" for stage in stages}),
    }


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
    if JOB_KINDS[job.kind].folder not in (RUNS, CURATIONS):
        return []
    found = (info.key for prefix in _REPORTS for info in job.store.list(prefix))
    return sorted(key for key in found if key.endswith(".html"))
