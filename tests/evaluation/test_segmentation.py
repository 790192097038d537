"""The linear segmentation head: a known answer, and scores against scikit-learn's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score

from heliostat.errors import TooFewSamplesError
from heliostat_evaluation.segmentation import IGNORED, LinearHead, Segmentation, segment, train_head

CLASSES = 4


def solvable(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of 4 x 4 pixels whose class is a linear function of their features; some pixels belong to none."""
    draws = torch.Generator().manual_seed(seed)
    of_patch = torch.randint(CLASSES, (images, 6, 5), generator=draws)
    directions = torch.randn(CLASSES, 16, generator=torch.Generator().manual_seed(0))
    features = directions[of_patch] + 0.1 * torch.randn(images, 6, 5, 16, generator=draws)
    masks = of_patch.repeat_interleave(4, 1).repeat_interleave(4, 2)
    masks[torch.rand(masks.shape, generator=draws) < 0.1] = IGNORED
    return features.permute(0, 3, 1, 2).contiguous(), masks


def test_train_head__finds_classes_that_are_linear_in_the_features() -> None:
    head = train_head(*solvable(48, 1), CLASSES, steps=400, seed=3)
    trained = segment(head, *solvable(16, 2))
    untrained = segment(train_head(*solvable(48, 1), CLASSES, steps=0, seed=3), *solvable(16, 2))
    assert trained.mean_iou > 0.8 > untrained.mean_iou + 0.2  # the border of a patch is blurred by the resize


def test_train_head__is_a_function_of_its_seed() -> None:
    first, again, other = (train_head(*solvable(8, 1), CLASSES, steps=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.layer.weight, again.layer.weight)
    assert not torch.equal(first.layer.weight, other.layer.weight)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_segmentation__scores_as_scikit_learn_does(pairs: list[tuple[int, int]]) -> None:
    true, found = (np.array(each) for each in zip(*pairs, strict=True))
    confusion = torch.bincount(torch.tensor(true * 5 + found), minlength=25).view(5, 5)
    there = sorted(set(true) | set(found))
    expected = jaccard_score(true, found, labels=there, average=None, zero_division=0)
    result = Segmentation(confusion)
    assert result.iou_K[there].numpy() == pytest.approx(expected)
    assert result.mean_iou == pytest.approx(float(expected.mean()))


def test_segment__refuses_what_it_cannot_score() -> None:
    features, masks = solvable(2, 0)
    head = LinearHead(16, CLASSES)
    with pytest.raises(ValueError, match="holds 7, which is none of the 4 classes"):
        segment(head, features, masks.masked_fill(masks == 0, 7))
    with pytest.raises(ValueError, match="2 images and 1 masks"):
        segment(head, features, masks[:1])
    with pytest.raises(TooFewSamplesError):
        train_head(features[:0], masks[:0], CLASSES, steps=1, seed=0)


def test_train_head__survives_images_of_which_no_pixel_counts() -> None:
    features, masks = solvable(4, 1)
    head = train_head(features, torch.full_like(masks, IGNORED), CLASSES, steps=2, seed=0)
    assert all(parameter.isfinite().all() for parameter in head.parameters())
