"""Teacher targets by Sinkhorn-Knopp over the global batch, as one vector.

Sinkhorn-Knopp scales the rows (prototypes) and columns (tokens) of exp(logits / τ) in turn. Its result for a token is
``softmax(logits / τ + offset)``: the row scalings are the ``offset`` vector (K), and the column scalings are nothing
but the softmax's own normalisation. So no target is ever stored: a worker keeps each token's logits (or the vectors to
recompute them from) and the offset.

Source: Cuturi 2013; SwAV, arXiv 2006.09882; DINOv2, arXiv 2304.07193, section 4. Here in the log domain, which cannot
overflow whatever the prototypes' norms are.

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
    offset: Tensor | None = None
    for _ in range(iterations):
        rows: Tensor | None = None
        for chunk in logits():
            scaled_TK = chunk.float() / temperature
            if offset is not None:
                scaled_TK = scaled_TK - torch.logsumexp(scaled_TK + offset, dim=1, keepdim=True)
            lse = torch.logsumexp(scaled_TK, dim=0)
            rows = lse if rows is None else torch.logaddexp(rows, lse)
        if rows is None:
            raise ValueError("logits() must give at least one chunk, which may have no rows")
        offset = -_log_sum(rows, reducer)
    if offset is None:
        raise ValueError("iterations must be at least 1")
    return offset


def _log_sum(log_values: Tensor, reducer: Reducer) -> Tensor:
    """Log of the sum over workers of exp(log_values); a world without any token gives 0."""
    top = reducer.max(log_values)
    top = torch.where(torch.isfinite(top), top, torch.zeros_like(top))
    # Summed in float64, so that the number of workers shows in the last bits of fp32 only.
    total = reducer.sum(torch.exp((log_values - top).double()))
    return torch.where(total > 0, torch.log(total).to(top.dtype) + top, torch.zeros_like(top))


def targets(logits_TK: Tensor, temperature: float, offset_K: Tensor) -> Tensor:
    """The teacher's distributions, (T, K), fp32, rows sum to 1."""
    return torch.softmax(logits_TK.float() / temperature + offset_K, dim=-1)
