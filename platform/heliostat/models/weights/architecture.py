"""The architecture of a backbone, read off the shapes of its tensors."""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from heliostat.config.model import ARCHS, ModelConfig
from heliostat.errors import ConfigError, IncompatibleCheckpointError

HEAD_WIDTH = 64
"""Of every released DINOv2 model; the tensors do not say it."""

Resize = Literal["auto", "offset", "antialias", "size"]

_BLOCK = re.compile(r"blocks\.(\d+)\.")


def infer(
    tensors: Mapping[str, Tensor], origin: str, heads: int | None = None, resize: Resize = "auto"
) -> tuple[ModelConfig, int]:
    """Architecture and position grid of a backbone under the released names.

    Args:
        tensors: The backbone.
        origin: Where it is from, for messages.
        heads: Attention heads, where the source says it; otherwise they are 64 wide.
        resize: How the source's own code resizes the position embedding.

    Raises:
        IncompatibleCheckpointError: a tensor that tells a size is missing or has an impossible shape.
    """
    dim, channels, patch_px, width_px = _shape(tensors, "patch_embed.proj.weight", 4, origin)
    positions = _shape(tensors, "pos_embed", 3, origin)[1] - 1
    grid = math.isqrt(max(positions, 0))
    if grid < 1 or grid * grid != positions or patch_px != width_px:
        raise IncompatibleCheckpointError(
            f"{origin} has {positions} positions and patches of {patch_px} x {width_px} pixels; both must be square",
            "Use weights with square patches on a square grid",
        )
    sizes = {
        "embed_dim": dim,
        "depth": len({match[1] for match in map(_BLOCK.match, tensors) if match}),
        "heads": heads or _heads(dim, origin),
        **_feed_forward(tensors, dim, origin),
    }
    registers = _shape(tensors, "register_tokens", 3, origin)[1] if "register_tokens" in tensors else 0
    values = {
        "arch": _arch(sizes),
        **sizes,
        "patch_px": patch_px,
        "channels": channels,
        "registers": registers,
        "position_resize": resize,
    }
    try:
        return ModelConfig.model_validate(values), grid
    except (ConfigError, ValueError) as error:
        reason = error.fact if isinstance(error, ConfigError) else str(values)
        raise IncompatibleCheckpointError(
            f"{origin} has the shapes of no vision transformer: {reason}", "Use weights of a DINOv2 backbone"
        ) from error


def _shape(tensors: Mapping[str, Tensor], name: str, dims: int, origin: str) -> tuple[int, ...]:
    if name not in tensors:
        fact = f"{origin} is not a DINOv2 backbone: {name} is missing among its {len(tensors)} tensors"
        raise IncompatibleCheckpointError(fact, "Use weights of a DINOv2 backbone, whole and of one model")
    shape = tuple(tensors[name].shape)
    if len(shape) != dims:
        raise IncompatibleCheckpointError(
            f"{origin} is not a DINOv2 backbone: {name} has shape {shape}, which should have {dims} dimensions",
            "Use weights of a DINOv2 backbone",
        )
    return shape


def _heads(dim: int, origin: str) -> int:
    if dim % HEAD_WIDTH:
        raise IncompatibleCheckpointError(
            f"{origin} is {dim} wide, so its heads are not {HEAD_WIDTH} wide, and no tensor says how many there are",
            "Give load_backbone the number of heads",
        )
    return dim // HEAD_WIDTH


def _feed_forward(tensors: Mapping[str, Tensor], dim: int, origin: str) -> dict[str, Any]:
    if "blocks.0.mlp.w3.weight" in tensors:
        hidden = _shape(tensors, "blocks.0.mlp.w3.weight", 2, origin)[1]
        # SwiGLU's width is two thirds of the ratio's, rounded up to a multiple of 8: several ratios give one width.
        return {"ffn": "swiglu", "ffn_ratio": _ratio("swiglu", dim, hidden, (4.0, 1.5 * hidden / dim))}
    hidden = _shape(tensors, "blocks.0.mlp.fc1.weight", 2, origin)[0]
    return {"ffn": "mlp", "ffn_ratio": _ratio("mlp", dim, hidden, (hidden / dim, (hidden + 0.5) / dim))}


def _ratio(ffn: str, dim: int, hidden: int, candidates: tuple[float, float]) -> float:
    """The first of two ratios that gives this hidden width, if one does; shapes are compared later in any case."""
    first, second = candidates
    sizes = {"arch": "custom", "embed_dim": dim, "depth": 1, "heads": 1, "ffn": ffn, "ffn_ratio": first}
    return first if first > 0 and ModelConfig.model_validate(sizes).ffn_hidden == hidden else second


def _arch(sizes: Mapping[str, Any]) -> str:
    """The arch that has exactly these sizes."""
    same = (name for name, arch in ARCHS.items() if {"ffn": "mlp", **arch}.items() <= sizes.items())
    return next(same, "custom")
