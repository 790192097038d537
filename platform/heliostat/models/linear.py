"""Linear layers at the speed of the machine.

On CPUs torch computes fp32 products with MKL, which on processors other than Intel's runs at half of what their vector
units allow (measured on an AMD EPYC with AVX-512: 180 against 400 GFLOP/s). oneDNN, which torch uses for bf16, has no
such limit; its fp32 linear operator is called here directly. Everywhere else this is ``torch.nn.functional.linear``.

Legend: X rows, I inputs, O outputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, (…, I) to (…, O); differentiable."""
    if not _is_for_onednn(x, weight_OI, bias_O):
        return F.linear(x, weight_OI, bias_O)
    out: Tensor = _OneDnnLinear.apply(x, weight_OI, bias_O)  # type: ignore[no-untyped-call]
    return out


class Linear(nn.Linear):
    """``torch.nn.Linear`` computed by ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) to (…, O)."""
        return linear(x, self.weight, self.bias)


def _is_for_onednn(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> bool:
    # Shapes that do not fit are left to torch, which names them.
    return (
        _HAS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype == weight_OI.dtype == torch.float32
        and weight_OI.dim() == 2
        and x.dim() > 0
        and x.shape[-1] == weight_OI.shape[1]
        and x.numel() > 0
        and weight_OI.numel() > 0
        and (bias_O is None or (bias_O.dtype == torch.float32 and bias_O.shape == weight_OI.shape[:1]))
        and not torch.is_autocast_enabled("cpu")
        # Exporters, compilers and function transforms need the standard operator.
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and not torch._C._are_functorch_transforms_active()
    )


def _product(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    bias_O = None if bias_O is None else bias_O.contiguous()  # its strides are ignored
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_OI, bias_O, "none", [], "")
    return out


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight_OI)
        return _product(x, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight_OI = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_XO = grad.reshape(-1, grad.shape[-1])
        return (
            linear(grad, weight_OI.T) if needs_x else None,
            linear(grad_XO.T, x.reshape(-1, x.shape[-1]).T) if needs_weight else None,
            grad_XO.sum(0) if needs_bias else None,
        )
