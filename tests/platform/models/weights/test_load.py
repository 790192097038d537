import inspect
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.backbones import GRID, ROTARY, VARIANTS, images, same_weights, small_backbone, tokens_of, transformer
from support.closed_form import det, det_parameters
from support.golden import GOLDEN, close
from torch import Tensor

import heliostat
from heliostat import load_backbone
from heliostat.errors import (
    IncompatibleCheckpointError,
    InvalidValueError,
    UnreadableWeightsError,
    WeightsNotFoundError,
)
from heliostat.models.vit import VisionTransformer
from heliostat.models.weights.export import export_backbone

State = dict[str, Tensor]
HEADS = {"dino_head.mlp.0.weight": torch.zeros(3, 3), "ibot_head.last_layer.weight_g": torch.ones(3, 1)}


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def chunked(state: State) -> State:
    return {
        name.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): t for name, t in state.items()
    }


def student(state: State) -> State:
    return {name: tensor + 1 for name, tensor in state.items()}


def training_checkpoint(state: State) -> dict[str, Any]:
    both = {**prefixed("student.backbone.", student(state)), **prefixed("teacher.backbone.", chunked(state))}
    heads = {**prefixed("student.", HEADS), **prefixed("teacher.", HEADS)}
    return {"model": {**both, **heads}, "optimizer": {"state": {0: torch.ones(9)}}, "iteration": 12}


