"""What features see, as pictures: principal components of patches, and nearest neighbours.

Figures are plain `Figure` objects: no pyplot, no backend chosen, nothing global changed. Text and frames are drawn in
the report's `INK`, so that they follow its theme.

Legend: M images, N patches of an image, D feature width, H and W pixels, C colour channels, Q queries, K neighbours.
"""

from collections.abc import Sequence
from math import isqrt
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import LineStyleType
from numpy.typing import NDArray
from torch import Tensor

from heliostat.observe.report import INK

RIGHT = "#2f9e5b"
WRONG = "#d9483b"

Pixels = NDArray[Any]
"""Images (M, H, W, C) or (M, H, W): uint8, or floats from 0 to 1."""


def principal_components(vectors_ND: Tensor, components: int = 3) -> Tensor:
    """Coordinates (N, components) of centred vectors along their principal axes, in fp64.

    An axis and its opposite are equally principal: the sign is chosen so that the axis's entry of largest size is
    positive, which makes pictures of the same features equal. Axes that the vectors do not span give zeros.
    """
    centred_ND = (vectors_ND - vectors_ND.mean(dim=0)).double()
    _, _, axes_RD = torch.linalg.svd(centred_ND, full_matrices=False)
    axes_RD = axes_RD[:components]
    largest_R1 = axes_RD.abs().argmax(dim=1, keepdim=True)
    axes_RD = axes_RD * axes_RD.gather(1, largest_R1).sign()
    coordinates_NR = centred_ND @ axes_RD.T
    missing = components - coordinates_NR.shape[1]
    return torch.nn.functional.pad(coordinates_NR, (0, missing))


def component_colours(patches_MND: Tensor) -> Tensor:
    """Red, green and blue (M, N, 3), 0 to 1, from the first three principal components over all patches together.

    Each component is stretched from its 1st to its 99th percentile, so that single outliers do not grey out the rest.
    """
    images, patches, _ = patches_MND.shape
    coordinates = principal_components(patches_MND.flatten(0, 1))
    low = coordinates.quantile(0.01, dim=0)
    spread = (coordinates.quantile(0.99, dim=0) - low).clamp(min=1e-12)
    return ((coordinates - low) / spread).clamp(0, 1).float().reshape(images, patches, 3)


def patch_grid(patches: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of an image's patches.

    Raises:
        ValueError: No grid of that many patches has the image's proportions.
    """
    rows = isqrt(patches * height // width)
    for candidate in (rows, rows + 1):
        if candidate and patches % candidate == 0 and candidate * width == patches // candidate * height:
            return candidate, patches // candidate
    raise ValueError(f"{patches} patches do not tile an image of {height} x {width} pixels")


def pca_picture(images: Pixels, patches_MND: Tensor, columns: int = 4) -> Figure:
    """Images beside the colours of their patch features: parts that the model sees alike have the same colour.

    Args:
        images: The images, all of one size.
        patches_MND: Patch features of the same images, row by row of the patch grid.
        columns: Pairs of pictures per row of the figure.
    """
    rows, width = patch_grid(patches_MND.shape[1], images.shape[1], images.shape[2])
    colours = component_colours(patches_MND).reshape(len(images), rows, width, 3).numpy()
    lines = -(-len(images) // columns)
    figure = Figure(figsize=(columns * 2.4, lines * 1.2), dpi=150)
    # Each pair has a third, narrow and empty cell, so that it is seen which pictures belong together.
    cells = figure.subplots(lines, columns * 3, squeeze=False, gridspec_kw={"width_ratios": [1.0, 1.0, 0.12] * columns})
    figure.subplots_adjust(left=0.005, right=0.995, top=0.99, bottom=0.01, wspace=0.04, hspace=0.08)
    for index, axes in enumerate(cells.flat):
        pair, place = divmod(index, 3)
        axes.set_axis_off()
        if pair < len(images) and place < 2:
            _show(axes, colours[pair] if place else images[pair])
    return figure


def neighbour_grid(
    queries: Pixels,
    query_labels: Sequence[object],
    neighbours: Pixels,
    neighbour_labels: Sequence[Sequence[object]],
) -> Figure:
    """Each query and its nearest images, nearest first: framed in green where the label is the query's, else in red.

    Red frames are dashed, for readers who do not tell red from green.

    Args:
        queries: Images (Q, H, W[, C]).
        query_labels: Their labels, as shown.
        neighbours: Images (Q, K, H, W[, C]).
        neighbour_labels: Their labels, Q rows of K.
    """
    count, per_query = neighbours.shape[:2]
    figure = Figure(figsize=(0.95 * (per_query + 1.35), 1.0 * count + 0.3), dpi=150)
    ratios = [1.0, 0.25, *[1.0] * per_query]
    cells = figure.subplots(count, per_query + 2, squeeze=False, gridspec_kw={"width_ratios": ratios})
    top = 1 - 0.3 / (count + 0.3)
    figure.subplots_adjust(left=0.01, right=0.99, top=top, bottom=0.01, wspace=0.12, hspace=0.12)
    for row, (query, line) in enumerate(zip(queries, cells, strict=True)):
        _show(line[0], query)
        _frame(line[0], INK, 0.8)
        line[1].set_axis_off()
        for rank, axes in enumerate(line[2:]):
            _show(axes, neighbours[row, rank])
            same = neighbour_labels[row][rank] == query_labels[row]
            _frame(axes, RIGHT if same else WRONG, 2.6, "solid" if same else (0, (3, 1.5)))
    cells[0][0].set_title("query", fontsize=9, color=INK, pad=5)
    cells[0][2].set_title("nearest", fontsize=9, color=INK, pad=5, loc="left")
    return figure


def _show(axes: Axes, image: Pixels) -> None:
    squeezed = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    highest = 255 if np.issubdtype(squeezed.dtype, np.integer) else 1.0
    axes.imshow(squeezed, cmap="gray", vmin=0, vmax=highest, interpolation="none")


def _frame(axes: Axes, colour: str, width_pt: float, style: LineStyleType = "solid") -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(width_pt)
        spine.set_linestyle(style)
        # Projecting caps close the corners of a frame, but also the gaps of its dashes.
        spine.set_capstyle("projecting" if style == "solid" else "butt")
