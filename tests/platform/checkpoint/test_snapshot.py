import pytest
import torch

from heliostat.checkpoint.format import StateSlice
from heliostat.checkpoint.snapshot import Snapshot


def _slices(scale: float) -> list[StateSlice]:
    return [
        StateSlice("master", "a", 3, scale * torch.arange(7.0)),
        StateSlice("centre", "b", 0, torch.full((5,), int(scale), dtype=torch.uint8)),
        StateSlice("exp_avg", "a", 0, scale * torch.arange(4.0, dtype=torch.float64)),
        StateSlice("exp_avg", "c", 0, torch.empty(0)),
    ]


def test_take__copies_what_is_there_at_that_moment() -> None:
    sources = _slices(2.0)
    expected = [each.values.clone() for each in sources]
    copies = Snapshot().take(iter(sources))
    for each in sources:
        each.values.zero_()
    assert [each.name for each in copies] == [each.name for each in sources]
    for copy, values in zip(copies, expected, strict=True):
        assert copy.values.dtype == values.dtype
        assert torch.equal(copy.values, values)


def test_take__uses_one_buffer_again_and_again() -> None:
    snapshot = Snapshot()
    first = snapshot.take(_slices(1.0))
    places = [each.values.data_ptr() for each in first]
    size_bytes = snapshot.size_bytes
    second = snapshot.take(_slices(3.0))
    assert [each.values.data_ptr() for each in second] == places
    assert snapshot.size_bytes == size_bytes
    assert torch.equal(first[0].values, 3 * torch.arange(7.0))  # the first copy is gone


def test_take__needs_no_more_than_the_state() -> None:
    state = [StateSlice("master", f"p{index}", 0, torch.ones(1000 + index)) for index in range(50)]
    snapshot = Snapshot()
    snapshot.take(state)
    assert snapshot.size_bytes <= 1.01 * sum(each.values.numel() * 4 for each in state)


def test_take__of_parameters_that_learn() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    (copy,) = Snapshot().take([StateSlice("master", "a", 0, parameter)])
    assert not copy.values.requires_grad
    assert torch.equal(copy.values, torch.ones(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_take__of_a_gpu_is_pinned_and_complete() -> None:
    source = torch.arange(1 << 22, dtype=torch.float32, device="cuda")
    (copy,) = Snapshot().take([StateSlice("master", "a", 0, source)])
    source.zero_()
    assert copy.values.is_pinned()
    assert torch.equal(copy.values, torch.arange(1 << 22, dtype=torch.float32))
