"""Against the textbook: rows and columns of a matrix scaled in turn, in float64."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.targets import targets
from torch import Tensor

from heliostat.objectives.sinkhorn import OneWorker, sinkhorn_offset


def textbook(logits_TK: Tensor, temperature: float, iterations: int) -> NDArray[np.float64]:
    scaled = logits_TK.double().numpy() / temperature
    matrix_KT: NDArray[np.float64] = np.exp(scaled - scaled.max()).T
    tokens, prototypes = logits_TK.shape
    for _ in range(iterations):
        matrix_KT /= matrix_KT.sum(1, keepdims=True) * prototypes
        matrix_KT /= matrix_KT.sum(0, keepdims=True) * tokens
    result: NDArray[np.float64] = matrix_KT.T * tokens
    return result


def solved(logits_TK: Tensor, temperature: float, iterations: int, chunks: int = 1) -> Tensor:
    offset = sinkhorn_offset(lambda: logits_TK.tensor_split(chunks), temperature, iterations, OneWorker())
    return targets(logits_TK, temperature, offset)


class SharedReducer:
    """Reductions over threads that stand for workers; every thread has one with its own rank."""

    def __init__(self, rank: int, parts: list[Tensor], barrier: threading.Barrier) -> None:
        self._rank, self._parts, self._barrier = rank, parts, barrier

    def sum(self, values: Tensor) -> Tensor:
        return self._combined(values, lambda parts: torch.stack(parts).sum(0))

    def max(self, values: Tensor) -> Tensor:
        return self._combined(values, lambda parts: torch.stack(parts).amax(0))

    def _combined(self, values: Tensor, combine: Callable[[list[Tensor]], Tensor]) -> Tensor:
        self._parts[self._rank] = values
        self._barrier.wait(timeout=30)
        result = combine(self._parts)
        self._barrier.wait(timeout=30)  # nobody may write the next part before all have read this one
        return result


def offsets_of_workers(shares: list[list[Tensor]], temperature: float, iterations: int) -> list[Tensor]:
    """The offset that each worker finds, given the chunks of each."""
    parts, barrier = [torch.empty(0)] * len(shares), threading.Barrier(len(shares))

    def work(rank: int) -> Tensor:
        return sinkhorn_offset(lambda: shares[rank], temperature, iterations, SharedReducer(rank, parts, barrier))

    with ThreadPoolExecutor(len(shares)) as pool:
        return list(pool.map(work, range(len(shares))))


def random_logits(tokens: int, prototypes: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(tokens, prototypes, generator=torch.Generator().manual_seed(seed))


@given(
    tokens=st.integers(1, 30),
    prototypes=st.integers(1, 20),
    temperature=st.floats(0.04, 2),
    iterations=st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
def test_targets__equal_the_textbook(
    tokens: int, prototypes: int, temperature: float, iterations: int, seed: int
) -> None:
    logits = random_logits(tokens, prototypes, seed)
    found = solved(logits, temperature, iterations)
    np.testing.assert_allclose(found.numpy(), textbook(logits, temperature, iterations), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.sum(1), torch.ones(tokens))


def test_targets__use_all_prototypes_alike_in_the_end() -> None:
    logits = random_logits(60, 12, seed=0) + torch.arange(12.0)  # without balance the last prototype would win
    shares = solved(logits, 0.5, 200).sum(0)
    torch.testing.assert_close(shares, torch.full((12,), 5.0), atol=1e-2, rtol=0)
    assert torch.softmax(logits / 0.5, 1).sum(0).max() > 30


@given(chunks=st.integers(2, 9), seed=st.integers(0, 10**6))
def test_sinkhorn_offset__chunks_do_not_matter(chunks: int, seed: int) -> None:
    logits = random_logits(8, 16, seed)  # with nine chunks, one has no row
    torch.testing.assert_close(solved(logits, 0.07, 3, chunks), solved(logits, 0.07, 3), atol=1e-6, rtol=1e-4)


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, 24), min_size=1, max_size=2), seed=st.integers(0, 10**6), scale=st.floats(0.1, 30))
def test_sinkhorn_offset__workers_do_not_matter(cuts: list[int], seed: int, scale: float) -> None:
    logits = random_logits(24, 16, seed, scale)
    alone = sinkhorn_offset(lambda: [logits], 0.07, 3, OneWorker())
    shares = [[part] for part in logits.tensor_split(sorted(cuts))]  # a worker may be without tokens
    for offset in offsets_of_workers(shares, 0.07, 3):
        # Offsets are of the size of logits / temperature; a constant in all of them changes no target.
        torch.testing.assert_close(
            targets(logits, 0.07, offset), targets(logits, 0.07, alone), atol=1e-5 * max(1, scale), rtol=1e-4
        )


def test_sinkhorn_offset__all_workers_find_the_same_bits() -> None:
    parts = [[random_logits(tokens, 16, tokens)] for tokens in (5, 0, 7)]
    first, *others = offsets_of_workers(parts, 0.07, 3)
    assert all(torch.equal(first, other) for other in others)


def test_sinkhorn_offset__is_not_that_of_one_workers_tokens() -> None:
    logits = random_logits(24, 16, 0)
    whole = sinkhorn_offset(lambda: [logits], 0.07, 3, OneWorker())
    part = sinkhorn_offset(lambda: [logits[:12]], 0.07, 3, OneWorker())
    assert (targets(logits, 0.07, whole) - targets(logits, 0.07, part)).abs().max() > 0.1


def test_targets__survive_extreme_logits() -> None:
    logits = 1e4 * torch.sign(random_logits(20, 10, 1))
    logits[3] = -1e4
    logits[:, 4] = -1e4
    found = solved(logits, 0.04, 3)
    assert found.isfinite().all()
    torch.testing.assert_close(found.sum(1), torch.ones(20))


def test_targets__take_half_precision_and_return_full() -> None:
    logits = random_logits(10, 6, 2).bfloat16()
    found = solved(logits, 0.07, 3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, solved(logits.float(), 0.07, 3))


def test_sinkhorn_offset__of_a_world_without_tokens_is_zero() -> None:
    assert sinkhorn_offset(lambda: [torch.empty(0, 5)], 0.07, 3, OneWorker()).tolist() == [0.0] * 5


def test_sinkhorn_offset__misuse_is_named() -> None:
    with pytest.raises(ValueError, match="at least one chunk"):
        sinkhorn_offset(list, 0.07, 3, OneWorker())
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        sinkhorn_offset(lambda: [torch.zeros(2, 3)], 0.07, 0, OneWorker())
