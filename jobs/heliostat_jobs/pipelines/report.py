"""The report of a pipeline: its graph, its stages with states and times, and the way to the stages' own reports."""

import time
from collections.abc import Sequence

from heliostat.config.pipeline import PipelineRecipe
from heliostat.observe.report import KeyNumber, Report
from heliostat.observe.status import duration
from heliostat.storage import Store
from heliostat.storage.layout import pipeline_store
from heliostat_jobs.kinds import JOB_KINDS
from heliostat_jobs.pipelines.log import PipelineLog
from heliostat_jobs.pipelines.state import DONE
from heliostat_jobs.pipelines.view import ALONE, StageView, graph_svg, stage_views

REPORT_KEY = "report.html"
_REPORTS = ("reports/report.html", "report.html")
"""Of a stage's job."""


def write_pipeline_report(root: Store, recipe: PipelineRecipe) -> None:
    """Write ``report.html`` of a pipeline.

    Args:
        root: Where it lies.
        recipe: Of it, with its stages' recipes.
    """
    store = pipeline_store(root, recipe.name)
    stages = stage_views(recipe, PipelineLog(store).read(), time.time())
    done = sum(stage.phase in DONE for stage in stages)
    report = Report(f"Heliostat pipeline {recipe.name}", f"{done} of {len(stages)} stages are done")
    section = report.section("Stages")
    section.numbers(
        KeyNumber("stages done", f"{done} of {len(stages)}"),
        KeyNumber("tries", str(sum(stage.tries for stage in stages)), "starts of stages, all in all"),
        KeyNumber("work", duration(sum(stage.took_s or 0.0 for stage in stages)), "of the last tries, one by one"),
    )
    section.drawing(graph_svg(stages, {}, ALONE), "The stages, from left to right; arrows lead to those that waited.")
    section.table(
        ["stage", "kind", "state", "tries", "time", "after", "why"],
        [_row(stage) for stage in stages],
        links=[_link(root, stage) for stage in stages],
    )
    report.write(store, REPORT_KEY)


def _row(stage: StageView) -> Sequence[object]:
    took = "-" if stage.took_s is None else duration(stage.took_s)
    return (stage.name, stage.kind, stage.phase, stage.tries, took, ", ".join(stage.after) or "-", stage.why or "-")


def _link(root: Store, stage: StageView) -> str:
    place = f"{JOB_KINDS[stage.kind].folder}{stage.job}"
    found = next((key for key in _REPORTS if root.exists(f"{place}/{key}")), None)
    return "" if found is None else f"../../{place}/{found}"
