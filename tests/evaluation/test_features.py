import pytest
import torch
from torch import Tensor, nn

from heliostat.errors import TooFewSamplesError
from heliostat_evaluation.features import extract_features


def batches() -> list[tuple[Tensor, Tensor]]:
    images = torch.arange(5 * 2.0).reshape(5, 2)
    return [(images[:3], torch.tensor([0, 1, 2])), (images[3:], torch.tensor([1, 0]))]


def test_extract_features__keeps_the_order_over_uneven_batches() -> None:
    features = extract_features(lambda images: images * 2, batches(), ids="abcde")
    assert features.features_ND.tolist() == (torch.arange(10.0).reshape(5, 2) * 2).tolist()
    assert features.labels_N.tolist() == [0, 1, 2, 1, 0]
    assert features.ids == ("a", "b", "c", "d", "e")


def test_extract_features__labels_may_be_a_list_and_ids_default_to_positions() -> None:
    features = extract_features(lambda images: images.half(), [(torch.ones(2, 3), [4, 5])])
    assert features.labels_N.tolist() == [4, 5] and features.ids == ("0", "1")
    assert features.features_ND.dtype == torch.float32


def test_extract_features__evaluates_without_gradients_and_restores_every_mode() -> None:
    frozen = nn.Dropout(0.5).eval()
    backbone = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9), frozen).train()
    backbone[2].eval()
    first, second = (extract_features(backbone, batches()).features_ND for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not first.requires_grad
    assert [part.training for part in backbone.modules()] == [True, True, True, False]


def test_extract_features__restores_modes_after_a_failure() -> None:
    backbone = nn.Linear(3, 2).train()
    with pytest.raises(RuntimeError):
        extract_features(backbone, batches())
    assert backbone.training


def test_extract_features__result_can_be_trained_on() -> None:
    features = extract_features(nn.Linear(2, 2), batches()).features_ND
    nn.Linear(2, 1)(features).sum().backward()


def test_extract_features__nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(TooFewSamplesError, match="empty"):
        extract_features(lambda images: images, [])


def test_extract_features__ids_must_match() -> None:
    with pytest.raises(ValueError, match="5 features, 5 labels and 2 ids"):
        extract_features(lambda images: images, batches(), ids=["a", "b"])
