"""The backbones that there are, and the one that a configuration describes."""

from typing import TypeAlias

from heliostat.config.convnext import ConvNextConfig
from heliostat.config.network import BackboneConfig
from heliostat.models.convnext import ConvNext
from heliostat.models.vit import VisionTransformer

Backbone: TypeAlias = VisionTransformer | ConvNext


def new_backbone(config: BackboneConfig, grid: int) -> Backbone:
    """The backbone of a configuration, its weights not yet drawn.

    Args:
        config: of either.
        grid: patches along a side of the global crop.
    """
    return ConvNext(config, grid) if isinstance(config, ConvNextConfig) else VisionTransformer(config, grid)