WRAPPED: dict[str, Callable[[State], dict[str, Any]]] = {
    "hub": lambda state: state,
    "chunked": chunked,
    "training": training_checkpoint,
    "flat training": lambda state: training_checkpoint(state)["model"],
    "exported teacher": lambda state: {"teacher": {**prefixed("backbone.", state), **HEADS}},
    "data parallel": lambda state: prefixed("module.", state),
    "data parallel teacher": lambda state: {"teacher": prefixed("module.backbone.", state)},
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_load_backbone__reads_every_kind_of_file_of_the_published_code(wrapping: str, tmp_path: Path) -> None:
    model = small_backbone(registers=4)
    torch.save(WRAPPED[wrapping](model.state_dict()), tmp_path / "x.pth")
    loaded = load_backbone(tmp_path / "x.pth")
    assert same_weights(loaded, model)
    assert not loaded.training


@pytest.mark.parametrize("variant", ["plain", "reg4", "swiglu"])
@pytest.mark.parametrize("size", ["70x70", "42x56", "98x98"])
def test_load_backbone__a_released_file_computes_what_the_published_code_does(
    variant: str, size: str, tmp_path: Path
) -> None:
    save_file(det_parameters(GOLDEN["vit"][variant]["keys"]), tmp_path / "x.safetensors")
    model = load_backbone(tmp_path / "x.safetensors", heads=2)
    height, width = map(int, size.split("x"))
    expected = GOLDEN["vit"][variant][size]
    tokens = tokens_of(model, det((2, 3, height, width), 5))
    close(tokens.cls_BD, expected["cls"], 5e-6)
    close(tokens.patches_BND.sum((0, 1)), expected["patch_sum"], 4e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_load_backbone__resizes_positions_as_the_released_models_do(variant: str, tmp_path: Path) -> None:
    model = small_backbone(**VARIANTS[variant])
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    assert transformer(load_backbone(tmp_path / "x.safetensors")).config.resize == (
        "antialias" if model.config.registers else "offset"
    )


@pytest.mark.parametrize("model", [*VARIANTS.values(), ROTARY, {"position_resize": "size", "ffn_ratio": 2.7}], ids=str)
def test_load_backbone__our_own_export_comes_back_whole(model: dict[str, Any], tmp_path: Path) -> None:
    exported = small_backbone(heads=2, **model)
    export_backbone(exported, "safetensors", tmp_path)
    loaded = load_backbone(tmp_path / "model.safetensors")
    assert same_weights(loaded, exported)
    assert loaded.grid == GRID
    assert loaded.config.model_copy(update={"position_resize": "auto"}) == exported.config.model_copy(
        update={"position_resize": "auto"}
    )
    assert transformer(loaded).config.resize == transformer(exported).config.resize


def test_load_backbone__bare_safetensors_under_either_names(tmp_path: Path) -> None:
    model = small_backbone()
    save_file(model.state_dict(), tmp_path / "official.safetensors")
    assert same_weights(load_backbone(tmp_path / "official.safetensors"), model)
    export_backbone(model, "huggingface", tmp_path / "theirs")
    theirs = load_backbone(tmp_path / "theirs" / "model.safetensors")
    assert same_weights(theirs, model)
    assert transformer(theirs).config.resize == "size"


def test_load_backbone__other_channels(tmp_path: Path) -> None:
    model = small_backbone()
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    grown = load_backbone(tmp_path / "x.safetensors", channels=6)
    assert grown.config.channels == 6
    expected = tokens_of(model, images(70))
    found = tokens_of(grown, images(70).repeat(1, 2, 1, 1))
    torch.testing.assert_close(found.cls_BD, expected.cls_BD, rtol=1e-4, atol=1e-5)


def test_load_backbone__half_precision_becomes_fp32(tmp_path: Path) -> None:
    state = {name: tensor.bfloat16() for name, tensor in small_backbone().state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    loaded = load_backbone(tmp_path / "x.safetensors").state_dict()
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in state.items())


def test_load_backbone__what_differs_is_one_line(tmp_path: Path) -> None:
    state = dict(small_backbone().state_dict())
    del state["norm.weight"]
    state["blocks.1.norm1.bias"] = torch.zeros(7)
    state["head.weight"] = torch.zeros(2)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(IncompatibleCheckpointError) as caught:
        load_backbone(tmp_path / "x.safetensors")
    assert "1 missing: norm.weight; 1 unexpected: head.weight; 1 of another shape: blocks.1.norm1.bias (7,)" in str(
        caught.value
    )


def test_load_backbone__a_block_number_of_billions_allocates_nothing(tmp_path: Path) -> None:
    state = {**small_backbone().state_dict(), "blocks.4000000000.ls1.gamma": torch.ones(64)}
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(IncompatibleCheckpointError, match=r"1 unexpected: blocks\.4000000000\.ls1\.gamma"):
        load_backbone(tmp_path / "x.safetensors")


@pytest.mark.parametrize("text", ["{", '{"schema_version": 2, "model": {}, "grid": 5}', '{"schema_version": 1}', "[]"])
def test_load_backbone__unknown_metadata_is_one_line(text: str, tmp_path: Path) -> None:
    save_file(small_backbone().state_dict(), tmp_path / "x.safetensors", {"heliostat": text})
    with pytest.raises(UnreadableWeightsError, match="metadata nothing that this version knows"):
        load_backbone(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "impossible",
    [{"depth": 10**9}, {"ffn_ratio": 1e300}, {"embed_dim": 10**12}, {"embed_dim": 10**30}, {"registers": 10**18}],
    ids=str,
)
def test_load_backbone__metadata_of_an_impossible_model_costs_nothing(
    impossible: dict[str, Any], tmp_path: Path
) -> None:
    model = {**json.loads(small_backbone().config.model_dump_json()), **impossible}
    described = {"schema_version": 1, "model": model, "grid": GRID}
    save_file(small_backbone().state_dict(), tmp_path / "x.safetensors", {"heliostat": json.dumps(described)})
    with pytest.raises(IncompatibleCheckpointError):
        load_backbone(tmp_path / "x.safetensors")


def test_load_backbone__a_metadata_grid_that_does_not_fit_is_named(tmp_path: Path) -> None:
    export_backbone(small_backbone(), "safetensors", tmp_path)
    path = tmp_path / "model.safetensors"
    described = {"schema_version": 1, "model": json.loads(small_backbone().config.model_dump_json()), "grid": 7}
    save_file(load_file(path), path, {"heliostat": json.dumps(described)})
    with pytest.raises(IncompatibleCheckpointError, match=r"pos_embed \(1, 26, 64\) instead of \(1, 50, 64\)"):
        load_backbone(path)


def test_load_backbone__nothing_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match="there is nothing at 'dinov2_vitx14', and it is no released model"):
        load_backbone("dinov2_vitx14")
    with pytest.raises(WeightsNotFoundError, match=r"neither config\.lock\.json nor config\.json"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2", "num_attention_heads": 1}))
    with pytest.raises(WeightsNotFoundError, match=r"holds none of model\.safetensors"):
        load_backbone(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UnreadableWeightsError, match=r"config\.json is "):
            load_backbone(tmp_path)


def test_load_backbone__a_step_is_of_runs_only(tmp_path: Path) -> None:
    save_file(small_backbone().state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(InvalidValueError, match=r"step 3 was asked for, but .* is no run"):
        load_backbone(tmp_path / "x.safetensors", step=3)


def test_heliostat__has_load_backbone_and_loads_torch_for_it_only() -> None:
    code = (
        "import sys, heliostat; a = 'torch' in sys.modules; heliostat.load_backbone; print(a, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["False", "True"]
    assert heliostat.load_backbone is load_backbone
    with pytest.raises(AttributeError, match="no attribute 'load_backbones'"):
        _ = heliostat.load_backbones


def test_load_backbone__the_result_is_a_vision_transformer(tmp_path: Path) -> None:
    save_file(small_backbone().state_dict(), tmp_path / "x.safetensors")
    assert isinstance(load_backbone(str(tmp_path / "x.safetensors")), VisionTransformer)


def test_load_backbone__a_folder_of_our_own_export(tmp_path: Path) -> None:
    model = small_backbone(**ROTARY)
    export_backbone(model, "safetensors", tmp_path)
    assert same_weights(load_backbone(tmp_path), model)
    (tmp_path / "other").mkdir()
    save_file(small_backbone().state_dict(), tmp_path / "other" / "model.safetensors")
    with pytest.raises(WeightsNotFoundError, match=r"neither config\.lock\.json nor config\.json"):
        load_backbone(tmp_path / "other")


def test_load_backbone__the_config_of_an_earlier_export_does_not_change_ours(tmp_path: Path) -> None:
    export_backbone(small_backbone(heads=2), "timm", tmp_path)
    export_backbone(small_backbone(heads=4), "safetensors", tmp_path, overwrite=True)
    assert transformer(load_backbone(tmp_path)).config.heads == 4


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("name", ["channels", "heads"])
def test_load_backbone__a_count_below_1_is_named(name: str, value: int, tmp_path: Path) -> None:
    save_file(small_backbone().state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(InvalidValueError, match=rf"HS-CONF-004: {name} {value} is less than 1\. "):
        load_backbone(tmp_path / "x.safetensors", **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("channels", [None, 5])
@pytest.mark.parametrize("name", ["cls_token", "patch_embed.proj.weight"])
def test_load_backbone__integers_are_refused(name: str, channels: int | None, suffix: str, tmp_path: Path) -> None:
    state = small_backbone().state_dict()
    state[name] = state[name].long()
    path = tmp_path / f"x.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    with pytest.raises(UnreadableWeightsError, match=rf"holds tensors that are not floating point: {name} \(int64\)"):
        load_backbone(path, channels=channels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e200])
@pytest.mark.parametrize("channels", [None, 5])
def test_load_backbone__numbers_that_are_not_finite_are_refused(
    value: float, channels: int | None, tmp_path: Path
) -> None:
    state = {name: tensor.double() for name, tensor in small_backbone().state_dict().items()}
    state["patch_embed.proj.weight"][3, 1, 4, 1] = value
    state["norm.bias"][5] = value
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UnreadableWeightsError, match=r"NaN or infinity in patch_embed\.proj\.weight, norm\.bias\."):
        load_backbone(tmp_path / "x.safetensors", channels=channels)


def test_load_backbone__the_example_of_its_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = inspect.cleandoc(load_backbone.__doc__ or "").split("::\n\n")[1].split("\n\n")[0]
    model = small_backbone(arch="vit_s", embed_dim=384, heads=6, grid=37)
    (tmp_path / "weights").mkdir()
    torch.save(model.state_dict(), tmp_path / "weights" / "dinov2_vits14_pretrain.pth")
    monkeypatch.setenv("HELIOSTAT_CACHE", str(tmp_path))
    names: dict[str, Any] = {"heliostat": heliostat, "torch": torch}
    exec(textwrap.dedent(example), names)
    assert names["tokens"].cls_BD.shape == (2, 384)
    assert names["tokens"].patches_BND.shape == (2, 256, 384)
