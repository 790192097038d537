"""The report of a run: its loss, and where the time went."""

from collections.abc import Sequence
from statistics import median

from heliostat.config.distill import DistillRecipe
from heliostat.config.training import TrainingRecipe
from heliostat.observe.events import Event, read_events
from heliostat.observe.goodput import ledger_of
from heliostat.observe.interruptions import Interruption, interruptions
from heliostat.observe.metrics import StepMetrics, merged_curve, read_metrics
from heliostat.observe.report import KeyNumber, Report, Section
from heliostat.observe.status import duration
from heliostat.observe.timeline import timeline
from heliostat.storage import Store
from heliostat_evaluation.charts import LOSS_TERMS, loss_curves
from heliostat_evaluation.time_charts import run_timeline, time_bar

REPORT_KEY = "reports/report.html"


def write_run_report(store: Store, recipe: TrainingRecipe) -> None:
    """Write ``reports/report.html`` of a run.

    Args:
        store: The run's store.
        recipe: Of the run.
    """
    metrics, events = read_metrics(store), read_events(store)
    stops = interruptions(metrics, events)
    report = titled_report(recipe)
    students = [student.name for student in recipe.students] if isinstance(recipe, DistillRecipe) else []
    report_loss(report, metrics, stops, students)
    report_time(report.section("Where the time went"), median_rate(metrics), metrics, events, stops)
    report.write(store, REPORT_KEY)


def titled_report(recipe: TrainingRecipe) -> Report:
    """A report without sections."""
    return Report(
        f"Heliostat run {recipe.name}",
        f"{recipe.training.steps} steps of {recipe.training.global_batch} images on {recipe.scaling.workers} workers "
        f"(ZeRO-{recipe.training.zero_stage}, {recipe.training.precision}), without labels",
    )


def median_rate(metrics: Sequence[StepMetrics]) -> float:
    """Images per second, the median over the steps of a run; 0 if nobody measured."""
    rates = [value for line in merged_curve(metrics) if (value := line.values.get("images_per_s"))]
    return median(rates) if rates else 0.0


def report_loss(
    report: Report, metrics: Sequence[StepMetrics], stops: Sequence[Interruption], students: Sequence[str] = ()
) -> Section:
    """Add the section about the loss.

    Args:
        report: To which it is added.
        metrics: All lines of the run.
        stops: Its interruptions.
        students: Of a distillation.
    """
    section = report.section("Loss")
    marked = [stop.steps_done for stop in stops if stop.steps_done is not None]
    caption = "The optimised loss and its terms, step by step."
    caption += " Means over the students, then the loss of each." if students else ""
    caption += " Thin lines: the run was interrupted there, and went on." if marked else ""
    terms = (*LOSS_TERMS, *(f"{name}.loss" for name in students))
    section.figure(loss_curves(merged_curve(metrics), terms, interrupted_at=marked), caption, "loss curves")
    return section


def report_time(
    section: Section, rate: float, metrics: list[StepMetrics], events: list[Event], stops: list[Interruption]
) -> None:
    """Fill the section about the time of a run.

    Args:
        section: To be filled.
        rate: Throughput in images/s.
        metrics: All lines of the run.
        events: All events of the run.
        stops: Its interruptions.
    """
    spans = timeline(metrics, events)
    ledger = ledger_of(spans)
    lost = sum(stop.steps_lost or 0 for stop in stops)
    section.numbers(
        KeyNumber("goodput", "-" if ledger.goodput is None else f"{ledger.goodput:.0%}", "productive part of the time"),
        KeyNumber("throughput", f"{rate:.0f} images/s", "median over steps"),
        KeyNumber("wall clock", duration(ledger.wall_s), "first sign of life to last"),
        *([KeyNumber("interruptions", str(len(stops)), f"steps computed again: {lost}")] if stops else []),
    )
    section.figure(time_bar(ledger), "Seconds of the run by what they were spent on.", "where the time went")
    section.table(
        ["spent on", "seconds", "what it is"],
        [[each.label, f"{seconds:.1f}", each.__doc__] for each, seconds in ledger.seconds.items() if seconds > 0],
    )
    if stops:
        section.figure(
            run_timeline(spans, events),
            "Workers over time, and what the run did when none of them trained.",
            "timeline of the run",
        )
        section.table(INTERRUPTION_COLUMNS, interruption_rows(stops, spans[0].begin_s), "Interruptions")


INTERRUPTION_COLUMNS = ("after", "cause", "workers hit", "steps lost", "to the next step", "resumed from")


def interruption_rows(stops: list[Interruption], begin_s: float) -> list[tuple[str, ...]]:
    """The table of interruptions, a row each; what is not known is a dash.

    Args:
        stops: The interruptions.
        begin_s: Begin of the run, in seconds since 1970.
    """
    return [
        (
            duration(stop.at_s - begin_s),
            stop.cause.replace("_", " "),
            ", ".join(map(str, stop.ranks)) or "-",
            "-" if stop.steps_lost is None else str(stop.steps_lost),
            "-" if stop.to_next_step_s is None else f"{stop.to_next_step_s:.1f} s",
            stop.source or "-",
        )
        for stop in stops
    ]
