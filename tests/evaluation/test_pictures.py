import io
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from heliostat_evaluation.pictures import (
    RIGHT,
    WRONG,
    component_colours,
    neighbour_grid,
    patch_grid,
    pca_picture,
    principal_components,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(figure: Figure) -> NDArray[np.float64]:
    """Pixels (H, W, 3) of the figure on white, 0 to 1."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return np.asarray(Image.open(buffer).convert("RGB")) / 255.0


def area(pixels: NDArray[np.float64], colour: str | Sequence[float]) -> float:
    """Fraction of pixels that have a colour, within what rounding changes."""
    wanted = to_rgb(colour) if isinstance(colour, str) else colour
    return float((np.abs(pixels - np.asarray(wanted)).max(axis=-1) < 0.02).mean())


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), samples=st.integers(4, 30), width=st.integers(3, 12))
def test_principal_components__are_uncorrelated_and_sorted_by_spread(seed: int, samples: int, width: int) -> None:
    coordinates = principal_components(random(samples, width, seed=seed))
    covariance = coordinates.T @ coordinates
    spread = covariance.diag()
    assert (spread[:-1] >= spread[1:] - 1e-9).all()
    torch.testing.assert_close(covariance, spread.diag(), atol=1e-8 * float(spread[0]) + 1e-9, rtol=0)


def test_principal_components__the_sign_does_not_depend_on_the_order_of_vectors() -> None:
    vectors, order = random(40, 6), torch.randperm(40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(principal_components(vectors[order]), principal_components(vectors)[order])


def test_principal_components__by_hand() -> None:
    vectors = torch.tensor([[-1.0, 2.0], [0.0, 0.0], [1.0, -2.0]])  # on a line whose larger entry is the second
    first = principal_components(vectors)[:, 0]
    torch.testing.assert_close(first, torch.tensor([5**0.5, 0.0, -(5**0.5)], dtype=torch.float64))


def test_principal_components__missing_axes_are_zero() -> None:
    assert principal_components(random(2, 5)).shape == (2, 3)
    assert torch.equal(principal_components(random(9, 2))[:, 2], torch.zeros(9, dtype=torch.float64))


def test_component_colours__are_shared_by_all_images() -> None:
    patches = random(3, 16, 8)
    patches[2] = patches[0]
    colours = component_colours(patches)
    assert colours.shape == (3, 16, 3)
    assert torch.equal(colours[0], colours[2])
    assert colours.min() == 0 and colours.max() == 1


def test_component_colours__equal_patches_have_one_colour() -> None:
    assert np.unique(component_colours(torch.ones(2, 4, 8)).numpy()).size == 1


@pytest.mark.parametrize(
    ("patches", "height", "width", "grid"), [(49, 28, 28, (7, 7)), (8, 56, 28, (4, 2)), (8, 28, 56, (2, 4))]
)
def test_patch_grid__has_the_proportions_of_the_image(
    patches: int, height: int, width: int, grid: tuple[int, int]
) -> None:
    assert patch_grid(patches, height, width) == grid


def test_patch_grid__names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="50 patches do not tile an image of 28 x 28"):
        patch_grid(50, 28, 28)


def test_pca_picture__two_kinds_of_patches_have_two_colours() -> None:
    patches = torch.zeros(3, 16, 4)
    patches[:, 8:, 0] = 1.0  # the lower half of each image looks different
    pixels = drawn(pca_picture(np.zeros((3, 16, 16), np.uint8), patches, columns=2))
    upper, lower = area(pixels, (0, 0, 0)), area(pixels, (1, 0, 0))
    assert lower == pytest.approx(upper / 3, rel=0.2), "three black images and three black halves to three red halves"


def test_neighbour_grid__frames_tell_right_from_wrong() -> None:
    queries = np.full((2, 8, 8, 3), 255, np.uint8)
    neighbours = np.full((2, 3, 8, 8, 3), 255, np.uint8)
    mixed = drawn(neighbour_grid(queries, [1, 2], neighbours, [[1, 1, 1], [2, 0, 2]]))
    right = drawn(neighbour_grid(queries, [1, 2], neighbours, [[1, 1, 1], [2, 2, 2]]))
    assert area(right, WRONG) == 0
    assert 0 < area(mixed, WRONG) < area(mixed, RIGHT) < area(right, RIGHT)


def test_neighbour_grid__shows_the_images() -> None:
    neighbours = np.zeros((1, 2, 8, 8, 3), np.uint8)
    neighbours[0, 1] = (0, 0, 255)
    pixels = drawn(neighbour_grid(np.full((1, 8, 8), 0.5), ["a"], neighbours, [["a", "a"]]))
    for colour in ((0, 0, 0), (0, 0, 1), (0.5, 0.5, 0.5)):
        assert area(pixels, colour) > 0.1, colour


def test_pictures__leave_pyplot_alone() -> None:
    pca_picture(np.zeros((1, 8, 8), np.uint8), random(1, 4, 3))
    pyplot = sys.modules.get("matplotlib.pyplot")  # other tests may have imported it
    assert pyplot is None or pyplot.get_fignums() == []
