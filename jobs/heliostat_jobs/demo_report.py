"""The demo's report: what was learnt, as numbers and as pictures, and where the time went."""

from statistics import median

import torch

from heliostat.config.pretrain import PretrainRecipe
from heliostat.models.normalise import normalise
from heliostat.observe.events import read_events
from heliostat.observe.goodput import SHARES, time_shares, wall_clock_s
from heliostat.observe.metrics import merged_curve, read_metrics
from heliostat.observe.report import KeyNumber, Report
from heliostat.storage import Store
from heliostat_evaluation.backbones import patch_features
from heliostat_evaluation.charts import knn_bars, loss_curves, time_share_bar
from heliostat_evaluation.datasets import Pixels
from heliostat_evaluation.pictures import neighbour_grid, pca_picture
from heliostat_jobs.evaluate import PIXELS, TRAINED, UNTRAINED, Evaluation

REPORT_KEY = "reports/report.html"
_QUERIES_SHOWN, _NEIGHBOURS_SHOWN = 8, 8


def write_report(store: Store, recipe: PretrainRecipe, evaluation: Evaluation, pictures: Pixels) -> float:
    """Write ``reports/report.html`` of a run; returns its throughput in images/s (median over steps).

    Args:
        store: The run's store.
        recipe: Of the run.
        evaluation: Its k-NN.
        pictures: (M, H, W, 3), whole patches, shown with their patch features.
    """
    metrics, events = read_metrics(store), read_events(store)
    curve = merged_curve(metrics)
    rates = [value for line in curve if (value := line.values.get("images_per_s"))]
    rate = median(rates) if rates else 0.0
    wall_s = wall_clock_s(events)
    shares = time_shares(metrics, events, wall_s)
    report = Report(
        f"Heliostat run {recipe.name}",
        f"{recipe.training.steps} steps of {recipe.training.global_batch} images on {recipe.scaling.workers} workers "
        f"(ZeRO-{recipe.training.zero_stage}, {recipe.training.precision}), without labels",
    )
    _learnt(report, evaluation)
    section = report.section("Loss")
    section.figure(loss_curves(curve), "The optimised loss and its terms, step by step.", "loss curves")
    section = report.section("What the patches see")
    section.text(
        "First three principal components of the teacher's patch features over all pictures, as red, green and blue: "
        "parts that the network finds alike have the same colour. No label and no mask was ever given to it."
    )
    patches = patch_features(evaluation.backbone, normalise(pictures))
    section.figure(pca_picture(pictures, patches, columns=2), "Picture and patch features.", "PCA of patch features")
    _neighbours(report, evaluation)
    section = report.section("Where the time went")
    section.numbers(
        KeyNumber("throughput", f"{rate:.0f} images/s", "median over steps"),
        KeyNumber("wall clock", f"{wall_s:.0f} s", "first event to last"),
    )
    section.figure(time_share_bar(shares), "Seconds of the run by what they were spent on.", "time shares")
    section.table(
        ["share", "seconds", "what it is"],
        [[name, f"{seconds:.1f}", SHARES[name]] for name, seconds in shares.items() if seconds > 0],
    )
    report.write(store, REPORT_KEY)
    return rate


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
