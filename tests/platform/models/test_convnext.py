"""The convolutional backbone against timm's, and what makes it a student like any other."""

import re

import pytest
import torch
import torch.nn.functional as F
from support.backbones import CONVOLUTIONAL, images, small_convnext
from support.vision_libraries import timm
from torch import Tensor

from heliostat.config.convnext import ConvNextConfig
from heliostat.models.convnext import ConvNext, resize_map
from heliostat.models.recompute import Recompute

DEPTHS, DIMS = CONVOLUTIONAL["depths"], CONVOLUTIONAL["dims"]
THEIR_NAMES = {
    r"^downsample_layers\.0": "stem",
    r"^downsample_layers\.(\d)": r"stages.\1.downsample",
    r"^stages\.(\d)\.(\d+)": r"stages.\1.blocks.\2",
    r"dwconv": "conv_dw",
    r"pwconv": "mlp.fc",
    r"^norm": "head.norm",
}


def their_name(name: str) -> str:
    """timm's name of a parameter."""
    for ours, theirs in THEIR_NAMES.items():
        name = re.sub(ours, theirs, name)
    return name


@pytest.mark.parametrize("side", [64, 96, 98, 130])
def test_convnext__is_timms(side: int) -> None:
    ours = small_convnext()
    theirs = timm.create_model("convnext_tiny", pretrained=False, num_classes=0, depths=DEPTHS, dims=DIMS).eval()
    theirs.load_state_dict({their_name(name): tensor for name, tensor in ours.state_dict().items()})
    pixels = images(side)
    with torch.no_grad():
        (tokens,) = ours([pixels], wanted=[torch.arange(0)])
        torch.testing.assert_close(tokens.cls_BD, theirs(pixels), rtol=0, atol=1e-5)
        if side % 32 == 0:  # patches of the stride: the map as it is
            (whole,) = small_convnext(patch_px=32)([pixels])
            map_BDHW = theirs.forward_features(pixels)
            expected = theirs.head.norm(map_BDHW).flatten(2).mT
            torch.testing.assert_close(whole.patches_BND, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("arch", ["t", "s", "b", "l"])
def test_convnext__has_the_papers_number_of_parameters(arch: str) -> None:
    with torch.device("meta"):
        backbone = ConvNext(ConvNextConfig.model_validate({"arch": f"convnext_{arch}"}), 14)
    count = sum(parameter.numel() for parameter in backbone.parameters())
    classifier = (backbone.config.embed_dim + 1) * 1000
    # ConvNeXt, table 9, in millions.
    assert round((count + classifier) / 1e6) == {"t": 29, "s": 50, "b": 89, "l": 198}[arch]


@pytest.mark.parametrize(("patch_px", "sides"), [(16, (64, 96)), (8, (64, 64)), (64, (128, 192)), (24, (72, 96))])
def test_forward__resizes_the_map_to_the_grid_of_the_patches(patch_px: int, sides: tuple[int, int]) -> None:
    backbone = small_convnext(patch_px=patch_px)
    pixels = images(*sides)
    with torch.no_grad():
        (tokens,) = backbone([pixels])
        grid = (sides[0] // patch_px, sides[1] // patch_px)
        expected = F.interpolate(backbone._map(pixels), size=grid, mode="bilinear", antialias=True)
        normed = F.layer_norm(
            expected.permute(0, 2, 3, 1), (DIMS[-1],), backbone.norm.weight, backbone.norm.bias, eps=1e-6
        )
    torch.testing.assert_close(tokens.patches_BND, normed.flatten(1, 2), rtol=0, atol=1e-5)
    assert tokens.registers_BRD.shape == (2, 0, DIMS[-1])


@pytest.mark.parametrize("to", [(7, 7), (14, 14), (16, 9), (3, 2), (1, 1)])
def test_resize_map__is_torchs_antialiased_bilinear(to: tuple[int, int]) -> None:
    map_BDHW = images(7, channels=5).double()
    expected = F.interpolate(map_BDHW, size=to, mode="bilinear", antialias=True)
    torch.testing.assert_close(resize_map(map_BDHW, *to), expected)


def test_forward__wanted_patches_are_those_of_all() -> None:
    backbone = small_convnext()
    groups = [images(64), images(40, count=3)]
    wanted = torch.tensor([0, 3, 17, 31])
    with torch.no_grad():
        (whole,) = backbone(groups[:1])
        first, second = backbone(groups, wanted=[wanted, wanted[:0]])
        (alone,) = backbone(groups[1:], wanted=[wanted[:0]])
    assert torch.equal(first.patches_MD, whole.patches_BND.flatten(0, 1)[wanted])
    assert torch.equal(first.cls_BD, whole.cls_BD)
    assert second.patches_MD.shape == (0, DIMS[-1])
    assert torch.equal(second.cls_BD, alone.cls_BD)


@pytest.mark.parametrize("side", [4, 8, 12, 31, 33, 63])
def test_forward__crops_below_the_stride_have_a_class_token_that_follows_them(side: int) -> None:
    pixels = images(side).requires_grad_()
    (tokens,) = small_convnext()([pixels], wanted=[torch.arange(0)])
    assert tokens.cls_BD.shape == (2, DIMS[-1])
    tokens.cls_BD.square().sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0


def test_forward__refuses_what_it_cannot_do() -> None:
    backbone = small_convnext()
    with pytest.raises(ValueError, match="3 x 64 pixels are less than the 4"):
        backbone([images(3, 64)])
    with pytest.raises(ValueError, match="40 x 64 pixels are not made of whole patches of 16"):
        backbone([images(40, 64)])
    with pytest.raises(ValueError, match="no masks"):
        backbone([images(64)], [torch.zeros(2, 16, dtype=torch.bool)])
    with pytest.raises(TypeError, match="list of tensors"):
        backbone(images(64))


def gradients(backbone: ConvNext, mode: Recompute, precision: torch.dtype) -> list[Tensor]:
    backbone.prepare(mode, compiles=False)
    backbone.zero_grad()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        (tokens,) = backbone([images(64)])
    (tokens.cls_BD.square().sum() + tokens.patches_BND.float().sin().sum()).backward()
    return [parameter.grad.clone() for parameter in backbone.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_prepare__recomputation_changes_no_number(mode: Recompute, precision: torch.dtype) -> None:
    backbone = small_convnext()
    plain = gradients(backbone, "none", precision)
    assert len(plain) == len(list(backbone.parameters()))
    for one, other in zip(plain, gradients(backbone, mode, precision), strict=True):
        assert torch.equal(one, other)


def test_init_weights__is_a_function_of_the_generator() -> None:
    def drawn(seed: int) -> ConvNext:
        backbone = ConvNext(ConvNextConfig.model_validate(CONVOLUTIONAL), 4)
        backbone.init_weights(torch.Generator().manual_seed(seed))
        return backbone

    one, same, other = (dict(drawn(seed).named_parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    weight = "stages.2.1.pwconv1.weight"
    assert not torch.equal(one[weight], other[weight])
    assert one[weight].std().item() == pytest.approx(0.02, rel=0.1)
    assert one["stages.0.0.dwconv.weight"].std().item() == pytest.approx(0.02, rel=0.15)
    assert torch.equal(one["stages.0.0.gamma"], torch.full((8,), 1e-6))
    assert not one["stages.0.0.dwconv.bias"].any()
