from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.backbones import PX, ROTARY, VARIANTS, images, sequence, small_backbone, tokens_of, transformer
from support.vision_libraries import timm

from heliostat.config.model import ARCHS, ModelConfig
from heliostat.errors import UnsupportedExportError
from heliostat.models.weights.backbone import expected_shapes
from heliostat.models.weights.export import export_backbone
from heliostat.models.weights.load import load_backbone
from heliostat.models.weights.timm import timm_config, to_timm


def new_model(registers: int = 0, swiglu: bool = False, **arguments: Any) -> Any:
    """A small model made through timm's own classes, as its DINOv2 models are."""
    swiglu_arguments = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU, "mlp_ratio": 2.75 * 2}
    return timm.models.vision_transformer.VisionTransformer(
        img_size=PX,
        patch_size=14,
        embed_dim=64,
        depth=2,
        num_heads=1,
        num_classes=0,
        init_values=1e-5,
        reg_tokens=registers,
        no_embed_class=registers > 0,
        dynamic_img_size=True,
        **(swiglu_arguments if swiglu else {}),
        **arguments,
    ).eval()


@torch.no_grad()
def their_sequence(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    tokens: torch.Tensor = model.forward_features(pixels)
    return tokens


@pytest.mark.parametrize("variant", VARIANTS)
def test_to_timm__a_model_of_timm_loads_it_strictly_and_computes_the_same(variant: str, tmp_path: Path) -> None:
    ours = small_backbone(**VARIANTS[variant])
    export_backbone(ours, "timm", tmp_path)
    theirs = new_model(ours.config.registers, ours.config.ffn == "swiglu")
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    pixels = images(PX)
    torch.testing.assert_close(their_sequence(theirs, pixels), sequence(tokens_of(ours, pixels)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_to_timm__the_folder_alone_is_enough_for_timm(variant: str, tmp_path: Path) -> None:
    ours = small_backbone(heads=2, channels=4, **VARIANTS[variant])
    export_backbone(ours, "timm", tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pixels = images(PX, channels=4)
    torch.testing.assert_close(their_sequence(theirs, pixels), sequence(tokens_of(ours, pixels)), rtol=0, atol=1e-5)
    assert transformer(load_backbone(tmp_path)).config.heads == 2


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("arch", ARCHS)
def test_to_timm__released_sizes_fit_the_models_of_their_names(arch: str, registers: int) -> None:
    config = ModelConfig.model_validate({"arch": arch, "registers": registers})
    tensors = {name: torch.empty(shape, device="meta") for name, shape in expected_shapes(config, 37).items()}
    described = timm_config(config, 37)
    with torch.device("meta"):
        named = timm.create_model(described["architecture"], num_classes=0)
    expected = {name: tuple(tensor.shape) for name, tensor in named.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in to_timm(tensors).items()} == expected
    size = {"vit_s": "small", "vit_b": "base", "vit_l": "large", "vit_g": "giant"}[arch]
    assert described["architecture"] == f"vit_{size}_patch14{'_reg4' if registers else ''}_dinov2"


@pytest.mark.parametrize("variant", VARIANTS)
def test_from_timm__ours_computes_the_same_at_every_size(variant: str, tmp_path: Path) -> None:
    theirs = new_model(VARIANTS[variant].get("registers", 0), "ffn" in VARIANTS[variant])
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0.1, 0.2)
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    ours = load_backbone(tmp_path / "timm.safetensors")
    for sides in [(PX,), (42,), (98,), (42, 56)]:
        pixels = images(*sides)
        torch.testing.assert_close(sequence(tokens_of(ours, pixels)), their_sequence(theirs, pixels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", [ROTARY, {"untied_norms": "local_cls"}], ids=str)
def test_to_timm__what_timm_cannot_compute_is_refused(model: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedExportError, match="Export it as safetensors, onnx or torch-export"):
        export_backbone(small_backbone(**model), "timm", tmp_path)
