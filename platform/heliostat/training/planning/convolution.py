"""What a convolutional backbone costs, in the style of ``flops.py`` and ``memory.py``.

Legend: D channels of a stage.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from heliostat.config.convnext import STEM_PX, ConvNextConfig

_FP32 = 4
_KERNEL, _RATIO = 7, 4
"""Of ``models/convnext.py``: side of a depthwise convolution, hidden width of a block over D."""

Crops = tuple[int, int]
"""How many crops, and the side of one in pixels."""
Shape = tuple[int, ...]


def parameters(model: ConvNextConfig) -> Iterator[tuple[str, Shape]]:
    """Names and shapes in the order of the real network."""
    first = model.dims[0]
    yield "downsample_layers.0.0.weight", (first, model.channels, STEM_PX, STEM_PX)
    yield "downsample_layers.0.0.bias", (first,)
    yield from _scales("downsample_layers.0.1", first)
    for stage, (dim, out) in enumerate(pairwise(model.dims), start=1):
        yield from _scales(f"downsample_layers.{stage}.0", dim)
        yield f"downsample_layers.{stage}.1.weight", (out, dim, 2, 2)
        yield f"downsample_layers.{stage}.1.bias", (out,)
    for stage, (depth, dim) in enumerate(zip(model.depths, model.dims, strict=True)):
        for block in range(depth):
            for name, shape in _block(dim):
                yield f"stages.{stage}.{block}.{name}", shape
    yield from _scales("norm", model.embed_dim)


def _scales(name: str, dim: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (dim,)
    yield f"{name}.bias", (dim,)


def _block(dim: int) -> Iterator[tuple[str, Shape]]:
    yield "gamma", (dim,)
    yield "dwconv.weight", (dim, 1, _KERNEL, _KERNEL)
    yield "dwconv.bias", (dim,)
    yield from _scales("norm", dim)
    yield "pwconv1.weight", (_RATIO * dim, dim)
    yield "pwconv1.bias", (_RATIO * dim,)
    yield "pwconv2.weight", (dim, _RATIO * dim)
    yield "pwconv2.bias", (dim,)


def positions(crops: Sequence[Crops]) -> tuple[int, ...]:
    """Of the maps of all crops, stage by stage."""
    found = []
    sides = [side_px // STEM_PX for _, side_px in crops]
    for _ in range(4):
        found.append(sum(count * side**2 for (count, _), side in zip(crops, sides, strict=True)))
        sides = [max(1, side // 2) for side in sides]
    return tuple(found)


def stem_flops(model: ConvNextConfig, crops: Sequence[Crops]) -> float:
    """A forward pass of the stem, whose input needs no gradient."""
    return 2.0 * positions(crops)[0] * model.channels * STEM_PX**2 * model.dims[0]


def block_flops(model: ConvNextConfig, crops: Sequence[Crops]) -> float:
    """A forward pass through all blocks."""
    stages = zip(positions(crops), model.depths, model.dims, strict=True)
    return sum(2.0 * count * depth * dim * (_KERNEL**2 + 2 * _RATIO * dim) for count, depth, dim in stages)


def halving_flops(model: ConvNextConfig, crops: Sequence[Crops]) -> float:
    """A forward pass of what lies between the stages."""
    pairs = zip(positions(crops)[1:], pairwise(model.dims), strict=True)
    return sum(2.0 * count * 4 * dim * out for count, (dim, out) in pairs)


def kept_bytes(model: ConvNextConfig, crops: Sequence[Crops], size: int, recompute: str) -> float:
    """What autograd keeps of a forward pass between the crops and the tokens.

    Args:
        model: The backbone.
        crops: Of a slot.
        size: Bytes of what products take.
        recompute: As ``training.activation_checkpointing``.
    """
    counts = positions(crops)
    stages = list(zip(counts, model.depths, model.dims, strict=True))
    # Of a block: the inputs of its convolution, its norm and its layers, what GELU makes, what its gamma scales.
    inside = [count * dim * (_FP32 + size * (3 + 2 * _RATIO)) for count, _, dim in stages]
    stream = [_FP32 * count * dim for count, _, dim in stages]
    if recompute == "full":
        blocks = sum(depth * each for (_, depth, _), each in zip(stages, stream, strict=True)) + max(inside)
    elif recompute == "selective":
        products = [size * count * dim * (2 + _RATIO) for count, _, dim in stages]
        kept = (depth * (a + b) for (_, depth, _), a, b in zip(stages, stream, products, strict=True))
        blocks = sum(kept) + max(one - b for one, b in zip(inside, products, strict=True))
    else:
        blocks = sum(depth * one for (_, depth, _), one in zip(stages, inside, strict=True))
    # Inputs of the norms and convolutions between the stages.
    between = sum(count * dim * (_FP32 + size) for count, _, dim in stages[:-1])
    return blocks + between + stream[0]
