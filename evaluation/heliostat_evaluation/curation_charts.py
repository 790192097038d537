"""A curation as figures: what each stage left, groups of pictures that belong together, and balance.

As in ``charts.py``, figures are plain `Figure` objects, with text and axes in the report's `INK`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from heliostat.observe.report import INK
from heliostat_evaluation.charts import PALETTE, dress

_BAR_IN = 0.34
_TILE_IN = 0.95
_FEWEST_COLUMNS = 8
"""A figure is as wide as the page: in one of two columns pictures and titles would be huge."""


def funnel(left: Sequence[tuple[str, int]]) -> Figure:
    """Bars of the images that are left after each stage, from top to bottom.

    Args:
        left: Name of each stage, and the images after it; the pool first.
    """
    figure = Figure(figsize=(8.4, 0.5 + _BAR_IN * len(left)), dpi=150, layout="constrained")
    axes = figure.subplots()
    dress(axes)
    axes.grid(visible=False)
    places = np.arange(len(left))[::-1]
    counts = [images for _, images in left]
    axes.barh(places, counts, color=PALETTE[1], height=0.72)
    for place, images in zip(places, counts, strict=True):
        share = f"{images / counts[0]:.1%}" if counts[0] else "-"
        axes.text(images, place, f"  {images:,} ({share})", va="center", fontsize=8.5, color=INK)
    axes.set_yticks(places, [name for name, _ in left])
    axes.set_xlim(0, max(1, max(counts)) * 1.25)
    axes.set_xticks([])
    return figure


def sizes_of_clusters(sizes: Mapping[str, NDArray[np.int64]]) -> Figure:
    """Share of the images in the largest clusters, cumulated: a balanced set follows the diagonal.

    Args:
        sizes: By name of the set, images in each cluster.
    """
    figure = Figure(figsize=(8.4, 3.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    dress(axes)
    for number, (name, counts) in enumerate(sizes.items()):
        ordered = np.sort(counts)[::-1]
        shares = np.concatenate([[0.0], np.cumsum(ordered) / max(1, ordered.sum())])
        axes.plot(np.linspace(0, 100, len(shares)), 100 * shares, color=PALETTE[number + 1], label=name, linewidth=1.8)
    axes.plot([0, 100], [0, 100], color=PALETTE[0], linestyle="dotted", linewidth=1.2, label="all clusters equal")
    axes.set_xlabel("largest clusters, %", color=INK)
    axes.set_ylabel("images in them, %", color=INK)
    axes.legend(loc="lower right", frameon=False, labelcolor=INK, fontsize=8.5)
    return figure


def picture_rows(rows: Sequence[Sequence[NDArray[np.uint8]]], titles: Sequence[str]) -> Figure:
    """Rows of square pictures, each with a title; of unequal length, the rest stays empty.

    Args:
        rows: Pictures (H, H, 3) of each row.
        titles: One per row, shown above it.
    """
    columns = max(_FEWEST_COLUMNS, *(len(row) for row in rows))
    figure = Figure(figsize=(_TILE_IN * columns, (_TILE_IN + 0.22) * len(rows)), dpi=150)
    cells = figure.subplots(len(rows), columns, squeeze=False)
    figure.subplots_adjust(left=0.005, right=0.995, top=1 - 0.2 / len(rows), bottom=0.005, wspace=0.05, hspace=0.26)
    for line, row, title in zip(cells, rows, titles, strict=True):
        for place, axes in enumerate(line):
            axes.set_axis_off()
            if place < len(row):
                axes.imshow(row[place], interpolation="none")
        line[0].set_title(title, fontsize=8, color=INK, loc="left", pad=3)
    return figure
