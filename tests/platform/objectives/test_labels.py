"""Losses of labels against their formulas, crop by crop."""

import math

import pytest
import torch

from heliostat.data.shard_index import NO_LABEL
from heliostat.objectives.labels import label_loss, token_loss

CLASSES = 5


def softmax(logits: list[float]) -> list[float]:
    whole = sum(math.exp(each) for each in logits)
    return [math.exp(each) / whole for each in logits]


def entropy(logits: list[float], label: int, smoothing: float) -> float:
    target = [smoothing / CLASSES + (1 - smoothing) * (index == label) for index in range(CLASSES)]
    return -sum(p * math.log(q) for p, q in zip(target, softmax(logits), strict=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_loss__is_the_mean_over_labelled_crops(smoothing: float) -> None:
    logits = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(1))
    labels = [2, NO_LABEL, 0, NO_LABEL]
    expected = (entropy(logits[0].tolist(), 2, smoothing) + entropy(logits[2].tolist(), 0, smoothing)) / 2
    assert label_loss(logits, torch.tensor(labels), smoothing).item() == pytest.approx(expected, rel=1e-5)


def test_label_loss__without_any_label_is_0_and_pushes_nobody() -> None:
    logits = torch.randn(3, CLASSES, generator=torch.Generator().manual_seed(2), requires_grad=True)
    loss = label_loss(logits, torch.full((3,), NO_LABEL), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_token_loss__hard_is_cross_entropy_with_what_the_teacher_finds_most_likely() -> None:
    logits, teacher = torch.randn(2, 4, CLASSES, generator=torch.Generator().manual_seed(3))
    rows = zip(logits.tolist(), teacher.tolist(), strict=True)
    expected = sum(entropy(mine, theirs.index(max(theirs)), 0.1) for mine, theirs in rows) / 4
    assert token_loss(logits, teacher, "hard", 3.0, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_token_loss__soft_is_the_divergence_at_a_temperature_times_its_square() -> None:
    logits, teacher = torch.randn(2, 4, CLASSES, generator=torch.Generator().manual_seed(4))
    teacher.requires_grad_()
    total, temperature = 0.0, 3.0
    for mine, theirs in zip(logits.tolist(), teacher.tolist(), strict=True):
        q, p = (softmax([each / temperature for each in row]) for row in (mine, theirs))
        total += sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)) * temperature**2
    found = token_loss(logits, teacher, "soft", temperature, 0.0)
    assert found.item() == pytest.approx(total / 4, rel=1e-5)
    assert not found.requires_grad
    assert token_loss(teacher, teacher, "soft", temperature, 0.0).item() == pytest.approx(0, abs=1e-6)
