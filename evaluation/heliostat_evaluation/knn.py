"""Weighted k-nearest-neighbour classification of frozen features, the arithmetic of the published protocol.

Features are L2-normalised; each of the k bank features with the highest cosine similarity votes for its label with the
weight exp(similarity / T), T = 0.07 (DINOv2 paper, section 7.1; after Wu et al. 2018, arXiv:1805.01978).

Legend: N bank samples, Q queries, D feature width, C classes, K neighbours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor
from torch.nn.functional import normalize

from heliostat.errors import NonFiniteFeaturesError, TooFewSamplesError

PUBLISHED_KS = (10, 20, 100, 200)
PUBLISHED_TEMPERATURE = 0.07

_CHUNK_SIMILARITIES = 2**25
"""Similarities held at once: 128 MiB in fp32, whatever the sizes of bank and query set."""

_Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Right answers out of all."""

    correct: int
    total: int

    @property
    def top1(self) -> float:
        """Fraction of right answers."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of ``top1``; see `wilson_interval`."""
        return wilson_interval(self.correct, self.total)


def wilson_interval(correct: int, total: int, z: float = _Z_95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927); unlike the textbook one it is right near 0 and 1 too."""
    rate = correct / total
    shrink = 1 + z * z / total
    centre = (rate + z * z / (2 * total)) / shrink
    half = z / shrink * sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def nearest(bank_ND: Tensor, queries_QD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities and bank rows of the k nearest bank features of each query, nearest first.

    Shape:
        Two tensors (Q, K): fp32 similarities and int64 rows.

    Raises:
        TooFewSamplesError: The bank holds fewer than k samples.
        NonFiniteFeaturesError: A feature is NaN or infinite.
    """
    _check(bank_ND, queries_QD, k)
    bank_DN = normalize(bank_ND.float(), dim=1).T
    found = [(chunk_QD @ bank_DN).topk(k, dim=1) for chunk_QD in _chunks(queries_QD, len(bank_ND))]
    return torch.cat([top.values for top in found]), torch.cat([top.indices for top in found])


def knn_scores(
    bank_ND: Tensor,
    labels_N: Tensor,
    queries_QD: Tensor,
    k: int,
    *,
    classes: int | None = None,
    temperature: float = PUBLISHED_TEMPERATURE,
) -> Tensor:
    """Share of each class in the weighted votes of the k nearest bank samples.

    Each query's votes are divided by their sum. That cannot change the order of its classes, and it keeps small
    temperatures from overflowing: exp(similarity / T) itself would at T = 0.01.

    Args:
        bank_ND: Features that vote, any float type.
        labels_N: Their classes, 0 … C-1.
        queries_QD: Features to classify; they must not be in the bank, or each would find itself.
        k: Neighbours that vote.
        classes: C; one more than the highest label of the bank if not said.
        temperature: T; the lower, the more the nearest neighbours count.

    Returns:
        Scores (Q, C), fp32; each row sums to 1.

    Raises:
        TooFewSamplesError: The bank holds fewer than k samples.
        NonFiniteFeaturesError: A feature is NaN or infinite.
    """
    similarities_QK, rows_QK = nearest(bank_ND, queries_QD, k)
    width = int(labels_N.max()) + 1 if classes is None else classes
    return _votes(similarities_QK, labels_N.to(rows_QK.device)[rows_QK], width, temperature)


def knn_accuracy(
    bank_ND: Tensor,
    bank_labels_N: Tensor,
    queries_QD: Tensor,
    query_labels_Q: Tensor,
    *,
    ks: Sequence[int] = PUBLISHED_KS,
    temperature: float = PUBLISHED_TEMPERATURE,
) -> dict[int, Accuracy]:
    """Top-1 accuracy for each k; the neighbours are searched once, for the largest.

    Where two classes have exactly the same score, the one with the lower number is chosen.

    Raises:
        TooFewSamplesError: The bank holds fewer samples than the largest k, or there is no query.
        NonFiniteFeaturesError: A feature is NaN or infinite.
    """
    if len(queries_QD) == 0:
        raise TooFewSamplesError("there is no sample to classify", "Give a labelled dataset with at least one image")
    similarities_QK, rows_QK = nearest(bank_ND, queries_QD, max(ks))
    voters_QK = bank_labels_N.to(rows_QK.device)[rows_QK]
    truth_Q = query_labels_Q.to(rows_QK.device)
    classes = int(bank_labels_N.max()) + 1
    accuracies = {}
    for k in ks:
        scores_QC = _votes(similarities_QK[:, :k], voters_QK[:, :k], classes, temperature)
        accuracies[k] = Accuracy(int((scores_QC.argmax(dim=1) == truth_Q).sum()), len(truth_Q))
    return accuracies


def _votes(similarities_QK: Tensor, labels_QK: Tensor, classes: int, temperature: float) -> Tensor:
    weights_QK = torch.softmax(similarities_QK / temperature, dim=1)
    scores_QC = weights_QK.new_zeros(len(weights_QK), classes)
    return scores_QC.scatter_add_(1, labels_QK, weights_QK)


def _chunks(queries_QD: Tensor, bank_size: int) -> Iterator[Tensor]:
    size = max(1, _CHUNK_SIMILARITIES // bank_size)
    for start in range(0, len(queries_QD), size):
        yield normalize(queries_QD[start : start + size].float(), dim=1)


def _check(bank_ND: Tensor, queries_QD: Tensor, k: int) -> None:
    if k > len(bank_ND):
        raise TooFewSamplesError(
            f"k-NN with k = {k} needs at least {k} samples in the bank, which has {len(bank_ND)}",
            f"Use a larger bank, or set knn.neighbours to values of at most {len(bank_ND)}",
        )
    for name, features in (("bank", bank_ND), ("queries", queries_QD)):
        broken = int((~torch.isfinite(features)).any(dim=1).sum())
        if broken:
            raise NonFiniteFeaturesError(
                f"{broken} of {len(features)} feature vectors of the {name} hold NaN or infinity",
                "Evaluate an earlier checkpoint: this model's training has diverged",
            )
