"""From which similarity on two images are the same one: found on copies that were made, judged on other images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from heliostat.curation.components import components
from heliostat.curation.copies import Copy
from heliostat.curation.kmeans import Floats, Ints
from heliostat.data.decode import RgbImage
from heliostat.data.draws import Draws

Embed = Callable[[Sequence[RgbImage]], Floats]
"""Unit vectors (N, D)."""


@dataclass(frozen=True, slots=True)
class Planted:
    """Vectors of images and of their copies.

    Attributes:
        vectors_ND: All of them.
        originals_N: Which image each shows.
    """

    vectors_ND: Floats
    originals_N: Ints


@dataclass(frozen=True, slots=True)
class Judgement:
    """How well pairs of the same image are told from others.

    Attributes:
        precision: Of the pairs that were joined, the share that show the same image.
        recall: Of the pairs that show the same image, the share that were joined.
    """

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Their harmonic mean."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def plant(images: Sequence[RgbImage], copies: Mapping[str, Copy], embed: Embed, seed: int) -> Planted:
    """Embed images, and of each a copy of every kind."""
    made = [
        make(image, Draws(seed, f"plant.{name}", number))
        for name, make in copies.items()
        for number, image in enumerate(images)
    ]
    owners = np.tile(np.arange(len(images)), 1 + len(copies))
    return Planted(embed([*images, *made]), owners)


def judge(planted: Planted, threshold: float) -> Judgement:
    """Pairs within components of what is at least as similar as a threshold, against pairs of the same image."""
    similarity_NN = planted.vectors_ND @ planted.vectors_ND.T
    edges = np.argwhere(np.triu(similarity_NN >= threshold, 1))
    roots = components(len(planted.vectors_ND), [edges])
    joined = _pairs(np.unique(roots, return_counts=True)[1])
    true = _pairs(np.unique(planted.originals_N, return_counts=True)[1])
    both = _pairs(np.unique(np.stack([roots, planted.originals_N]), axis=1, return_counts=True)[1])
    return Judgement(both / joined if joined else 1.0, both / true if true else 1.0)


def calibrate(planted: Planted, step: float = 0.005) -> float:
    """The largest of the thresholds with the best harmonic mean of precision and recall.

    The largest: a copy too many costs little, an image of its own that is taken for a copy is lost. And images that the
    embedding was trained on are told apart better than others will be.
    """
    candidates = np.arange(0.2, 1.0, step)
    scores = np.array([judge(planted, float(each)).f1 for each in candidates])
    return float(candidates[scores >= scores.max() - 1e-9].max())


def _pairs(sizes: Ints) -> int:
    return int((sizes * (sizes - 1) // 2).sum())
