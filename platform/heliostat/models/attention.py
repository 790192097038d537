"""Attention over packed sequences: one interface, several backends, the same numbers.

Crops of different sizes share one packed token tensor, so that everything token-wise runs once. Attention must not mix
sequences. ``grouped`` runs one batched scaled-dot-product attention per group of equally long sequences and works
everywhere; ``xformers`` and ``varlen`` run all groups in one kernel on a GPU, in half precision.

Legend: T packed tokens of all groups, S sequences of a group, N tokens of a sequence, P its patches (the last of them),
H heads, E width of a head.
"""

import importlib
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat.models.positions import rotate

Backend = Literal["grouped", "varlen", "xformers"]
Layout = Sequence[tuple[int, int]]
"""(S, N) of each group, in packed order."""
Rope = Sequence[tuple[Tensor, Tensor] | None]
"""Per group: sines and cosines of its patches' rotations, each (P, E), or None."""

_log = logging.getLogger(__name__)
_FrozenLayout = tuple[tuple[int, int], ...]

_ONE_KERNEL: tuple[Backend, ...] = ("xformers", "varlen")
"""Backends that run all groups at once, the preferred one first."""
_HALF = (torch.float16, torch.bfloat16)
_MAX_HEAD_WIDTH = 256
_HEAD_WIDTH_MULTIPLE = 8
_CACHED_LAYOUTS = 64


def packed_attention(
    qkv_T3HE: Tensor, layout: Layout, backend: Backend = "grouped", rope: Rope | None = None
) -> Tensor:
    """Self-attention inside each sequence of the packed batch.

    Args:
        qkv_T3HE: queries, keys and values of all tokens.
        layout: which tokens form a sequence.
        backend: what ``choose_backend`` said for the tensor's device; tensors that it cannot take go to ``grouped``.
        rope: rotations of the queries and keys of the patches; None rotates none.

    Returns:
        (T, H * E).

    Raises:
        ValueError: the layout does not cover the tokens, or ``rope`` does not match the layout.
    """
    if sum(_group_sizes(layout)) != qkv_T3HE.shape[0]:
        raise ValueError(f"the layout {list(layout)} does not cover {qkv_T3HE.shape[0]} tokens")
    q_THE, k_THE, v_THE = qkv_T3HE.unbind(1)
    if rope is not None:
        q_THE, k_THE = _rotated(qkv_T3HE[:, :2].flatten(1, 2), layout, rope).chunk(2, dim=1)
    runs_on = usable_backend(backend, qkv_T3HE.dtype, qkv_T3HE.shape[-1])
    return _attend(runs_on, q_THE, k_THE, v_THE, layout).flatten(1)


@lru_cache
def choose_backend(device: torch.device) -> Backend:
    """The fastest backend that works on a device; the choice and its reason are logged once per process."""
    faults = {backend: fault_of(backend, device) for backend in _ONE_KERNEL} if device.type == "cuda" else {}
    if torch.are_deterministic_algorithms_enabled():
        faults = dict.fromkeys(faults, "its backward pass adds up in any order")
    backend, reason = preferred_backend(device.type, faults)
    _log.info("attention on %s: %s (%s)", device, backend, reason)
    return backend


def preferred_backend(device_type: str, faults: Mapping[Backend, str | None]) -> tuple[Backend, str]:
    """Choose by device and by what is wrong with each backend there (None: nothing); gives the reason too."""
    if device_type != "cuda":
        return "grouped", "the others have CUDA operators only"
    reasons: list[str] = []
    for backend in _ONE_KERNEL:
        fault = faults[backend]
        if fault is None:
            return backend, "; ".join([*reasons, "works here"])
        reasons.append(f"{backend}: {fault}")
    return "grouped", "; ".join(reasons)


def usable_backend(backend: Backend, dtype: torch.dtype, head_width: int) -> Backend:
    """The backend for tensors of this type and head width.

    Flash kernels take half precision and heads of up to 256 in steps of 8. xFormers has an fp32 kernel too, but not for
    every GPU (none newer than Hopper in 0.0.35), and PyTorch's own of the same family is what ``grouped`` runs there.
    """
    fits = dtype in _HALF and head_width <= _MAX_HEAD_WIDTH and head_width % _HEAD_WIDTH_MULTIPLE == 0
    return backend if fits else "grouped"


