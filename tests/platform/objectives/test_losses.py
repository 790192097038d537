"""Against loops over single vectors in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.closed_form import det
from torch import Tensor

from heliostat.objectives.losses import cross_entropy, dino_loss, ibot_loss, koleo_loss
from heliostat.objectives.sinkhorn import OneWorker, sinkhorn_offset, targets

SEEDS = st.integers(0, 10**6)


def slow_cross_entropy(p: Tensor, logits: Tensor, temperature: float) -> float:
    shares: list[float] = p.double().tolist()
    scaled: list[float] = [value / temperature for value in logits.double().tolist()]
    log_total = max(scaled) + math.log(sum(math.exp(value - max(scaled)) for value in scaled))
    return -sum(share * (value - log_total) for share, value in zip(shares, scaled, strict=True))


def random_case(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Distributions and logits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(3 * torch.randn(shape, generator=generator), -1), torch.randn(shape, generator=generator)


@given(images=st.integers(1, 4), crops=st.integers(1, 5), prototypes=st.integers(1, 9), seed=SEEDS)
def test_dino_loss__is_the_mean_over_all_pairs_of_two_different_crops(
    images: int, crops: int, prototypes: int, seed: int
) -> None:
    teacher, whole = random_case(seed, 2, images, prototypes)
    _, local = random_case(seed + 1, crops, images, prototypes)
    pairs = [(teacher[0], whole[1]), (teacher[1], whole[0])]
    pairs += [(teacher[mine], local[crop]) for mine in range(2) for crop in range(crops)]
    expected = sum(
        slow_cross_entropy(p[image], logits[image], 0.1) for p, logits in pairs for image in range(images)
    ) / (images * len(pairs))
    assert dino_loss(teacher, whole, local, 0.1).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@given(masked=st.lists(st.integers(0, 5), min_size=1, max_size=6), prototypes=st.integers(1, 9), seed=SEEDS)
def test_ibot_loss__is_the_mean_over_crops_of_their_mean_over_masked_tokens(
    masked: list[int], prototypes: int, seed: int
) -> None:
    teacher, student = random_case(seed, sum(masked), prototypes)
    weights = torch.tensor([1 / count for count in masked for _ in range(count)])
    expected, start = 0.0, 0
    for count in masked:
        tokens = range(start, start + count)
        start += count
        losses = [slow_cross_entropy(teacher[token], student[token], 0.1) for token in tokens]
        expected += sum(losses) / max(count, 1) / len(masked)
    found = ibot_loss(teacher, student, weights, len(masked), 0.1)
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_ibot_loss__equals_the_published_one() -> None:
    logits = det((15, 24), 41)
    offset = sinkhorn_offset(lambda: [logits], 0.07, 3, OneWorker())
    weights = torch.tensor([1 / 5] * 5 + [1 / 10] * 10)  # four crops, of which two have 5 and 10 masked tokens
    found = ibot_loss(targets(logits, 0.07, offset), det((15, 24), 40), weights, 4, 0.1)
    assert found.item() == pytest.approx(4.272719383239746, rel=1e-6)


def test_cross_entropy__is_computed_in_full_precision() -> None:
    teacher, student = random_case(0, 5, 7)
    found = cross_entropy(teacher, student.bfloat16(), 0.1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, cross_entropy(teacher, student.bfloat16().float(), 0.1))


def slow_koleo(vectors: Tensor) -> float:
    unit = [[value / math.hypot(*row) for value in row] for row in vectors.double().tolist()]
    distances = [[math.dist(a, b) for b in unit] for a in unit]
    nearest = [min(row[:index] + row[index + 1 :]) for index, row in enumerate(distances)]
    return -sum(math.log(distance + 1e-8) for distance in nearest) / len(unit)


@given(images=st.integers(2, 12), width=st.integers(2, 16), seed=SEEDS, scale=st.floats(0.01, 100))
def test_koleo_loss__is_minus_the_mean_log_distance_to_the_nearest(
    images: int, width: int, seed: int, scale: float
) -> None:
    vectors = scale * torch.randn(images, width, generator=torch.Generator().manual_seed(seed))
    # In fp32 the distance of two neighbours at 1e-3 is known to about 1e-4 of itself.
    assert koleo_loss(vectors).item() == pytest.approx(slow_koleo(vectors), rel=1e-3, abs=2e-3)


def test_koleo_loss__equals_the_published_one() -> None:
    assert koleo_loss(det((8, 16), 7)).item() == pytest.approx(0.335592657327652, rel=1e-6)


def test_koleo_loss__a_lone_image_has_no_neighbour() -> None:
    lone = torch.ones(1, 4, dtype=torch.bfloat16, requires_grad=True)
    assert koleo_loss(lone).item() == 0
    assert koleo_loss(lone).dtype == torch.float32


def test_koleo_loss__of_two_equal_images_is_finite_and_so_is_its_gradient() -> None:
    twins = torch.ones(2, 4).requires_grad_()
    loss = koleo_loss(twins)
    assert loss.isfinite()
    loss.backward()
    assert twins.grad is not None
    assert twins.grad.isfinite().all()


def test_koleo_loss__pushes_neighbours_apart() -> None:
    vectors = torch.tensor([[1.0, 0.1], [1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    before = koleo_loss(vectors)
    before.backward()
    assert vectors.grad is not None
    assert koleo_loss(vectors.detach() - 0.01 * vectors.grad) < before
