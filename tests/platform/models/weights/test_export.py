import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.backbones import PX, images, same_weights, small_backbone, small_convnext, tokens_of

from heliostat.errors import (
    ExportExistsError,
    ExportMismatchError,
    IncompatibleCheckpointError,
    InvalidValueError,
    StoreFailedError,
    UnsupportedExportError,
)
from heliostat.models.weights import export, graphs
from heliostat.models.weights.export import FILES, Format, at_size, export_backbone
from heliostat.models.weights.load import load_backbone


@pytest.mark.parametrize("format", ["safetensors", "huggingface", "timm", "torch-export"])
def test_export_backbone__tells_what_it_wrote(format: Format, tmp_path: Path) -> None:
    result = export_backbone(small_backbone(), format, tmp_path / "new")
    written = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert {file.name: (file.size_bytes, file.sha256) for file in result.files} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in written.items()
    }
    assert set(written) <= set(FILES[format])
    assert result.px == PX
    assert result.max_difference < 1e-6


@pytest.mark.parametrize(("format", "dynamic"), [("safetensors", False), ("torch-export", True), ("onnx", True)])
def test_export_backbone__writes_a_convolutional_network(format: Format, dynamic: bool, tmp_path: Path) -> None:
    result = export_backbone(small_convnext(), format, tmp_path, px=96, dynamic_batch=dynamic)
    assert result.px == 96
    assert result.max_difference < 1e-5
    if format == "safetensors":
        loaded = load_backbone(tmp_path / "model.safetensors")
        assert same_weights(loaded, small_convnext())
        assert (loaded.config, loaded.grid) == (small_convnext().config, 6)
        assert load_backbone(tmp_path / "model.safetensors", channels=5).config.channels == 5


@pytest.mark.parametrize("format", ["timm", "huggingface"])
def test_export_backbone__refuses_forms_of_transformers_for_a_convolutional_network(
    format: Format, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedExportError, match=rf"{format} .*convnext_custom.*safetensors.*onnx or torch-export"):
        export_backbone(small_convnext(), format, tmp_path)
    assert not list(tmp_path.iterdir())


def test_load_backbone__a_published_convolutional_network_is_told_apart(tmp_path: Path) -> None:
    save_file(small_convnext().state_dict(), tmp_path / "theirs.safetensors")
    with pytest.raises(IncompatibleCheckpointError, match="convolutional network, and does not say on which grid"):
        load_backbone(tmp_path / "theirs.safetensors")


def test_export_backbone__overwrites_only_when_told_to(tmp_path: Path) -> None:
    export_backbone(small_backbone(seed=0), "safetensors", tmp_path)
    with pytest.raises(ExportExistsError, match=r"already holds model\.safetensors"):
        export_backbone(small_backbone(seed=1), "timm", tmp_path)
    assert same_weights(load_backbone(tmp_path / "model.safetensors"), small_backbone(seed=0))
    export_backbone(small_backbone(seed=1), "safetensors", tmp_path, overwrite=True)
    assert same_weights(load_backbone(tmp_path / "model.safetensors"), small_backbone(seed=1))


def test_export_backbone__files_of_an_earlier_export_do_not_stay_behind(tmp_path: Path) -> None:
    export_backbone(small_backbone(), "huggingface", tmp_path)
    export_backbone(small_backbone(channels=4), "huggingface", tmp_path, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_export_backbone__what_computes_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**tensors, "norm.weight": tensors["norm.weight"] * 1.001}

    monkeypatch.setattr(export, "_contiguous", planted)
    with pytest.raises(ExportMismatchError, match="the safetensors export differs from the model by"):
        export_backbone(small_backbone(), "safetensors", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("px", [42, 98, 70])
@pytest.mark.parametrize("model", [{}, {"registers": 4}], ids=str)
def test_at_size__computes_the_same_at_its_size(px: int, model: dict[str, Any]) -> None:
    backbone = small_backbone(**model)
    fixed = at_size(backbone, px)
    assert fixed.grid == px // 14
    torch.testing.assert_close(
        tokens_of(fixed, images(px)).patches_BND, tokens_of(backbone, images(px)).patches_BND, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("px", "nearest"), [(71, 70), (13, 14), (0, 14)])
def test_at_size__is_a_multiple_of_the_patch(px: int, nearest: int) -> None:
    with pytest.raises(InvalidValueError, match=rf"px {px} is not a multiple .* of 14 pixels\. Give {nearest}\."):
        at_size(small_backbone(), px)


def test_export_backbone__a_dynamic_batch_is_of_graphs_only(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="a timm export has no fixed batch"):
        export_backbone(small_backbone(), "timm", tmp_path, dynamic_batch=True)


def test_difference__another_shape_is_infinite() -> None:
    backbone = small_backbone(registers=2)
    assert export._difference(backbone, graphs.Flat(backbone)) == 0.0
    assert export._difference(backbone, lambda x: graphs.Flat(backbone)(x)[:2]) == float("inf")


def test_export_backbone__a_folder_that_cannot_be_made_is_one_line() -> None:
    with pytest.raises(StoreFailedError, match=r"the folder /proc/x cannot be written: No such file or directory"):
        export_backbone(small_backbone(), "safetensors", Path("/proc/x"))


def test_export_backbone__a_file_that_cannot_be_moved_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(StoreFailedError, match="cannot be written: Is a directory"):
        export_backbone(small_backbone(), "safetensors", tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
