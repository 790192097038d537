"""Cross-entropy of the teacher's and the student's distributions over prototypes, straight from bottleneck vectors.

With 131,072 prototypes a slot's logits are gigabytes, and a plain loss holds several copies of them. Here they exist
for one chunk at a time: its logits, targets, loss and gradient are computed together, in the forward pass, and what is
kept is of the size of the vectors and of the prototypes. Every product is computed as often as in the plain form.

For student vector s and target distribution t, with temperature τ: H = -Σ_k t_k log softmax(s/τ)_k.

Legend: V views of the student, U views of the teacher, I items (images or masked tokens), Z bottleneck width,
K prototypes, X = V * I rows of a chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from heliostat.models.heads import LinearPrototypes, Prototypes
from heliostat.models.linear import linear

CHUNK_BYTES = 32 * 2**20
"""Size of a chunk's logits in fp32: smaller ones read the prototypes more often than is hidden by their products."""
_ROWS_AT_ONCE = 4096
_TINY = 1e-12

AnyPrototypes = Prototypes | LinearPrototypes


@dataclass(frozen=True, slots=True)
class Layer:
    """The last layer of a network as it is now, without a graph, in the type in which its products are computed.

    The gain of a weight-normalised row is applied to its logits: weights at their lengths would be one more tensor of
    the prototypes' size.
    """

    rows_KZ: Tensor
    scale_K: Tensor | None

    @staticmethod
    def of(prototypes: AnyPrototypes, dtype: torch.dtype) -> "Layer":
        """Prepare a layer once for all that is computed with it."""
        rows_KZ, gain_K1 = prototypes.rows_KZ.detach(), prototypes.gain_K1
        scale_K = None if gain_K1 is None else (_nonzero(gain_K1) / _norms(rows_KZ)).squeeze(1)
        return Layer(rows_KZ.to(dtype), scale_K)

    def logits(self, z_XZ: Tensor, factor: float = 1.0, out_XK: Tensor | None = None) -> Tensor:
        """``factor`` times the logits, (X, K), fp32 (or the vectors' own type if it is wider).

        Args:
            z_XZ: unit vectors.
            factor: on the logits.
            out_XK: where to convert products of a narrower type to, at least X rows; memory that was just used is
                several times faster than new memory.
        """
        product_XK: Tensor = linear(z_XZ.to(self.rows_KZ.dtype), self.rows_KZ)
        wide = _wide(z_XZ.dtype)
        if product_XK.dtype != wide:
            product_XK = product_XK.to(wide) if out_XK is None else out_XK[: len(product_XK)].copy_(product_XK)
        return product_XK.mul_(factor if self.scale_K is None else self.scale_K * factor)

    def logit_chunks(self, z_MZ: Tensor, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Tensor]:
        """The logits of some vectors, (rows, K) at a time; at least one chunk, which may be empty."""
        for chunk in z_MZ.split(_items_per_chunk(1, len(self.rows_KZ), chunk_bytes)):
            yield self.logits(chunk)


@dataclass(frozen=True, slots=True)
class Targets:
    """The teacher's distributions of some items, as what they are computed from: softmax(z · W / τ + offset)."""

    z_UIZ: Tensor
    layer: Layer
    offset_K: Tensor
    temperature: float


