"""The backbone and the head against the published code; ``test_positions.py`` has its position embedding."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.closed_form import det, det_parameters
from support.golden import GOLDEN, close

from heliostat.config.model import ModelConfig
from heliostat.config.objective import HeadSizes
from heliostat.models.heads import ProjectionHead
from heliostat.models.vit import VisionTransformer

DIM, GRID = 64, 5
VARIANTS: dict[str, dict[str, Any]] = {"plain": {}, "reg4": {"registers": 4}, "swiglu": {"ffn": "swiglu"}}

# Outputs are of the size of 1, rounded in fp32 on both sides: the published numbers differ by up to 2e-6 from these
# networks computed in fp64, which shows in values near zero. Sums are over 50 tokens and more.
TOKEN_ROUNDING = 5e-6
SUM_ROUNDING = 4e-5


def model_of(variant: str) -> VisionTransformer:
    values = {"arch": "custom", "embed_dim": DIM, "depth": 2, "heads": 2} | VARIANTS[variant]
    model = VisionTransformer(ModelConfig.model_validate(values), GRID)
    model.load_state_dict(det_parameters(GOLDEN["vit"][variant]["keys"]))
    return model


@pytest.mark.parametrize("size", ["70x70", "42x56", "98x98"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_vit__equals_the_published_model(variant: str, size: str) -> None:
    expected = GOLDEN["vit"][variant][size]
    height, width = map(int, size.split("x"))
    (tokens,) = model_of(variant)([det((2, 3, height, width), 5)])
    close(tokens.cls_BD, expected["cls"], TOKEN_ROUNDING)
    close(tokens.patches_BND[0, 0], expected["patch00"], TOKEN_ROUNDING)
    close(tokens.patches_BND.sum((0, 1)), expected["patch_sum"], SUM_ROUNDING)
    if expected["reg_sum"] is None:
        assert tokens.registers_BRD.shape == (2, 0, DIM)
    else:
        close(tokens.registers_BRD.sum((0, 1)), expected["reg_sum"], SUM_ROUNDING)


@pytest.mark.parametrize("variant", VARIANTS)
def test_vit__masked_equals_the_published_model(variant: str) -> None:
    expected = GOLDEN["vit"][variant]["70x70_masked"]
    mask = torch.zeros(2 * GRID**2, dtype=torch.bool)
    mask[expected["mask_idx"]] = True
    (tokens,) = model_of(variant)([det((2, 3, 70, 70), 5)], [mask.view(2, -1)])
    close(tokens.cls_BD, expected["cls"], TOKEN_ROUNDING)
    close(tokens.patches_BND.sum((0, 1)), expected["patch_sum"], SUM_ROUNDING)


@pytest.mark.parametrize("variant", VARIANTS)
def test_vit__intermediate_layers_equal_those_of_the_published_model(variant: str) -> None:
    expected = GOLDEN["vit"][variant]
    images = det((2, 3, 70, 70), 5)
    layers: Sequence[Any] = model_of(variant).get_intermediate_layers(images, 2, reshape=True, return_class_token=True)
    for (patches, cls), values in zip(layers, expected["intermediate_cls"], strict=True):
        close(cls, values, TOKEN_ROUNDING)
        assert list(patches.shape) == expected["intermediate_map_shape"]


def test_projection_head__equals_the_published_one() -> None:
    head = ProjectionHead(64, HeadSizes(hidden=32, bottleneck=16, prototypes=24))
    head.load_state_dict(det_parameters(GOLDEN["head"]["keys"]))
    close(head(det((5, 64), 3)), GOLDEN["head"]["out"])
