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
_CHANCE = 0.003


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
        joined: Pairs that were joined.
        true: Pairs that show the same image.
        both: Pairs that were joined and show the same image.
    """

    joined: int
    true: int
    both: int

    @property
    def precision(self) -> float:
        """Of the pairs that were joined, the share that show the same image."""
        return self.both / self.joined if self.joined else 1.0

    @property
    def recall(self) -> float:
        """Of the pairs that show the same image, the share that were joined."""
        return self.both / self.true if self.true else 1.0

    @property
    def wrong(self) -> int:
        """Pairs that were joined wrongly or missed."""
        return self.joined + self.true - 2 * self.both


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
    both = np.unique(np.stack([roots, planted.originals_N]), axis=1, return_counts=True)[1]
    return Judgement(
        joined=_pairs(np.unique(roots, return_counts=True)[1]),
        true=_pairs(np.unique(planted.originals_N, return_counts=True)[1]),
        both=_pairs(both),
    )


def calibrate(kinds: Sequence[Planted], step: float = 0.005) -> float:
    """A threshold that does for every kind of copy nearly as well as a threshold of its own would.

    For each threshold, what it costs: by how many pairs it is wrong beyond the best threshold of a kind, for the kind
    that loses most. Each kind is judged alone: together, a copy that is not found would hide behind another one that
    is. Of those that cost no more than the cheapest and 0.3 % of the images, which is chance, the largest: a copy too
    many costs little, an image of its own that is taken for a copy is lost, and images that the embedding was trained
    on are told apart better than others will be.

    Args:
        kinds: The same images, each time with a copy of another kind.
        step: Between thresholds that are tried.
    """
    candidates = np.arange(0.2, 1.0, step)
    wrong_TK = np.array([[judge(each, float(threshold)).wrong for each in kinds] for threshold in candidates])
    costs_T = (wrong_TK - wrong_TK.min(axis=0)).max(axis=1)
    allowed_T = costs_T <= costs_T.min() + _CHANCE * len(np.unique(kinds[0].originals_N))
    return float(candidates[allowed_T].max())


def _pairs(sizes: Ints) -> int:
    return int((sizes * (sizes - 1) // 2).sum())
