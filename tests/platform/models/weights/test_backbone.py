import pytest
import torch
from support.backbones import GRID, same_weights, small_backbone

from heliostat.errors import IncompatibleCheckpointError
from heliostat.models.weights.backbone import Weights, build, check_shapes


def test_build__is_the_model_in_fp32_and_evaluation_mode() -> None:
    model = small_backbone(registers=4)
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    built = build(Weights(model.config, GRID, tensors, "f"))
    assert not built.training
    assert {tensor.dtype for tensor in built.state_dict().values()} == {torch.float32}
    assert same_weights(built, model.half().float())


def test_build__lists_all_that_differs_in_one_line() -> None:
    model = small_backbone()
    tensors = dict(model.state_dict())
    tensors["extra"] = tensors.pop("norm.bias")
    tensors["cls_token"] = torch.zeros(1, 2, 64)
    with pytest.raises(IncompatibleCheckpointError) as caught:
        build(Weights(model.config, GRID, tensors, "f"))
    assert str(caught.value) == (
        "HS-CKPT-002: f is not a DINOv2 backbone: 1 missing: norm.bias; 1 unexpected: extra; 1 of another shape: "
        "cls_token (1, 2, 64) instead of (1, 1, 64). Use weights of a DINOv2 backbone, whole and of one model."
    )


def test_build__weights_without_layer_scale_are_told_apart() -> None:
    model = small_backbone()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if "gamma" not in name}
    with pytest.raises(
        IncompatibleCheckpointError, match=r"4 missing: blocks\.0\.ls1\.gamma.*Use weights with LayerScale"
    ):
        build(Weights(model.config, GRID, tensors, "f"))


def test_check_shapes__long_lists_are_cut() -> None:
    expected = {f"name-{index:02d}": (1,) for index in range(25)}
    with pytest.raises(IncompatibleCheckpointError, match=r"25 missing: name-00, .*, name-09 and 15 more") as caught:
        check_shapes(expected, {}, "f")
    assert "name-10" not in str(caught.value)