def fault_of(backend: Backend, device: torch.device) -> str | None:
    """Why a backend does not work on a device, in a line; None where it does.

    It is tried, forward and backward: an import that succeeds says little about builds, drivers and GPUs.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():
            x_THE = torch.ones(3, 1, 64, dtype=torch.bfloat16, device=device, requires_grad=True)
            _attend(backend, x_THE, x_THE, x_THE, ((1, 2), (1, 1))).square().sum().backward()
    except Exception as error:  # whatever is wrong with an optional backend, there is another one
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def sequence_starts(layout: Layout) -> list[int]:
    """Where each sequence starts in the packed batch, and where the last one ends."""
    return list(accumulate(_sequence_lengths(layout), initial=0))


def _sequence_lengths(layout: Layout) -> list[int]:
    return [tokens for sequences, tokens in layout for _ in range(sequences)]


def _group_sizes(layout: Layout) -> list[int]:
    return [sequences * tokens for sequences, tokens in layout]


def _rotated(x_THE: Tensor, layout: Layout, rope: Rope) -> Tensor:
    rotated: list[Tensor] = []
    for part, group, tables in zip(x_THE.split(_group_sizes(layout)), layout, rope, strict=True):
        if tables is not None:
            x_SHNE = part.unflatten(0, group).transpose(1, 2)
            part = rotate(x_SHNE, *tables).transpose(1, 2).flatten(0, 1)
        rotated.append(part)
    return torch.cat(rotated)


def _attend(backend: Backend, q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, layout: Layout) -> Tensor:
    if backend == "xformers":
        return _xformers(q_THE, k_THE, v_THE, tuple(layout))
    if backend == "varlen":
        return _varlen(q_THE, k_THE, v_THE, tuple(layout))
    return _grouped(q_THE, k_THE, v_THE, layout)


def _grouped(q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, layout: Layout) -> Tensor:
    sizes = _group_sizes(layout)
    results: list[Tensor] = []
    for group, *qkv in zip(layout, q_THE.split(sizes), k_THE.split(sizes), v_THE.split(sizes), strict=True):
        q_SHNE, k_SHNE, v_SHNE = (x.unflatten(0, group).transpose(1, 2) for x in qkv)
        out_SHNE = _attend_group(q_SHNE, k_SHNE, v_SHNE)
        results.append(out_SHNE.transpose(1, 2).flatten(0, 1))
    return torch.cat(results)


def _attend_group(q_SHNE: Tensor, k_SHNE: Tensor, v_SHNE: Tensor) -> Tensor:
    if q_SHNE.device.type != "cpu" or q_SHNE.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q_SHNE, k_SHNE, v_SHNE)
    # torch's fused kernel of CPUs computes its products in fp32: three times slower than bf16 products and a softmax.
    scores_SHNN = (q_SHNE * q_SHNE.shape[-1] ** -0.5) @ k_SHNE.mT
    out_SHNE: Tensor = scores_SHNN.softmax(-1) @ v_SHNE
    return out_SHNE


def _xformers(q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, layout: _FrozenLayout) -> Tensor:
    mask = _xformers_mask(layout, q_THE.device)
    attend = importlib.import_module("xformers.ops").memory_efficient_attention
    out_1THE: Tensor = attend(q_THE[None], k_THE[None], v_THE[None], attn_bias=mask)
    return out_1THE[0]


@lru_cache(maxsize=_CACHED_LAYOUTS)
def _xformers_mask(layout: _FrozenLayout, device: torch.device) -> Any:
    # A tensor made in inference mode could not be saved for a later backward pass; the same holds below.
    with torch.inference_mode(False):
        masks = importlib.import_module("xformers.ops.fmha.attn_bias")
        return masks.BlockDiagonalMask.from_seqlens(_sequence_lengths(layout), device=device)


def _varlen(q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, layout: _FrozenLayout) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    starts = _varlen_starts(layout, q_THE.device)
    longest = max(tokens for _, tokens in layout)
    return cast(Tensor, varlen_attn(q_THE, k_THE, v_THE, starts, starts, longest, longest))


@lru_cache(maxsize=_CACHED_LAYOUTS)
def _varlen_starts(layout: _FrozenLayout, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(sequence_starts(layout), dtype=torch.int32, device=device)
