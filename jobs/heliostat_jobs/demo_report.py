"""The demo's report: what was learnt, as numbers and as pictures, and where the time went."""

import torch

from heliostat.config.pretrain import PretrainRecipe
from heliostat.models.normalise import normalise
from heliostat.observe.events import read_events
from heliostat.observe.interruptions import interruptions
from heliostat.observe.metrics import read_metrics
from heliostat.observe.report import KeyNumber, Report
from heliostat.storage import Store
from heliostat_evaluation.backbones import patch_features
from heliostat_evaluation.charts import knn_bars
from heliostat_evaluation.datasets import Pixels
from heliostat_evaluation.pictures import neighbour_grid, pca_picture
from heliostat_jobs.evaluate import PIXELS, TRAINED, UNTRAINED, Evaluation
from heliostat_jobs.run_report import REPORT_KEY, median_rate, report_loss, report_time, titled_report

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
    rate, stops = median_rate(metrics), interruptions(metrics, events)
    report = titled_report(recipe)
    _learnt(report, evaluation)
    section = report_loss(report, metrics, stops)
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
