from math import exp

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from heliostat.errors import NonFiniteFeaturesError, TooFewSamplesError
from heliostat_evaluation import knn
from heliostat_evaluation.knn import Accuracy, knn_accuracy, knn_scores, nearest, wilson_interval

EAST, NORTH, NORTH_EAST = [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]


def blobs(samples: int, seed: int, classes: int = 4, width: int = 8) -> tuple[Tensor, Tensor]:
    """Overlapping clusters, one per class, around the same centres for every seed."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (samples,), generator=random)
    return centres[labels] + 1.2 * torch.randn(samples, width, generator=random), labels


def test_nearest__sorts_by_cosine_whatever_the_lengths() -> None:
    similarities, rows = nearest(torch.tensor([NORTH, NORTH_EAST, EAST]), torch.tensor([[9.0, 0.0]]), k=3)
    assert rows.tolist() == [[2, 1, 0]]
    torch.testing.assert_close(similarities, torch.tensor([[1.0, 0.5**0.5, 0.0]]))


def test_knn_scores__by_hand() -> None:
    bank = torch.tensor([EAST, NORTH, NORTH_EAST, [-1.0, 0.0]])
    scores = knn_scores(bank, torch.tensor([0, 1, 1, 2]), torch.tensor([EAST]), k=3, temperature=0.5)
    votes = [exp(1 / 0.5), exp(0 / 0.5) + exp(0.5**0.5 / 0.5)]
    expected = torch.tensor([[votes[0] / sum(votes), votes[1] / sum(votes), 0.0]])
    torch.testing.assert_close(scores, expected)


def test_knn_scores__weights_can_outvote_numbers() -> None:
    bank, labels = torch.tensor([EAST, NORTH_EAST, NORTH_EAST]), torch.tensor([0, 1, 1])
    query = torch.tensor([EAST])
    assert knn_scores(bank, labels, query, k=3).argmax() == 0
    assert knn_scores(bank, labels, query, k=3, temperature=10.0).argmax() == 1


def test_knn_scores__small_temperatures_do_not_overflow() -> None:
    bank, labels = blobs(50, seed=1)
    assert torch.isfinite(knn_scores(bank, labels, bank, k=10, temperature=1e-3)).all()


def published_weights(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(cosine / T) of the published protocol, from Euclidean distances of unit vectors."""
    return np.exp((1 - distances**2 / 2) / 0.07)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), k=st.integers(1, 60))
def test_knn_scores__agree_with_scikit_learn(seed: int, k: int) -> None:
    (bank, labels), (queries, _) = blobs(60, seed), blobs(20, seed + 1)
    unit = torch.nn.functional.normalize
    judge = KNeighborsClassifier(n_neighbors=k, weights=published_weights, algorithm="brute")
    judge.fit(unit(bank.double()).numpy(), labels.numpy())
    expected = torch.zeros(20, 4)
    shares = judge.predict_proba(unit(queries.double()).numpy())
    expected[:, torch.from_numpy(judge.classes_)] = torch.from_numpy(shares).float()
    torch.testing.assert_close(knn_scores(bank, labels, queries, k, classes=4), expected, atol=2e-5, rtol=1e-4)


def test_knn_accuracy__agrees_with_scikit_learn_for_every_k() -> None:
    (bank, labels), (queries, truth) = blobs(400, seed=1), blobs(300, seed=2)
    unit = torch.nn.functional.normalize
    accuracies = knn_accuracy(bank, labels, queries, truth)
    assert list(accuracies) == [10, 20, 100, 200]
    for k, accuracy in accuracies.items():
        judge = KNeighborsClassifier(n_neighbors=k, weights=published_weights).fit(unit(bank), labels)
        assert accuracy.top1 == pytest.approx(judge.score(unit(queries), truth), abs=1 / 300), k
        assert accuracy.top1 > 0.5


def test_knn_accuracy__chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (bank, labels), (queries, truth) = blobs(64, seed=1), blobs(50, seed=2)
    whole = knn_accuracy(bank, labels, queries, truth, ks=[5, 64])
    monkeypatch.setattr(knn, "_CHUNK_SIMILARITIES", 64 * 7)
    assert knn_accuracy(bank, labels, queries, truth, ks=[5, 64]) == whole


def test_knn_accuracy__a_label_that_the_bank_lacks_is_wrong() -> None:
    bank, query = torch.tensor([EAST, NORTH]), torch.tensor([EAST, EAST])
    accuracies = knn_accuracy(bank, torch.tensor([0, 1]), query, torch.tensor([0, 7]), ks=[1])
    assert accuracies == {1: Accuracy(correct=1, total=2)}


def test_knn_accuracy__bank_smaller_than_k_names_both() -> None:
    bank, labels = blobs(50, seed=1)
    with pytest.raises(TooFewSamplesError, match=r"HS-EVAL-001: .*k = 200 .*has 50\. .*knn.neighbours .*at most 50"):
        knn_accuracy(bank, labels, bank, labels)


def test_knn_accuracy__nothing_to_classify_is_an_error() -> None:
    bank, labels = blobs(50, seed=1)
    with pytest.raises(TooFewSamplesError, match="no sample"):
        knn_accuracy(bank, labels, bank[:0], labels[:0], ks=[1])


def test_nearest__diverged_features_are_named() -> None:
    bank, _ = blobs(50, seed=1)
    broken = bank.clone()
    broken[3, 1] = float("nan")
    with pytest.raises(NonFiniteFeaturesError, match="1 of 50 feature vectors of the queries"):
        nearest(bank, broken, k=1)


def test_wilson_interval__published_example() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@given(total=st.integers(1, 10_000), data=st.data())
def test_wilson_interval__holds_the_rate_and_stays_inside_0_and_1(total: int, data: st.DataObject) -> None:
    accuracy = Accuracy(data.draw(st.integers(0, total)), total)
    low, high = accuracy.interval
    assert 0 <= low <= accuracy.top1 + 1e-12 and accuracy.top1 - 1e-12 <= high <= 1
    assert high > low
