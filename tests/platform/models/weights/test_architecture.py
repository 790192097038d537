import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.backbones import small_backbone

from heliostat.config.model import ARCHS, ModelConfig
from heliostat.errors import IncompatibleCheckpointError
from heliostat.models.weights.architecture import infer
from heliostat.models.weights.backbone import expected_shapes

SIZES = ("arch", "embed_dim", "depth", "heads", "ffn", "ffn_hidden", "patch_px", "channels", "registers")


def tensors_of(config: ModelConfig, grid: int) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in expected_shapes(config, grid).items()}


@given(
    heads=st.integers(1, 5),
    depth=st.integers(1, 12),
    ffn=st.sampled_from(["mlp", "swiglu"]),
    ratio=st.sampled_from([4.0, 4.0, 8 / 3, 2.0, 3.1, 0.77]),
    patch=st.sampled_from([4, 14, 16]),
    channels=st.integers(1, 9),
    registers=st.integers(0, 5),
    grid=st.integers(1, 40),
)
def test_infer__finds_every_size_that_shapes_tell(
    heads: int, depth: int, ffn: str, ratio: float, patch: int, channels: int, registers: int, grid: int
) -> None:
    config = ModelConfig.model_validate(
        {
            "arch": "custom",
            "embed_dim": 64 * heads,
            "depth": depth,
            "heads": heads,
            "ffn": ffn,
            "ffn_ratio": ratio,
            "patch_px": patch,
            "channels": channels,
            "registers": registers,
        }
    )
    found, found_grid = infer(tensors_of(config, grid), "f")
    assert found_grid == grid
    assert {key: getattr(found, key) for key in SIZES} == {key: getattr(config, key) for key in SIZES}
    assert expected_shapes(found, grid) == expected_shapes(config, grid)


@pytest.mark.parametrize("arch", ARCHS)
def test_infer__knows_the_released_models(arch: str) -> None:
    config = ModelConfig.model_validate({"arch": arch})
    assert infer(tensors_of(config, 37), "f") == (config, 37)


def test_infer__a_width_that_64_does_not_divide_needs_the_number_of_heads() -> None:
    tensors = small_backbone(embed_dim=32, heads=4).state_dict()
    with pytest.raises(IncompatibleCheckpointError, match=r"f is 32 wide.*number of heads"):
        infer(tensors, "f")
    assert infer(tensors, "f", heads=4)[0].heads == 4
    with pytest.raises(IncompatibleCheckpointError, match=r"embed_dim 32 is not a multiple of model\.heads 5"):
        infer(tensors, "f", heads=5)


def test_infer__an_impossible_shape_is_named() -> None:
    tensors = small_backbone().state_dict()
    with pytest.raises(IncompatibleCheckpointError, match="has 11 positions"):
        infer({**tensors, "pos_embed": torch.zeros(1, 12, 64)}, "f")
    with pytest.raises(IncompatibleCheckpointError, match=r"pos_embed has shape \(3,\)"):
        infer({**tensors, "pos_embed": torch.zeros(3)}, "f")
    with pytest.raises(IncompatibleCheckpointError, match=r"patches of 14 x 7 pixels"):
        infer({**tensors, "patch_embed.proj.weight": torch.zeros(64, 3, 14, 7)}, "f")
    del tensors["blocks.0.mlp.fc1.weight"]
    with pytest.raises(IncompatibleCheckpointError, match=r"blocks\.0\.mlp\.fc1\.weight is missing"):
        infer(tensors, "f")
