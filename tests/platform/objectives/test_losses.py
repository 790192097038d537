"""Against loops over single vectors in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heliostat.models.heads import LinearPrototypes
from heliostat.objectives.cross_entropy import Layer, Targets
from heliostat.objectives.losses import dino_losses, ibot_loss

SEEDS = st.integers(0, 10**6)
WIDTH, TEMPERATURE = 6, 0.1


def slow_cross_entropy(p: Tensor, logits: Tensor, temperature: float) -> float:
    shares: list[float] = p.double().tolist()
    scaled: list[float] = [value / temperature for value in logits.double().tolist()]
    log_total = max(scaled) + math.log(sum(math.exp(value - max(scaled)) for value in scaled))
    return -sum(share * (value - log_total) for share, value in zip(shares, scaled, strict=True))


def random_layer(prototypes: int, seed: int) -> LinearPrototypes:
    layer = LinearPrototypes(WIDTH, prototypes)
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(seed))
    return layer.requires_grad_(False)


def random_vectors(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


def random_targets(views: int, items: int, prototypes: int, seed: int) -> tuple[Targets, Tensor]:
    """Targets and the distributions that they stand for."""
    layer, vectors = random_layer(prototypes, seed), random_vectors(views, items, seed=seed + 1)
    offset = torch.randn(prototypes, generator=torch.Generator().manual_seed(seed + 2))
    p = torch.softmax(vectors.double() @ layer.weight.double().T / 0.5 + offset.double(), -1)
    return Targets(vectors, Layer.of(layer, vectors.dtype), offset, 0.5), p


@given(images=st.integers(1, 4), crops=st.integers(1, 5), prototypes=st.integers(1, 9), seed=SEEDS)
def test_dino_losses__are_means_over_all_pairs_of_two_different_crops(
    images: int, crops: int, prototypes: int, seed: int
) -> None:
    targets, p = random_targets(2, images, prototypes, seed)
    layer, vectors = random_layer(prototypes, seed + 3), random_vectors(2 + crops, images, seed=seed + 4)
    logits = vectors @ layer.weight.T

    def summed(pairs: list[tuple[int, int]]) -> float:
        return sum(
            slow_cross_entropy(p[mine, image], logits[other, image], TEMPERATURE)
            for mine, other in pairs
            for image in range(images)
        )

    count = images * (2 + 2 * crops)
    of_global = summed([(0, 1), (1, 0)]) / count
    of_local = summed([(mine, 2 + crop) for mine in range(2) for crop in range(crops)]) / count
    found = dino_losses(vectors, layer, targets, TEMPERATURE)
    assert found.of_global.item() == pytest.approx(of_global, rel=1e-4, abs=1e-5)
    assert found.of_local.item() == pytest.approx(of_local, rel=1e-4, abs=1e-5)
    assert found.total.item() == pytest.approx(of_global + of_local, rel=1e-4, abs=1e-5)


@given(masked=st.lists(st.integers(0, 5), min_size=1, max_size=6), prototypes=st.integers(1, 9), seed=SEEDS)
def test_ibot_loss__is_the_mean_over_crops_of_their_mean_over_masked_tokens(
    masked: list[int], prototypes: int, seed: int
) -> None:
    targets, p = random_targets(1, sum(masked), prototypes, seed)
    layer, vectors = random_layer(prototypes, seed + 3), random_vectors(sum(masked), seed=seed + 4)
    logits = vectors @ layer.weight.T
    weights = torch.tensor([1 / count for count in masked for _ in range(count)])
    expected, start = 0.0, 0
    for count in masked:
        losses = [slow_cross_entropy(p[0, token], logits[token], TEMPERATURE) for token in range(start, start + count)]
        start += count
        expected += sum(losses) / max(count, 1) / len(masked)
    found = ibot_loss(vectors, layer, targets, weights, len(masked), TEMPERATURE)
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
