"""The demo's report: what was learnt, as numbers and as pictures, and where the time went."""

from statistics import median

import torch

from heliostat.config.pretrain import PretrainRecipe
from heliostat.models.normalise import normalise
from heliostat.observe.events import Event, read_events
from heliostat.observe.goodput import ledger_of
from heliostat.observe.interruptions import Interruption, interruptions
from heliostat.observe.metrics import StepMetrics, merged_curve, read_metrics
from heliostat.observe.report import KeyNumber, Report, Section
from heliostat.observe.status import duration
from heliostat.observe.timeline import timeline
from heliostat.storage import Store
from heliostat_evaluation.backbones import patch_features
from heliostat_evaluation.charts import knn_bars, loss_curves
from heliostat_evaluation.datasets import Pixels
from heliostat_evaluation.pictures import neighbour_grid, pca_picture
from heliostat_evaluation.time_charts import run_timeline, time_bar
from heliostat_jobs.evaluate import PIXELS, TRAINED, UNTRAINED, Evaluation

REPORT_KEY = "reports/report.html"
_QUERIES_SHOWN, _NEIGHBOURS_SHOWN = 8, 8


def write_report(
    store: Store, recipe: PretrainRecipe, evaluation: Evaluation, pictures: Pixels, is_exact: bool
) -> float:
    """Write ``reports/report.html`` of a run; returns its throughput in images/s (median over steps).

    Args:
        store: The run's store.
        recipe: Of the run.
        evaluation: Its k-NN.
        pictures: (M, H, W, 3), whole patches, shown with their patch features.
        is_exact: Whether the run saw the images that were planned, and no others.
    """
    metrics, events = read_metrics(store), read_events(store)
    curve = merged_curve(metrics)
    rates = [value for line in curve if (value := line.values.get("images_per_s"))]
    rate = median(rates) if rates else 0.0
    stops = interruptions(metrics, events)
    report = Report(
        f"Heliostat run {recipe.name}",
        f"{recipe.training.steps} steps of {recipe.training.global_batch} images on {recipe.scaling.workers} workers "
        f"(ZeRO-{recipe.training.zero_stage}, {recipe.training.precision}), without labels",
    )
    _learnt(report, evaluation)
    section = report.section("Loss")
    marked = [stop.steps_done for stop in stops if stop.steps_done is not None]
    caption = "The optimised loss and its terms, step by step."
    caption += " Thin lines: the run was interrupted there, and went on." if marked else ""
    section.figure(loss_curves(curve, interrupted_at=marked), caption, "loss curves")
    section.text(exactness(recipe.training.steps * recipe.training.global_batch, is_exact))
    section = report.section("What the patches see")
    section.text(
        "First three principal components of the teacher's patch features over all pictures, as red, green and blue: "
        "parts that the network finds alike have the same colour. No label and no mask was ever given to it."
    )
    patches = patch_features(evaluation.backbone, normalise(pictures))
    section.figure(pca_picture(pictures, patches, columns=2), "Picture and patch features.", "PCA of patch features")
    _neighbours(report, evaluation)
    report_time(report.section("Where the time went"), rate, metrics, events, stops)
    report.write(store, REPORT_KEY)
    return rate


def exactness(images: int, is_exact: bool) -> str:
    """A sentence about the images that the loss consumed.

    Args:
        images: That it had to consume.
        is_exact: Whether it consumed these and no others, in their order.
    """
    if is_exact:
        return (
            f"No image was lost or repeated out of turn: the ids of the {images:,} images that the loss consumed, in "
            "their order, have the digest that was planned."
        )
    return "The ids of the images that the loss consumed have another digest than was planned: this is a mistake."


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


def _learnt(report: Report, evaluation: Evaluation) -> None:
    section = report.section("What was learnt")
    section.numbers(
        *(
            KeyNumber(f"k-NN, {feature}", f"{evaluation.top1(feature):.1%}", _interval(evaluation, feature))
            for feature in (UNTRAINED, PIXELS, TRAINED)
        )
    )
    section.text(
        f"{len(evaluation.queries.labels)} held-out images are classified by the {len(evaluation.bank.labels)} "
        f"training images nearest to them in feature space, among {len(evaluation.bank.classes)} classes. "
        "The labels served for this only."
    )
    section.figure(knn_bars(evaluation.accuracies), "k-NN accuracy with 95 % intervals, by k.", "k-NN accuracy")


def _interval(evaluation: Evaluation, feature: str) -> str:
    by_k = evaluation.accuracies[feature]
    low, high = by_k[min(by_k)].interval
    return f"k = {min(by_k)}; 95 %: {low:.1%} to {high:.1%}"


def _neighbours(report: Report, evaluation: Evaluation) -> None:
    queries, bank = evaluation.queries, evaluation.bank
    chosen = torch.linspace(0, len(queries.labels) - 1, min(_QUERIES_SHOWN, len(queries.labels))).long()
    rows = evaluation.neighbours[chosen][:, :_NEIGHBOURS_SHOWN]
    section = report.section("Nearest neighbours")
    section.text("Held-out images and the training images nearest to them by the trained features.")
    section.figure(
        neighbour_grid(
            queries.images[chosen.numpy()],
            [queries.labels[index] for index in chosen.tolist()],
            bank.images[rows.numpy()],
            [[bank.labels[row] for row in line] for line in rows.tolist()],
        ),
        "Green: the same class as the query. Red: another.",
        "nearest neighbours",
    )
