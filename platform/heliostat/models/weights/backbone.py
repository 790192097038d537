"""A backbone as data: its architecture and its tensors under the released names; and the model made of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from heliostat.config.network import BackboneConfig
from heliostat.errors import IncompatibleCheckpointError, UnreadableWeightsError
from heliostat.models.backbones import Backbone, new_backbone

_LISTED = 10
"""Names of tensors that a message spells out."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Weights:
    """What a source of weights holds."""

    config: BackboneConfig
    grid: int
    """Patches along a side for which the position embedding is stored."""
    tensors: dict[str, Tensor]
    """By the names of the released files."""
    origin: str
    """Where they are from, for messages."""
    other_normalisation: tuple[str, ...] = ()
    """In what its source says that colours are normalised otherwise than here."""


def build(weights: Weights) -> Backbone:
    """The model with these weights, in fp32 and in evaluation mode.

    Raises:
        IncompatibleCheckpointError: tensors are missing, too many or of another shape than the architecture needs.
        UnreadableWeightsError: tensors hold integers, NaN or infinity.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}
    check_shapes(_possible_shapes(weights), shapes, weights.origin)
    check_floating(weights)
    model = new_backbone(weights.config, weights.grid)
    model.load_state_dict(weights.tensors)
    model = model.float().eval()
    # After the cast: a number that is too large for fp32 has become infinite.
    broken = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise UnreadableWeightsError(
            f"{weights.origin} holds NaN or infinity in {_listed(broken)}",
            "Use weights from before the training diverged, or copy the file again",
        )
    return model


def check_floating(weights: Weights) -> None:
    """Weights are floating-point numbers: integers are quantised weights without their scale, or no weights at all.

    Raises:
        UnreadableWeightsError: some are not; says which.
    """
    others = [
        f"{name} ({str(tensor.dtype).removeprefix('torch.')})"
        for name, tensor in weights.tensors.items()
        if not tensor.is_floating_point()
    ]
    if others:
        raise UnreadableWeightsError(
            f"{weights.origin} holds tensors that are not floating point: {_listed(others)}",
            "Use weights in fp32, fp16 or bf16",
        )


def _possible_shapes(weights: Weights) -> dict[str, Shape]:
    """As ``expected_shapes``, for sizes that a file merely claims."""
    try:
        if weights.config.depth <= len(weights.tensors):  # each block has tensors: more of them would be missing
            return expected_shapes(weights.config, weights.grid)
    except (RuntimeError, OverflowError, TypeError):  # sizes that no tensor can have
        pass
    raise IncompatibleCheckpointError(
        f"{weights.origin} claims to be a model of sizes that its {len(weights.tensors)} tensors cannot have",
        "Use weights of a DINOv2 backbone, whole and of one model",
    )


def expected_shapes(config: BackboneConfig, grid: int) -> dict[str, Shape]:
    """Names and shapes of a model's tensors; nothing is allocated, so a hostile file cannot ask for memory."""
    with torch.device("meta"):
        model = new_backbone(config, grid)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_shapes(expected: Mapping[str, Shape], found: Mapping[str, Shape], origin: str) -> None:
    """Hold what a source has against what the model needs.

    Raises:
        IncompatibleCheckpointError: they differ; one line lists what is missing, unexpected and mis-shaped.
    """
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    reshaped = [
        f"{name} {found[name]} instead of {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name]
    ]
    groups = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    differences = "; ".join(f"{len(names)} {what}: {_listed(names)}" for what, names in groups.items() if names)
    if differences:
        raise IncompatibleCheckpointError(f"{origin} is not a DINOv2 backbone: {differences}", _next_step(missing))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _next_step(missing: list[str]) -> str:
    if any(name.endswith(".gamma") for name in missing):
        return "Use weights with LayerScale: every branch of a DINOv2 block has one, these have none"
    return "Use weights of a DINOv2 backbone, whole and of one model"