def soft_cross_entropy(
    z_VIZ: Tensor,
    prototypes: AnyPrototypes,
    targets: Targets,
    pairing_VU: Tensor | None,
    weights_VI: Tensor,
    temperature: float,
    layer: Layer | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of cross-entropies, and the unweighted one of every student vector.

    Args:
        z_VIZ: the student's unit vectors.
        prototypes: the student's last layer.
        targets: the teacher's distributions of the same items.
        pairing_VU: which of the teacher's views are targets of a view of the student, 0 or 1; None pairs each view of
            the student with the teacher's of the same index.
        weights_VI: weight of each student vector's sum of cross-entropies.
        temperature: of the student.
        layer: ``prototypes``, prepared, where that was done already.
        chunk_bytes: upper limit of one chunk's fp32 logits; a chunk has at least one item.

    Returns:
        The sum (scalar, fp32, with gradient) and the cross-entropies (V, I), each summed over the view's targets,
        without gradient.
    """
    layer = layer or Layer.of(prototypes, compute_dtype(z_VIZ))
    call = _Call(layer, targets, pairing_VU, weights_VI, temperature, chunk_bytes)
    loss, rows_VI = _SoftCrossEntropy.apply(  # type: ignore[no-untyped-call]
        z_VIZ, prototypes.rows_KZ, prototypes.gain_K1, call
    )
    return loss, rows_VI


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which matrix products are computed: autocast's where it is on, else the tensor's own.

    Not fp16: gradients are computed here in the forward pass, before the loss scale could save those that are small.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return torch.float32 if dtype == torch.float16 else dtype


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _nonzero(gain_K1: Tensor) -> Tensor:
    # The gain's gradient is found by dividing by it; one so small gives the logits, and keeps the gradient, of 0.
    gain_K1 = gain_K1.detach()
    return torch.where(gain_K1.abs() < _TINY, _TINY, gain_K1)


def _norms(rows_KZ: Tensor) -> Tensor:
    norms_K1: Tensor = torch.linalg.vector_norm(rows_KZ.detach(), dim=1, keepdim=True)
    return norms_K1.clamp_min(_TINY)


def _items_per_chunk(views: int, prototypes: int, chunk_bytes: int) -> int:
    return max(1, chunk_bytes // (4 * views * prototypes))


@dataclass(frozen=True, slots=True)
class _Call:
    """What a cross-entropy is computed with, beside what learns."""

    layer: Layer
    targets: Targets
    pairing_VU: Tensor | None
    weights_VI: Tensor
    temperature: float
    chunk_bytes: int

    def parts(self, views: int, items: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Chunks of items, each with two buffers for its logits: the teacher's (U * n, K) and the student's (V * n, K).

        The buffers are the same for all chunks.
        """
        of_teacher, prototypes = len(self.targets.z_UIZ), len(self.layer.rows_KZ)
        size = min(items, _items_per_chunk(max(views, of_teacher), prototypes, self.chunk_bytes))
        device = self.weights_VI.device
        teacher_XK, student_XK = (torch.empty(n * size, prototypes, device=device) for n in (of_teacher, views))
        for start in range(0, items, max(size, 1)):
            yield slice(start, start + size), teacher_XK, student_XK

    def distributions(self, where: slice, out_XK: Tensor) -> Tensor:
        """The sum of each student view's targets, (V * n, K)."""
        targets = self.targets
        z_UIZ = targets.z_UIZ[:, where]
        t_XK = targets.layer.logits(z_UIZ.flatten(0, 1), 1 / targets.temperature, out_XK).add_(targets.offset_K)
        torch.softmax(t_XK, dim=-1, out=t_XK)
        if self.pairing_VU is None:
            return t_XK
        mixed: Tensor = self.pairing_VU.to(t_XK.dtype) @ t_XK.view(len(z_UIZ), -1)
        return mixed.view(-1, t_XK.shape[-1])


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_VIZ: Tensor, rows_KZ: Tensor, gain_K1: Tensor | None, call: _Call) -> tuple[Tensor, Tensor]:
        wide = _wide(z_VIZ.dtype)
        views, items, _ = z_VIZ.shape
        learns = any(ctx.needs_input_grad[:3])
        losses_VI = torch.zeros(views, items, dtype=wide, device=z_VIZ.device)
        grad_z = torch.empty_like(z_VIZ, dtype=wide)
        grad_KZ = torch.zeros_like(rows_KZ, dtype=wide) if learns else None
        with torch.autocast(z_VIZ.device.type, enabled=False):
            for where, teacher_XK, student_XK in call.parts(views, items):
                t_XK = call.distributions(where, teacher_XK)
                z_XZ = z_VIZ[:, where].flatten(0, 1)
                log_XK = call.layer.logits(z_XZ, 1 / call.temperature, student_XK)
                torch.log_softmax(log_XK, dim=-1, out=log_XK)
                losses_VI[:, where] = -_row_dots(t_XK, log_XK).unflatten(0, (views, -1))
                if grad_KZ is None:
                    continue
                slope_XK = _slope(call, log_XK, t_XK, where)
                grad_z[:, where] = linear(slope_XK, call.layer.rows_KZ.T).to(wide).unflatten(0, (views, -1))
                _accumulate(grad_KZ, slope_XK, z_XZ.to(slope_XK.dtype))
            if grad_KZ is not None:
                grad_gain = None if gain_K1 is None else _through_weight_norm(grad_KZ, rows_KZ, gain_K1)
                ctx.gradients = (grad_z.to(z_VIZ.dtype), grad_KZ.to(rows_KZ.dtype), grad_gain)
            loss = (losses_VI * call.weights_VI).sum()
        ctx.mark_non_differentiable(losses_VI)
        return loss, losses_VI

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients
        if gradients is None:
            raise RuntimeError("the gradient of soft_cross_entropy can be asked for once")
        ctx.gradients = None  # they are scaled in place: nobody else holds them
        return (*(None if each is None else each.mul_(grad_loss) for each in gradients), None)


def _row_dots(left_XK: Tensor, right_XK: Tensor) -> Tensor:
    return torch.bmm(left_XK.unsqueeze(1), right_XK.unsqueeze(2)).view(-1)


def _slope(call: _Call, log_XK: Tensor, t_XK: Tensor, where: slice) -> Tensor:
    """Gradient of the weighted loss on the products of a chunk, in their type; overwrites ``t_XK``."""
    t_XK.mul_((call.weights_VI[:, where] / -call.temperature).reshape(-1, 1))
    torch.ops.aten._log_softmax_backward_data.out(t_XK, log_XK, -1, t_XK.dtype, out=t_XK)
    if call.layer.scale_K is not None:
        t_XK.mul_(call.layer.scale_K)
    return t_XK.to(call.layer.rows_KZ.dtype)


def _accumulate(grad_KZ: Tensor, slope_XK: Tensor, z_XZ: Tensor) -> None:
    """Add slope.T @ z, some rows at a time: whole, the product would be as large as the prototypes."""
    for rows_XZ, columns_XK in zip(grad_KZ.split(_ROWS_AT_ONCE), slope_XK.split(_ROWS_AT_ONCE, dim=1), strict=True):
        rows_XZ.add_(linear(columns_XK.T, z_XZ.T))


def _through_weight_norm(grad_KZ: Tensor, rows_KZ: Tensor, gain_K1: Tensor) -> Tensor:
    """From g / ‖v‖ times the gradient on g v / ‖v‖, the gradients on v (in place) and on g (returned)."""
    norms_K1, gains_K1 = _norms(rows_KZ), _nonzero(gain_K1)
    grad_gain = torch.empty_like(gain_K1)
    for start in range(0, len(rows_KZ), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        grad_XZ, rows_XZ, norms_X1 = grad_KZ[part], rows_KZ[part], norms_K1[part]
        along_X1 = (grad_XZ * rows_XZ).sum(1, keepdim=True) / norms_X1
        grad_gain[part] = along_X1 * norms_X1 / gains_K1[part]
        grad_XZ.addcmul_(rows_XZ, along_X1 / norms_X1, value=-1)
    return grad_gain
