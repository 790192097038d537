"""Activation checkpointing: which results of a block the backward pass computes again instead of keeping.

``selective`` keeps matrix products, convolutions and attention and computes the rest again (norms, activations,
gathers and scatters), for about a tenth of the time on a CPU. ``full`` keeps a block's inputs only. ``RESULTS.md`` has
what each saves of a whole process at 131,072 prototypes. All draws are made before the forward pass and handed in, so a
second computation repeats the first exactly.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "selective", "full"]

_KEPT = (
    ("aten", "mm"),
    ("aten", "addmm"),
    ("aten", "bmm"),
    ("aten", "convolution"),
    ("mkldnn", "_linear_pointwise"),
    ("aten", "_scaled_dot_product_flash_attention_for_cpu"),
    ("aten", "_scaled_dot_product_flash_attention"),
    ("aten", "_scaled_dot_product_efficient_attention"),
    ("aten", "_scaled_dot_product_cudnn_attention"),
    ("torch_attn", "_varlen_attn"),
    ("xformers", "efficient_attention_forward_cutlass"),
    ("xformers_flash", "flash_fwd"),
    ("xformers_flash3", "flash_fwd"),
)
"""Namespace and name of the operators whose results are kept; those that are not installed are left out."""


@cache
def _kept_operators() -> list[Any]:
    found = []
    for namespace, name in _KEPT:
        packet = getattr(getattr(torch.ops, namespace), name, None)
        if packet is not None:
            found.append(packet.default)
    return found


def recomputed(function: Callable[..., Any], mode: Recompute) -> Callable[..., Any]:
    """``function`` with activation checkpointing; the same numbers."""
    if mode == "none" or not torch.is_grad_enabled():
        return function
    settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _kept_operators())
    return partial(checkpoint, function, **settings)
