"""Hugging Face's dialect: ``Dinov2Model`` and ``Dinov2WithRegistersModel`` of transformers.

The names are those of the files on the hub, which every version of transformers reads and writes; 5.x renames them in
memory. Its position embedding is resized to the explicit size, which for models without registers is not what the
released code does: outputs agree with it at the stored size only.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heliostat.config.model import ModelConfig
from heliostat.errors import UnreadableWeightsError, UnsupportedExportError
from heliostat.models.layers import LAYER_NORM_EPS
from heliostat.models.normalise import MEAN, STD
from heliostat.models.weights.architecture import Resize

MODEL_TYPES = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
PREPROCESSOR = "preprocessor_config.json"
BICUBIC = 3
"""Pillow's number."""
RESIZE_PX, CROP_PX = 256, 224
"""Shortest edge and centre crop of DINOv2's published image processor."""

_OUTER = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_INNER = {
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
}
"""Parts of a block that are named otherwise; norm1, norm2, mlp.fc1 and mlp.fc2 are not."""
_QKV = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))
_OUR_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_THEIR_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)")


def is_huggingface(names: Mapping[str, object]) -> bool:
    """Whether tensors have this dialect's names."""
    return any(name.endswith("embeddings.cls_token") for name in names)


def from_huggingface(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """To the released names. A model around the backbone (a classifier) is left out; unknown names stay as they are."""
    prefix = next(name for name in tensors if name.endswith("embeddings.cls_token"))[: -len("embeddings.cls_token")]
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    outer = {theirs: ours for ours, theirs in _OUTER.items()}
    inner = {theirs: ours for ours, theirs in _INNER.items()}
    result: dict[str, Tensor] = {}
    for name, tensor in inside.items():
        match = _THEIR_BLOCK.fullmatch(name)
        result[f"blocks.{match[1]}.{_renamed(match[2], inner)}" if match else outer.get(name, name)] = tensor
    return _with_joined_qkv(result)


def to_huggingface(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the released names."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _OUR_BLOCK.fullmatch(name)
        if match is None:
            result[_OUTER[name]] = tensor
        elif match[2].startswith("attn.qkv."):
            kind = match[2].rpartition(".")[2]
            parts = zip(_QKV, tensor.chunk(3), strict=True)
            result |= {f"encoder.layer.{match[1]}.{part}.{kind}": rows.contiguous() for part, rows in parts}
        else:
            result[f"encoder.layer.{match[1]}.{_renamed(match[2], _INNER)}"] = tensor
    return result


def resize_of(registers: bool) -> Resize:
    """How transformers resizes the position embedding."""
    return "antialias" if registers else "size"


def heads_of(config: Mapping[str, Any], origin: str) -> int:
    """Attention heads of a ``config.json``.

    Raises:
        UnreadableWeightsError: it describes a model that computes something else, or says no number of heads.
    """
    needed = {"hidden_act": "gelu", "layer_norm_eps": LAYER_NORM_EPS}
    wrong = [f"{key} {config[key]!r}" for key, value in needed.items() if config.get(key, value) != value]
    heads = config.get("num_attention_heads")
    if config.get("model_type") not in MODEL_TYPES:
        wrong.append(f"model_type {config.get('model_type')!r}")
    if not isinstance(heads, int) or heads < 1:
        wrong.append(f"num_attention_heads {heads!r}")
    if wrong or not isinstance(heads, int):
        raise UnreadableWeightsError(
            f"{origin} has {', '.join(wrong)}, of which no DINOv2 backbone can be made",
            f"Give a folder whose model_type is {' or '.join(MODEL_TYPES)}, with gelu and layer_norm_eps 1e-6",
        )
    return heads


def write_huggingface(config: ModelConfig, grid: int, folder: Path) -> None:
    """``config.json``, and for colour images ``preprocessor_config.json``.

    Raises:
        UnsupportedExportError: transformers' configuration cannot say what this model is.
    """
    ratio = int(config.ffn_ratio)
    if config.rotary is not None or config.untied_norms != "none" or ratio != config.ffn_ratio:
        raise UnsupportedExportError(
            "transformers' Dinov2 models have a learned position embedding, one final norm and a whole mlp_ratio; this "
            f"has {'rotary positions' if config.rotary else 'learned positions'}, untied_norms {config.untied_norms} "
            f"and ffn_ratio {config.ffn_ratio:g}",
            "Export it as safetensors, onnx or torch-export",
        )
    _write_json(folder / "config.json", _config(config, grid, ratio))
    if config.channels == len(MEAN):
        _write_json(folder / PREPROCESSOR, _preprocessor())


def _config(config: ModelConfig, grid: int, ratio: int) -> dict[str, Any]:
    model_type = "dinov2_with_registers" if config.registers else "dinov2"
    return {
        "architectures": [MODEL_TYPES[model_type]],
        "model_type": model_type,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "mlp_ratio": ratio,
        "use_swiglu_ffn": config.ffn == "swiglu",
        "hidden_act": "gelu",
        "layer_norm_eps": LAYER_NORM_EPS,
        "layerscale_value": config.layer_scale,
        "qkv_bias": True,
        "image_size": grid * config.patch_px,
        "patch_size": config.patch_px,
        "num_channels": config.channels,
        **({"num_register_tokens": config.registers} if config.registers else {"use_mask_token": True}),
        "torch_dtype": "float32",
    }


def _preprocessor() -> dict[str, Any]:
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": RESIZE_PX},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": CROP_PX, "width": CROP_PX},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }


def _renamed(part: str, names: Mapping[str, str]) -> str:
    found = next((name for name in names if part == name or part.startswith(f"{name}.")), None)
    return part if found is None else names[found] + part[len(found) :]


def _with_joined_qkv(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value as one; where one of the three is missing, the others stay and will be reported.

    So do those of which some are integers: joined, all three would look like floating point.
    """
    result = dict(tensors)
    for name in tensors:
        if f".{_QKV[0]}." not in name:
            continue
        names = [name.replace(_QKV[0], part) for part in _QKV]
        if all(each in tensors for each in names) and len({tensors[each].is_floating_point() for each in names}) == 1:
            joined = torch.cat([result.pop(each) for each in names])
            result[name.replace(_QKV[0], "attn.qkv")] = joined
    return result


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
