"""Feature distillation against its formula, element by element."""

import math

import pytest
import torch

from heliostat.objectives.features import feature_loss, whitened


@pytest.mark.parametrize("beta", [0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_feature_loss__is_the_mean_smooth_l1_distance_to_whitened_tokens(beta: float, dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(3)
    mine = (4 * torch.randn(5, 7, generator=draws)).to(dtype)
    theirs = (30 + 100 * torch.randn(5, 7, generator=draws)).to(dtype)
    total = 0.0
    for row, target in zip(mine.tolist(), theirs.tolist(), strict=True):
        mean = sum(target) / 7
        variance = sum((each - mean) ** 2 for each in target) / 7
        for value, each in zip(row, target, strict=True):
            distance = abs(value - (each - mean) / math.sqrt(variance + 1e-5))
            total += 0.5 * distance**2 / beta if distance <= beta else distance - 0.5 * beta
    assert feature_loss(mine, theirs, beta).item() == pytest.approx(total / 35, rel=1e-5)
    assert feature_loss(mine, theirs, beta).dtype == torch.float32


def test_feature_loss__does_not_depend_on_the_magnitude_of_a_teacher_and_teaches_it_nothing() -> None:
    draws = torch.Generator().manual_seed(4)
    mine, theirs = torch.randn(2, 6, 8, generator=draws)
    theirs.requires_grad_()
    expected = feature_loss(mine, theirs, 2.0)
    assert feature_loss(mine, 1000 * theirs + 7, 2.0).item() == pytest.approx(expected.item(), rel=1e-3)
    assert not expected.requires_grad
    moments = whitened(theirs)
    assert torch.allclose(moments.mean(-1), torch.zeros(6), atol=1e-6)
    assert torch.allclose(moments.var(-1, unbiased=False), torch.ones(6), atol=1e-3)
