"""Against loops and the naive formula, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heliostat.objectives.koleo import koleo_loss

SEEDS = st.integers(0, 10**6)


def random_vectors(images: int, width: int, seed: int) -> Tensor:
    return torch.randn(images, width, generator=torch.Generator().manual_seed(seed))


def slow_koleo(vectors: Tensor, group: int, neighbours: int) -> float:
    unit = [[value / math.hypot(*row) for value in row] for row in vectors.double().tolist()]
    logs = []
    for start in range(0, len(unit), group):
        members = unit[start : start + group]
        for index, mine in enumerate(members):
            distances = sorted(math.dist(mine, other) for place, other in enumerate(members) if place != index)
            logs += [math.log(distance + 1e-8) for distance in distances[:neighbours]]
    return -sum(logs) / len(logs)


def naive_koleo(vectors: Tensor) -> Tensor:
    """The published formula as it stands."""
    unit = F.normalize(vectors, dim=-1, eps=1e-8)
    cosines = (unit @ unit.T).fill_diagonal_(-1)
    return -torch.log(F.pairwise_distance(unit, unit[cosines.argmax(1)], eps=1e-8) + 1e-8).mean()


def gradient_of(vectors: Tensor, group: int | None = None, neighbours: int = 1) -> tuple[Tensor, Tensor]:
    leaf = vectors.clone().requires_grad_()
    loss = koleo_loss(leaf, group, neighbours)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


@given(
    groups=st.integers(1, 4),
    members=st.integers(2, 8),
    neighbours=st.integers(1, 7),
    width=st.integers(2, 16),
    seed=SEEDS,
    scale=st.floats(0.01, 100),
)
def test_koleo_loss__is_minus_the_mean_log_distance_to_the_nearest_of_the_group(
    groups: int, members: int, neighbours: int, width: int, seed: int, scale: float
) -> None:
    neighbours = min(neighbours, members - 1)
    vectors = scale * random_vectors(groups * members, width, seed)
    # In fp32 the distance of two neighbours at 1e-3 is known to about 1e-4 of itself.
    expected = pytest.approx(slow_koleo(vectors, members, neighbours), rel=1e-3, abs=2e-3)
    assert koleo_loss(vectors, members, neighbours).item() == expected
    if groups == 1:
        assert koleo_loss(vectors, None, neighbours).item() == expected


@given(images=st.integers(3, 12), seed=SEEDS)
def test_koleo_loss__gradient_is_that_of_the_naive_formula(images: int, seed: int) -> None:
    vectors = random_vectors(images, 16, seed)  # at this width neighbours are far enough from each other for fp32
    wide = vectors.double().requires_grad_()
    expected = naive_koleo(wide)
    (expected_gradient,) = torch.autograd.grad(expected, wide)
    loss, gradient = gradient_of(vectors)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-5, atol=1e-6)


@given(
    copies=st.lists(st.integers(0, 5), min_size=2, max_size=8),
    width=st.integers(1, 8),
    scale=st.floats(0.01, 100),
    seed=SEEDS,
)
def test_koleo_loss__of_duplicates_is_finite_and_they_do_not_push(
    copies: list[int], width: int, scale: float, seed: int
) -> None:
    vectors = scale * random_vectors(6, width, seed)[copies]
    loss, gradient = gradient_of(vectors)
    assert loss.isfinite()
    # Of log distance per unit vector at most 1 / 1e-6, from every image's side, over the vector's length.
    assert gradient.norm(dim=1).max() <= 2 * 1e6 / vectors.norm(dim=1).min()
    if all(copies.count(copy) > 1 for copy in copies):
        assert gradient.eq(0).all()


def test_koleo_loss__a_duplicate_counts_in_the_value_only() -> None:
    twins_and_two = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    loss, gradient = gradient_of(twins_and_two)
    assert loss.item() == pytest.approx(naive_koleo(twins_and_two.double()).item(), rel=1e-6)
    assert loss > 7  # two of four distances are nothing
    assert gradient[1].eq(0).all()  # nobody's neighbour but its twin's
    assert gradient[2:].abs().sum(1).gt(0).all()


@pytest.mark.parametrize("distance", [1e-3, 1e-5, 1e-7, 1e-9])
def test_koleo_loss__close_pairs_push_as_far_as_fp32_tells_them_apart(distance: float) -> None:
    pair = torch.tensor([[1.0, 0.0], [1.0, distance]])
    _, gradient = gradient_of(pair)
    assert gradient.norm(dim=1).max().item() == pytest.approx(1 / distance if distance > 1e-6 else 0, rel=0.01)


def test_koleo_loss__opposite_images_are_each_others_neighbours() -> None:
    vector = random_vectors(1, 7, 3)
    for scale in (0.1, 0.3, 0.7, 1.7):  # the cosine rounds to a little more or less than -1
        assert koleo_loss(torch.cat([vector, -scale * vector])).item() == pytest.approx(-math.log(2), abs=1e-6)


def test_koleo_loss__a_lone_image_has_no_neighbour() -> None:
    for images, group in ((1, None), (4, 1)):
        loss, gradient = gradient_of(torch.ones(images, 4, dtype=torch.bfloat16), group)
        assert (loss.item(), loss.dtype) == (0, torch.float32)
        assert gradient.eq(0).all()


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_koleo_loss__what_is_not_finite_is_not_hidden(images: int, bad: float) -> None:
    vectors = random_vectors(images, 4, 0)
    vectors[-1, 2] = bad
    assert koleo_loss(vectors).isnan()


def test_koleo_loss__too_many_neighbours_are_refused() -> None:
    with pytest.raises(ValueError, match="neighbours 2 must be below the 2 images"):
        koleo_loss(torch.ones(4, 3), group=2, neighbours=2)


def test_koleo_loss__is_computed_in_full_precision() -> None:
    vectors = random_vectors(8, 16, 0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = koleo_loss(vectors)
    assert torch.equal(inside, koleo_loss(vectors))


def test_koleo_loss__pushes_neighbours_apart() -> None:
    vectors = torch.tensor([[1.0, 0.1], [1.0, 0.0], [-1.0, 0.0]])
    before, gradient = gradient_of(vectors)
    assert koleo_loss(vectors - 0.01 * gradient) < before
