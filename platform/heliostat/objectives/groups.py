"""Parameter groups: layer-wise learning-rate decay, weight-decay exemptions, the sub-module of a gradient's norm.

Rules of DINOv2's code (``utils/param_groups.py``): biases, norms and LayerScale are not decayed, tokens and position
embeddings are; layer 0 is everything before the blocks; heads have factor 1; the patch embedding gets an extra factor.
Blocks of a convolutional backbone are counted through its stages, and what halves the map belongs to the block after
it; its stem is layer 0, without an extra factor.
"""

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from heliostat.config.convnext import ConvNextConfig
from heliostat.config.network import BackboneConfig
from heliostat.config.training import TrainingConfig
from heliostat.objectives.schedules import StepValues


@dataclass(frozen=True, slots=True, order=True)
class GroupRule:
    """What the parameters of one group have in common."""

    sub_module: str
    lr_factor: float
    decays: bool
    is_prototypes: bool
    depth: float = 0.0
    """Of its layer as a share of the backbone's; 0 where all of the backbone begins to learn at once."""

    def lr(self, values: StepValues) -> float:
        """Learning rate of the group at a step; at 0, decay does not move it either."""
        is_frozen = self.is_prototypes and values.prototypes_frozen
        if self.sub_module == "backbone" and values.frozen_depth:
            is_frozen = self.depth <= values.frozen_depth
        return 0.0 if is_frozen else values.lr * self.lr_factor

    def weight_decay(self, values: StepValues) -> float:
        """Weight decay of the group at a step."""
        return values.weight_decay if self.decays else 0.0


_SCALES = re.compile(r"\.bias$|norm|gamma|downsample_layers\.(0\.1|[1-3]\.0)\.")
"""Biases, norms (those between a ConvNet's stages have no name of their own) and LayerScale."""
_BLOCK = re.compile(r"\.blocks\.(?:\d+\.)?(\d+)\.")  # with or without chunks
_OF_STAGE = re.compile(r"\.(?:stages\.(\d+)\.(\d+)|downsample_layers\.(\d+))\.")


def rule_of(name: str, model: BackboneConfig, training: TrainingConfig) -> GroupRule:
    """The rule of a parameter, from its name in a ``Network``."""
    depth = model.depth
    sub_module = name.split(".", 1)[0]
    factor, place = 1.0, 0.0
    if sub_module == "backbone":
        layer = _layer_of(name, model)
        factor = training.layer_decay ** (depth + 1 - layer)
        place = layer / (depth + 1) if training.unfreezes_by_block else 0.0
        if "patch_embed" in name:
            factor *= training.patch_embed_lr
    return GroupRule(
        sub_module=sub_module,
        lr_factor=factor,
        decays=not _SCALES.search(name),
        is_prototypes="last_layer" in name,
        depth=place,
    )


def _layer_of(name: str, model: BackboneConfig) -> int:
    if isinstance(model, ConvNextConfig):
        return _layer_through_stages(name, model)
    block = _BLOCK.search(name)
    if block:
        return int(block.group(1)) + 1
    early = ("cls_token", "pos_embed", "mask_token", "register_tokens", "patch_embed")
    return 0 if any(part in name for part in early) else model.depth + 1


def _layer_through_stages(name: str, model: ConvNextConfig) -> int:
    found = _OF_STAGE.search(name)
    if found is None:
        return model.depth + 1
    stage, block, halving = found.groups()
    if halving == "0":
        return 0
    return sum(model.depths[: int(stage or halving)]) + int(block or 0) + 1


def parameter_groups(network: nn.Module, model: BackboneConfig, training: TrainingConfig) -> list[dict[str, Any]]:
    """Optimizer groups, one per rule in a fixed order; each carries its rule under ``rule``."""
    members: dict[GroupRule, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        members.setdefault(rule_of(name, model, training), []).append(parameter)
    return [{"params": members[rule], "rule": rule} for rule in sorted(members)]
