"""Teacher targets by Sinkhorn-Knopp over the global batch, as one vector.

Sinkhorn-Knopp scales the rows (prototypes) and columns (tokens) of exp(logits / τ) in turn. Its result for a token is
``softmax(logits / τ + offset)``: the row scalings are the ``offset`` vector (K), and the column scalings are nothing
but the softmax's own normalisation. So no target is ever stored: a worker keeps each token's logits (or the vectors to
recompute them from) and the offset.

Source: Cuturi 2013; SwAV, arXiv 2006.09882; DINOv2, arXiv 2304.07193, section 4. Here the first iteration is computed
on logarithms and the others on softmaxes, which cannot overflow whatever the prototypes' norms are.

Legend: T tokens of this worker, K prototypes.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor


class Reducer(Protocol):
    """Reductions over all workers; every worker calls them in the same order."""

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum."""

    def max(self, values: Tensor) -> Tensor:
        """Element-wise maximum."""


class OneWorker:
    """The reductions of a world of one."""

    def sum(self, values: Tensor) -> Tensor:
        """The values."""
        return values

    def max(self, values: Tensor) -> Tensor:
        """The values."""
        return values


@torch.no_grad()
def sinkhorn_offset(
    logits: Callable[[], Iterable[Tensor]], temperature: float, iterations: int, reducer: Reducer
) -> Tensor:
    """The offset vector of a global batch, shape (K,), fp32.

    Args:
        logits: gives this worker's teacher logits anew at each call, in chunks of shape (T, K); every token of the
            global batch exactly once over all workers. A worker may give none.
        temperature: τ.
        iterations: Sinkhorn-Knopp iterations, at least 1; each costs one pass over the logits.
        reducer: reductions over the workers.
    """
    if iterations < 1:
        raise ValueError("iterations must be at least 1")
    offset_K = -_log_sum(_first_rows(logits(), temperature), reducer)
    for _ in range(iterations - 1):
        rows_K = torch.zeros_like(offset_K, dtype=torch.float64)
        for chunk in logits():
            shifted_TK = torch.add(offset_K, chunk.float(), alpha=1 / temperature)
            rows_K += torch.softmax(shifted_TK, dim=-1, out=shifted_TK).sum(0)
        # Never 0 where there are tokens: after the first iteration some token of the world gives each prototype at
        # least 1 / (tokens * prototypes), so logarithms are needed once only. A token that is not finite leaves the
        # offset as it is, so that it spoils the loss of its own slot only.
        rows_K = reducer.sum(rows_K)
        offset_K = torch.where(rows_K > 0, offset_K - torch.log(rows_K).to(offset_K.dtype), offset_K)
    return offset_K


def _first_rows(chunks: Iterable[Tensor], temperature: float) -> Tensor:
    rows_K: Tensor | None = None
    for chunk in chunks:
        lse_K = torch.logsumexp(chunk.float() / temperature, dim=0)
        rows_K = lse_K if rows_K is None else torch.logaddexp(rows_K, lse_K)
    if rows_K is None:
        raise ValueError("logits() must give at least one chunk, which may have no rows")
    return rows_K


def _log_sum(log_values: Tensor, reducer: Reducer) -> Tensor:
    """Log of the sum over workers of exp(log_values); a world without any token gives 0."""
    top = reducer.max(log_values)
    top = torch.where(torch.isfinite(top), top, torch.zeros_like(top))
    # Summed in float64, so that the number of workers shows in the last bits of fp32 only.
    total = reducer.sum(torch.exp((log_values - top).double()))
    return torch.where(total > 0, torch.log(total).to(top.dtype) + top, torch.zeros_like(top))
