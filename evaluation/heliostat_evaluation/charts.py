"""Numbers as charts: k-NN accuracies and loss curves. Those of the run's time are in ``time_charts.py``.

As in ``pictures.py``, figures are plain `Figure` objects, with text and axes in the report's `INK`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from heliostat.observe.metrics import StepMetrics
from heliostat.observe.report import INK
from heliostat_evaluation.knn import Accuracy

PALETTE = ("#8b95a7", "#5b8def", "#e08a1e", "#2f9e5b", "#a66bd4", "#d9483b", "#1aa6b7", "#b8860b", "#7f8c5a")
"""Readable on light and dark pages alike."""

_GRID = "#8b95a7"
_SMOOTHING = 50
"""A curve's running mean reaches this part of its length to either side."""


def knn_bars(accuracies: Mapping[str, Mapping[int, Accuracy]]) -> Figure:
    """k-NN accuracy of several feature sets beside each other, with 95 % intervals.

    Args:
        accuracies: Name of the features (in the order in which they are shown) to accuracy by k; the same k for all.
    """
    ks = sorted(next(iter(accuracies.values())))
    figure, axes = _chart(height_in=3.3)
    bar = 0.8 / len(accuracies)
    for index, (name, by_k) in enumerate(accuracies.items()):
        top1 = np.array([by_k[k].top1 for k in ks]) * 100
        bounds = np.array([by_k[k].interval for k in ks]).T * 100
        places = np.arange(len(ks)) + (index - (len(accuracies) - 1) / 2) * bar
        errors = np.abs(bounds - top1)
        style = {"ecolor": INK, "elinewidth": 0.9, "capsize": 2.0}
        axes.bar(places, top1, bar * 0.9, yerr=errors, color=PALETTE[index % len(PALETTE)], label=name, error_kw=style)
        for place, value, high in zip(places, top1, bounds[1], strict=True):
            axes.text(place, high + 1.2, f"{value:.1f}", ha="center", va="bottom", fontsize=7.5, color=INK)
    axes.set_xticks(np.arange(len(ks)), [f"k = {k}" for k in ks])
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("top-1 accuracy, %", color=INK)
    _legend(axes, columns=len(accuracies))
    return figure


LOSS_TERMS = ("dino", "ibot", "koleo", "features", "label", "label_token")


def loss_curves(
    curve: Sequence[StepMetrics],
    terms: Sequence[str] = LOSS_TERMS,
    interrupted_at: Sequence[int] = (),
) -> Figure:
    """The total loss and its terms over the steps: measured values pale, their running mean strong.

    Args:
        curve: One line per step, as `merged_curve` makes it. Values that were not finite leave a gap.
        terms: Names of the terms; those that the run did not measure are left out.
        interrupted_at: Steps that were done when the run was interrupted; thin lines show that the curve goes on.
    """
    names = ["loss", *(term for term in terms if any(term in line.values for line in curve))]
    figure = Figure(figsize=(8.4, 1.2 + 2.1 * -(-len(names) // 2)), dpi=150, layout="constrained")
    cells = figure.subplots(-(-len(names) // 2), 2, squeeze=False).flat
    steps = np.array([line.step for line in curve])
    for index, axes in enumerate(cells):
        if index >= len(names):
            axes.set_axis_off()
            continue
        values = np.array([_number(line, names[index]) for line in curve])
        colour = PALETTE[(1 + index) % len(PALETTE)]
        axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
        axes.plot(steps, running_mean(values, len(values) // _SMOOTHING), color=colour, linewidth=1.8)
        for step in interrupted_at:
            axes.axvline(step - 0.5, color=INK, alpha=0.4, linewidth=0.7, zorder=0.5)
        axes.set_title("total loss" if names[index] == "loss" else names[index], fontsize=9.5, color=INK, loc="left")
        axes.set_xlabel("step", fontsize=8.5, color=INK)
        dress(axes)
    return figure


def running_mean(values: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Mean of each value with up to ``reach`` values before and after it, those that are NaN left out.

    Centred, because a mean of past values only lags behind a falling curve and makes it look higher than it is.
    """
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    places = np.arange(len(values))
    starts, ends = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    with np.errstate(invalid="ignore"):  # a window of nothing but NaN has no mean
        return np.asarray((sums[ends] - sums[starts]) / (counts[ends] - counts[starts]))


def _number(line: StepMetrics, name: str) -> float:
    value = line.values.get(name)
    return float("nan") if value is None else value


def _chart(height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.4, height_in), dpi=150, layout="constrained")
    axes = figure.subplots()
    dress(axes)
    return figure, axes


def dress(axes: Axes) -> None:
    """Axes as all charts have them: a grid from left to right, a line below, no frame."""
    axes.grid(axis="y", color=_GRID, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8.5, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(INK)
    axes.patch.set_alpha(0)


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1.13), ncols=columns, frameon=False, labelcolor=INK, fontsize=8.5)
