"""Against loops over pairs of patches in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heliostat.config.objective import GramConfig
from heliostat.objectives.gram import gram_loss, gram_teacher_refreshes, resize_features

SEEDS = st.integers(0, 10**6)


def random_tokens(images: int, patches: int, width: int, seed: int) -> Tensor:
    return torch.randn(images, patches, width, generator=torch.Generator().manual_seed(seed))


def slow_gram_loss(student: Tensor, anchor: Tensor, clip_negative: bool) -> float:
    def cosine(a: list[float], b: list[float]) -> float:
        value = math.fsum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
        return max(value, 0.0) if clip_negative else value

    squares = [
        (cosine(mine[a], mine[b]) - cosine(theirs[a], theirs[b])) ** 2
        for mine, theirs in zip(student.double().tolist(), anchor.double().tolist(), strict=True)
        for a in range(len(mine))
        for b in range(len(mine))
    ]
    return math.fsum(squares) / len(squares)


@given(
    images=st.integers(1, 3),
    patches=st.integers(1, 6),
    widths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    clip_negative=st.booleans(),
    seed=SEEDS,
)
def test_gram_loss__is_the_mean_squared_difference_of_cosines(
    images: int, patches: int, widths: tuple[int, int], clip_negative: bool, seed: int
) -> None:
    student, anchor = (random_tokens(images, patches, width, seed + i) for i, width in enumerate(widths))
    found = gram_loss(student, anchor, clip_negative)
    assert found.item() == pytest.approx(slow_gram_loss(student, anchor, clip_negative), rel=1e-5, abs=1e-6)


@given(clip_negative=st.booleans(), seed=SEEDS)
def test_gram_loss__lengths_of_tokens_do_not_matter(clip_negative: bool, seed: int) -> None:
    student, anchor = random_tokens(2, 5, 4, seed), random_tokens(2, 5, 4, seed + 1)
    lengths = 0.01 + 100 * torch.rand(2, 5, 1, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        gram_loss(student * lengths, anchor / lengths, clip_negative), gram_loss(student, anchor, clip_negative)
    )


@given(seed=SEEDS)
def test_gram_loss__rotated_features_are_as_good_as_the_same(seed: int) -> None:
    student = random_tokens(2, 6, 5, seed)
    rotation, _ = torch.linalg.qr(random_tokens(1, 5, 5, seed + 1)[0])
    assert gram_loss(student, student, clip_negative=False) == 0
    assert gram_loss(student @ rotation, student, clip_negative=False) < 1e-12


def test_gram_loss__only_the_student_learns() -> None:
    student, anchor = random_tokens(2, 5, 4, 0).requires_grad_(), random_tokens(2, 5, 4, 1).requires_grad_()
    before = gram_loss(student, anchor, clip_negative=False)
    before.backward()
    assert anchor.grad is None
    assert student.grad is not None
    assert gram_loss(student.detach() - 0.1 * student.grad, anchor, clip_negative=False) < before


def test_gram_loss__is_computed_in_full_precision() -> None:
    student, anchor = random_tokens(2, 5, 4, 0).bfloat16(), random_tokens(2, 5, 4, 1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = gram_loss(student, anchor, clip_negative=True)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, gram_loss(student.float(), anchor.float(), clip_negative=True))


@pytest.mark.parametrize("clip_negative", [False, True])
def test_gram_loss__what_is_not_finite_is_not_hidden(clip_negative: bool) -> None:
    bad = random_tokens(2, 5, 4, 0)
    bad[1, 2, 3] = math.nan
    good = random_tokens(2, 5, 4, 1)
    assert gram_loss(bad, good, clip_negative).isnan()
    assert gram_loss(good, bad, clip_negative).isnan()


def cubic_weight(distance: float) -> float:
    """Keys 1981 with a = -0.75, the kernel of bicubic interpolation."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def cubic_rows(size: int, to_size: int) -> Tensor:
    """What each of the new places takes of the old ones, (to_size, size); beyond the edge is as at the edge."""
    weights = torch.zeros(to_size, size, dtype=torch.float64)
    for place in range(to_size):
        centre = (place + 0.5) * size / to_size - 0.5
        for old in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[place, min(max(old, 0), size - 1)] += cubic_weight(centre - old)
    return weights


@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)), to=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=SEEDS
)
def test_resize_features__is_cubic_along_both_sides(grid: tuple[int, int], to: tuple[int, int], seed: int) -> None:
    tokens = random_tokens(2, grid[0] * grid[1], 3, seed)
    found = resize_features(tokens, *grid, *to)
    expected = torch.einsum(
        "rh,cw,bhwd->brcd",
        cubic_rows(grid[0], to[0]),
        cubic_rows(grid[1], to[1]),
        tokens.double().unflatten(1, grid),
    )
    torch.testing.assert_close(found.double(), expected.flatten(1, 2), rtol=1e-5, atol=1e-5)


def test_resize_features__half_precision_is_raised() -> None:
    tokens = random_tokens(1, 16, 3, 0).bfloat16()
    found = resize_features(tokens, 4, 4, 2, 2)
    assert found.dtype == torch.float32
    assert torch.equal(found, resize_features(tokens.float(), 4, 4, 2, 2))


@pytest.mark.parametrize(
    ("config", "refreshed"),
    [
        (GramConfig(from_step=0, refresh_every_steps=10, max_refreshes=3), [0, 10, 20, 30]),
        (GramConfig(from_step=25, refresh_every_steps=10, max_refreshes=2), [25, 35, 45]),
        (GramConfig(from_step=30, refresh_every_steps=10, max_refreshes=1), [30, 40]),
        (GramConfig(from_step=7, refresh_every_steps=1, max_refreshes=2), [7, 8, 9]),
        (GramConfig(from_step=5, refresh_every_steps=10, max_refreshes=0), [5]),
        (GramConfig(from_step=100, refresh_every_steps=10, max_refreshes=3), []),
    ],
)
def test_gram_teacher_refreshes__at_its_steps(config: GramConfig, refreshed: list[int]) -> None:
    assert [step for step in range(70) if gram_teacher_refreshes(step, config)] == refreshed
