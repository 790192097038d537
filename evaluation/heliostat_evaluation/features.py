"""Frozen features of a labelled image set: any function from images to vectors, run over batches.

Legend: B images of a batch, N images of the set, D feature width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heliostat.errors import TooFewSamplesError

Backbone = Callable[[Tensor], Tensor]
"""Images (B, …) to features (B, D)."""


@dataclass(frozen=True, slots=True)
class Features:
    """Features of a labelled set, on the CPU, in the order in which the images came."""

    features_ND: Tensor
    """fp32."""
    labels_N: Tensor
    """int64."""
    ids: tuple[str, ...]
    """One per image: the dataset's id, or the position in the set."""


def extract_features(
    backbone: Backbone,
    images: Iterable[tuple[Tensor, Tensor | Sequence[int]]],
    *,
    ids: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
) -> Features:
    """Run a backbone over batches of (images, labels), without gradients.

    A module is set to evaluation mode and put back afterwards, each of its parts as it was.

    Args:
        backbone: A module or any function from images to features.
        images: Batches; they may differ in size.
        ids: Ids of the images in the same order; positions if not given.
        device: Where the backbone is.

    Raises:
        TooFewSamplesError: There is no image.
        ValueError: Not as many ids as images.
    """
    features: list[Tensor] = []
    labels: list[Tensor] = []
    with _evaluation_mode(backbone), torch.inference_mode():
        for batch_B, labels_B in images:
            features.append(backbone(batch_B.to(device)).float().cpu())
            labels.append(torch.as_tensor(labels_B, dtype=torch.int64).cpu())
    if not features:
        raise TooFewSamplesError(
            "the image set to evaluate is empty", "Give a labelled dataset with at least one image"
        )
    features_ND, labels_N = torch.cat(features).clone(), torch.cat(labels).clone()
    names = tuple(str(position) for position in range(len(labels_N))) if ids is None else tuple(ids)
    if not len(features_ND) == len(labels_N) == len(names):
        raise ValueError(f"{len(features_ND)} features, {len(labels_N)} labels and {len(names)} ids do not match")
    return Features(features_ND, labels_N, names)


@contextmanager
def _evaluation_mode(backbone: Backbone) -> Iterator[None]:
    modes = {part: part.training for part in backbone.modules()} if isinstance(backbone, nn.Module) else {}
    for part in modes:
        part.training = False
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
