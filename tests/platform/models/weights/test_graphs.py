from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from support.backbones import ROTARY, images, small_backbone, tokens_of

from heliostat.models.tokens import Tokens
from heliostat.models.vit import VisionTransformer
from heliostat.models.weights import graphs
from heliostat.models.weights.export import export_backbone

PX = 42
"""Not the side for which the small models store their positions."""


def expected(backbone: VisionTransformer, pixels: torch.Tensor) -> list[torch.Tensor]:
    tokens: Tokens = tokens_of(backbone, pixels)
    return [tokens.cls_BD, tokens.patches_BND, *([tokens.registers_BRD] if backbone.config.registers else [])]


def onnx_session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("model", [{}, {"registers": 4, "ffn": "swiglu"}, ROTARY], ids=str)
def test_onnx__onnxruntime_computes_the_same(
    model: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    backbone = small_backbone(**model)
    result = export_backbone(backbone, "onnx", tmp_path, px=PX)
    assert capfd.readouterr() == ("", "")
    assert result.max_difference < 1e-5
    session = onnx_session(tmp_path / "model.onnx")
    assert session.get_inputs()[0].shape == [1, 3, PX, PX]
    assert [each.name for each in session.get_outputs()] == ["cls", "patches", "registers"][
        : 3 if model.get("registers") else 2
    ]
    pixels = images(PX, count=1)
    for ours, theirs in zip(expected(backbone, pixels), session.run(None, {"images": pixels.numpy()}), strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", [{"registers": 4}, ROTARY], ids=["registers", "rotary"])
def test_onnx__a_dynamic_batch_takes_any_number(model: dict[str, Any], tmp_path: Path) -> None:
    backbone = small_backbone(**model)
    export_backbone(backbone, "onnx", tmp_path, px=PX, dynamic_batch=True)
    session = onnx_session(tmp_path / "model.onnx")
    for count in (1, 2, 5):
        pixels = images(PX, count=count)
        for ours, theirs in zip(expected(backbone, pixels), session.run(None, {"images": pixels.numpy()}), strict=True):
            np.testing.assert_allclose(theirs, ours.numpy(), rtol=0, atol=1e-4)


def test_onnx__large_models_keep_their_tensors_in_a_second_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_ONE_FILE_BYTES", 1000)
    result = export_backbone(small_backbone(), "onnx", tmp_path, px=PX)
    sizes = {file.name: file.size_bytes for file in result.files}
    assert set(sizes) == {"model.onnx", "model.onnx.data"}
    assert sizes["model.onnx.data"] > 400_000 > sizes["model.onnx"]
    assert len(onnx_session(tmp_path / "model.onnx").run(None, {"images": images(PX, count=1).numpy()})) == 2


@pytest.mark.parametrize(("model", "dynamic"), [({}, False), (ROTARY, True)], ids=["plain", "rotary"])
def test_program__torch_loads_it_without_our_code(
    model: dict[str, Any], dynamic: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    backbone = small_backbone(**model)
    export_backbone(backbone, "torch-export", tmp_path, px=PX, dynamic_batch=dynamic)
    assert capfd.readouterr() == ("", "")
    with graphs.quiet():
        program = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 5) if dynamic else (1,):
        pixels = images(PX, count=count)
        for ours, theirs in zip(expected(backbone, pixels), program(pixels), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
