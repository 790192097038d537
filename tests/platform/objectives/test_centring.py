"""Against the dense formulas in float64; ``test_golden_targets.py`` has the published numbers."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.targets import targets
from torch import Tensor

from heliostat.objectives.centring import centre_offset, mean_logits, next_centre
from heliostat.objectives.cross_entropy import Layer
from heliostat.objectives.sinkhorn import OneWorker

PROTOTYPES = 12
SEEDS = st.integers(0, 10**6)


def random_tensor(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class SharedReducer:
    """Reductions over threads that stand for workers; every thread has one with its own rank."""

    def __init__(self, rank: int, parts: list[Tensor], barrier: threading.Barrier) -> None:
        self._rank, self._parts, self._barrier = rank, parts, barrier

    def sum(self, values: Tensor) -> Tensor:
        self._parts[self._rank] = values
        self._barrier.wait(timeout=30)
        result = torch.stack(self._parts).sum(0)
        self._barrier.wait(timeout=30)  # nobody may write the next part before all have read this one
        return result

    def max(self, values: Tensor) -> Tensor:
        raise AssertionError("a mean needs no maximum")


def centres_of_workers(centre: Tensor, shares: list[list[Tensor]], momentum: float) -> list[Tensor]:
    """The next centre that each worker finds, given the slot means of each."""
    parts, barrier = [torch.empty(0)] * len(shares), threading.Barrier(len(shares))

    def work(rank: int) -> Tensor:
        return next_centre(centre, shares[rank], SharedReducer(rank, parts, barrier), momentum)

    with ThreadPoolExecutor(len(shares)) as pool:
        return list(pool.map(work, range(len(shares))))


@given(tokens=st.integers(1, 20), width=st.integers(1, 8), seed=SEEDS)
def test_mean_logits__is_the_mean_of_the_logits(tokens: int, width: int, seed: int) -> None:
    vectors, weight = random_tensor(tokens, width, seed=seed), random_tensor(PROTOTYPES, width, seed=seed + 1)
    expected = (vectors.double() @ weight.double().T).mean(0)
    torch.testing.assert_close(mean_logits(vectors, Layer(weight, None)).double(), expected, rtol=1e-5, atol=1e-5)


def test_mean_logits__is_computed_in_full_precision() -> None:
    vectors, layer = random_tensor(50, 8, seed=0).bfloat16(), Layer(random_tensor(PROTOTYPES, 8, seed=1), None)
    with torch.autocast("cpu", torch.bfloat16):
        found = mean_logits(vectors, layer)
    assert found.dtype == torch.float32
    assert torch.equal(found, mean_logits(vectors.float(), layer))


def test_mean_logits__without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="a slot without tokens has no mean"):
        mean_logits(torch.empty(0, 8), Layer(torch.ones(PROTOTYPES, 8), None))


@given(temperature=st.floats(0.04, 2), seed=SEEDS)
def test_centre_offset__targets_are_the_softmax_of_centred_logits(temperature: float, seed: int) -> None:
    logits, centre = random_tensor(5, PROTOTYPES, seed=seed), random_tensor(PROTOTYPES, seed=seed + 1)
    expected = torch.softmax((logits.double() - centre.double()) / temperature, dim=-1)
    found = targets(logits, temperature, centre_offset(centre, temperature))
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-6)


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6), momentum=st.floats(0, 1), seed=SEEDS)
def test_next_centre__every_slot_with_tokens_weighs_the_same(sizes: list[int], momentum: float, seed: int) -> None:
    centre, weight = random_tensor(PROTOTYPES, seed=seed), random_tensor(PROTOTYPES, 4, seed=seed + 1)
    slots = [random_tensor(size, 4, seed=seed + 2 + place) for place, size in enumerate(sizes) if size]
    found = next_centre(centre, [mean_logits(slot, Layer(weight, None)) for slot in slots], OneWorker(), momentum)
    expected = centre.double()
    if slots:
        means = torch.stack([(slot.double() @ weight.double().T).mean(0) for slot in slots])
        expected = momentum * expected + (1 - momentum) * means.mean(0)
    assert found.dtype == centre.dtype
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=25)
@given(slots=st.integers(0, 9), workers=st.integers(1, 4), seed=SEEDS)
def test_next_centre__workers_do_not_matter(slots: int, workers: int, seed: int) -> None:
    centre = random_tensor(PROTOTYPES, seed=seed)
    means = list(random_tensor(slots, PROTOTYPES, seed=seed + 1))
    alone = next_centre(centre, means, OneWorker(), 0.9)
    # With more workers than slots, some have none.
    first, *others = centres_of_workers(centre, [means[rank::workers] for rank in range(workers)], 0.9)
    torch.testing.assert_close(first, alone, rtol=1e-6, atol=1e-7)
    assert all(torch.equal(first, other) for other in others)


def test_next_centre__is_not_the_mean_of_the_workers_means() -> None:
    means = list(random_tensor(3, PROTOTYPES, seed=0))
    found, _ = centres_of_workers(torch.zeros(PROTOTYPES), [means[:1], means[1:]], 0.0)
    per_worker = (means[0] + (means[1] + means[2]) / 2) / 2
    assert (found - per_worker).abs().max() > 0.01


def test_next_centre__without_any_token_stays() -> None:
    centre = random_tensor(PROTOTYPES, seed=0)
    for found in centres_of_workers(centre, [[], []], 0.9):
        assert torch.equal(found, centre)


def test_next_centre__what_is_not_finite_is_not_hidden() -> None:
    bad = torch.zeros(PROTOTYPES)
    bad[3] = torch.nan
    found = next_centre(torch.zeros(PROTOTYPES), [bad, torch.ones(PROTOTYPES)], OneWorker(), 0.9)
    assert found.isnan().tolist() == bad.isnan().tolist()
