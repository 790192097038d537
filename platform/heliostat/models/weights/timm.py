"""timm's dialect (``vit_small_patch14_dinov2`` and its relatives).

There is no mask token; SwiGLU's layers are called fc1 and fc2; and in models with registers the class token's position
is already added to the class token, so that the position embedding is of patches only. timm resizes it to the size,
antialiased.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heliostat.config.model import ModelConfig
from heliostat.errors import UnsupportedExportError
from heliostat.models.normalise import MEAN, STD
from heliostat.models.weights.architecture import Resize

RESIZE: Resize = "antialias"

_SWIGLU = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}


def is_timm(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors have this dialect's names; every released file has a mask token."""
    return "reg_token" in tensors or "mask_token" not in tensors


def from_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """To the released names, with a mask token of zeros: in a backbone without pre-training it is never used."""
    result = dict(tensors)
    if "reg_token" in result:
        result["register_tokens"] = result.pop("reg_token")
        if "pos_embed" in result:
            positions = result["pos_embed"]
            result["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], 1)
    first, second = (tensors.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    if first is not None and second is not None and first.shape[0] == 2 * second.shape[-1]:
        result = {_replaced(name, {theirs: ours for ours, theirs in _SWIGLU.items()}): x for name, x in result.items()}
    if "cls_token" in result and "mask_token" not in result:
        result["mask_token"] = torch.zeros(1, result["cls_token"].shape[-1])
    return result


def heads_of(config: Mapping[str, Any]) -> int | None:
    """Attention heads of a ``config.json``; None where they are those of a named architecture, 64 wide."""
    arguments = config.get("model_args")
    heads = arguments.get("num_heads") if isinstance(arguments, dict) else None
    return heads if isinstance(heads, int) and heads > 0 else None


def to_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the released names; the mask token is lost."""
    result = {_replaced(name, _SWIGLU): tensor for name, tensor in tensors.items() if name != "mask_token"}
    if "register_tokens" in result:
        result["reg_token"] = result.pop("register_tokens")
        result["cls_token"] = result["cls_token"] + result["pos_embed"][:, :1]
        result["pos_embed"] = result["pos_embed"][:, 1:].contiguous()
    return result


def write_timm(config: ModelConfig, grid: int, folder: Path) -> None:
    """``config.json``, with which ``timm.create_model("local-dir:<folder>", pretrained=True)`` makes the model.

    Raises:
        UnsupportedExportError: no architecture of timm computes this.
    """
    if config.rotary is not None or config.untied_norms != "none":
        raise UnsupportedExportError(
            "timm's DINOv2 models have a learned position embedding and one final norm; this has "
            f"{'rotary positions' if config.rotary else 'learned positions'} and untied_norms {config.untied_norms}",
            "Export it as safetensors, onnx or torch-export",
        )
    text = json.dumps(timm_config(config, grid), indent=2) + "\n"
    (folder / "config.json").write_text(text)


def timm_config(config: ModelConfig, grid: int) -> dict[str, Any]:
    """Architecture, arguments and preprocessing; a named architecture whose sizes the arguments replace."""
    size = "giant" if config.ffn == "swiglu" else {"vit_b": "base", "vit_l": "large"}.get(config.arch, "small")
    hidden = config.ffn_hidden * (2 if config.ffn == "swiglu" else 1)
    ratio = hidden / config.embed_dim
    px = grid * config.patch_px
    colour = {"mean": list(MEAN), "std": list(STD)} if config.channels == len(MEAN) else {}
    return {
        "architecture": f"vit_{size}_patch14{'_reg4' if config.registers else ''}_dinov2",
        "num_classes": 0,
        "num_features": config.embed_dim,
        "global_pool": "token",
        "model_args": {
            "img_size": px,
            "patch_size": config.patch_px,
            "in_chans": config.channels,
            "embed_dim": config.embed_dim,
            "depth": config.depth,
            "num_heads": config.heads,
            # timm truncates width times ratio: half a unit more where rounding would lose one.
            "mlp_ratio": ratio if int(config.embed_dim * ratio) == hidden else (hidden + 0.5) / config.embed_dim,
            **({"reg_tokens": config.registers} if config.registers else {}),
        },
        "pretrained_cfg": {
            "input_size": [config.channels, px, px],
            "num_classes": 0,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "first_conv": "patch_embed.proj",
            **colour,
        },
    }


def _replaced(name: str, parts: Mapping[str, str]) -> str:
    for old, new in parts.items():
        name = name.replace(old, new)
    return name
